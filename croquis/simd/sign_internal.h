// Private to the module: the tables of the instruction sets.
#pragma once

#include "croquis/simd/sign_kernels.h"

namespace croquis::simd {

const SignKernels& SignsScalar();
const SignKernels& SignsAvx2();
const SignKernels& SignsAvx512();

}  // namespace croquis::simd
