#include "croquis/simd/split_kernels.h"

#include "croquis/simd/split_internal.h"

namespace croquis::simd {

const SplitKernels* Split(Target target) {
#if defined(__x86_64__)
  if (target == Target::kAmx) return &SplitAmx();
#else
  (void)target;
#endif
  return nullptr;
}

const SplitKernels* Split() { return Split(Active()); }

}  // namespace croquis::simd
