#include "croquis/simd/row_kernels.h"

#include "croquis/simd/row_internal.h"

namespace croquis::simd {

const RowKernels& RowLoops(Target target) {
#if defined(__x86_64__)
  switch (target) {
    case Target::kScalar:
      return RowsScalar();
    case Target::kAvx2:
    case Target::kAvxVnni:  // nothing here is an integer product
      return RowsAvx2();
    case Target::kAvx512:
    case Target::kAmx:
      return RowsAvx512();
  }
#else
  (void)target;
#endif
  return RowsScalar();
}

const RowKernels& RowLoops() { return RowLoops(Active()); }

}  // namespace croquis::simd
