// The forms of SplitKernels that this build holds; Split() in split_kernels.cc picks among them.
#pragma once

#include "croquis/simd/split_kernels.h"

namespace croquis::simd {

#if defined(__x86_64__)
const SplitKernels& SplitAmx();
namespace amx {  // those of SplitAmx that have a file of their own
size_t SplitAttendBytes(int64_t rows, int64_t dim);
void SplitAttend(const SplitCall& call);
}  // namespace amx
#endif

}  // namespace croquis::simd
