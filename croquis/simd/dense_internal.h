// The forms of DenseKernels that this build holds; Dense() in dense_kernels.cc picks among them.
#pragma once

#include "croquis/simd/dense_kernels.h"

namespace croquis::simd {

const DenseKernels& DenseScalar();
#if defined(__x86_64__)
const DenseKernels& DenseAvx2();
const DenseKernels& DenseAvx512();
#endif

}  // namespace croquis::simd
