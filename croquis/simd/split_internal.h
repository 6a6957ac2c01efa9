// The forms of SplitKernels that this build holds; Split() in split_kernels.cc picks among them.
#pragma once

#include "croquis/simd/split_kernels.h"

namespace croquis::simd {

#if defined(__x86_64__)
const SplitKernels& SplitAmx();
#endif

}  // namespace croquis::simd
