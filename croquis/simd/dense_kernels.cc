#include "croquis/simd/dense_kernels.h"

#include "croquis/simd/dense_internal.h"

namespace croquis::simd {

const DenseKernels& Dense(Target target) {
#if defined(__x86_64__)
  switch (target) {
    case Target::kScalar:
      return DenseScalar();
    case Target::kAvx2:
    case Target::kAvxVnni:  // nothing here is an integer product
      return DenseAvx2();
    case Target::kAvx512:
    case Target::kAmx:
      return DenseAvx512();
  }
#else
  (void)target;
#endif
  return DenseScalar();
}

const DenseKernels& Dense() { return Dense(Active()); }

}  // namespace croquis::simd
