#include "croquis/simd/feature_kernels.h"

#include "croquis/simd/feature_internal.h"

namespace croquis::simd {

const FeatureKernels& FeatureLoops(Target target) {
#if defined(__x86_64__)
  switch (target) {
    case Target::kScalar:
      return FeaturesScalar();
    case Target::kAvx2:
    case Target::kAvxVnni:  // nothing here is an integer product
      return FeaturesAvx2();
    case Target::kAvx512:
    case Target::kAmx:
      return FeaturesAvx512();
  }
#else
  (void)target;
#endif
  return FeaturesScalar();
}

const FeatureKernels& FeatureLoops() { return FeatureLoops(Active()); }

}  // namespace croquis::simd
