// The forms of FeatureKernels that this build holds; FeatureLoops() in feature_kernels.cc picks among them.
#pragma once

#include "croquis/simd/feature_kernels.h"

namespace croquis::simd {

const FeatureKernels& FeaturesScalar();
#if defined(__x86_64__)
const FeatureKernels& FeaturesAvx2();
const FeatureKernels& FeaturesAvx512();
#endif

}  // namespace croquis::simd
