// The forms of RowKernels that this build holds; RowLoops() in row_kernels.cc picks among them.
#pragma once

#include "croquis/simd/row_kernels.h"

namespace croquis::simd {

const RowKernels& RowsScalar();
#if defined(__x86_64__)
const RowKernels& RowsAvx2();
const RowKernels& RowsAvx512();
#endif

}  // namespace croquis::simd
