#include "croquis/simd/sign_kernels.h"

#include "croquis/simd/sign_internal.h"

namespace croquis::simd {

const SignKernels& Signs(Target target) {
#if defined(__x86_64__)
  switch (target) {
    case Target::kScalar:
      return SignsScalar();
    case Target::kAvx2:
    case Target::kAvxVnni:  // and + vpmaddubsw against two vpdpbusd: no gain
      return SignsAvx2();
    case Target::kAvx512:
    case Target::kAmx:
      return SignsAvx512();
  }
#else
  (void)target;
#endif
  return SignsScalar();
}

const SignKernels& Signs() { return Signs(Active()); }

}  // namespace croquis::simd
