// The forms of QuantisedKernels that this build holds.
#pragma once

#include "croquis/simd/tile_quantised.h"

namespace croquis::simd {

const QuantisedKernels& QuantisedScalar();
#if defined(__x86_64__)
const QuantisedKernels& QuantisedAvx2();
const QuantisedKernels& QuantisedAvxVnni();
const QuantisedKernels& QuantisedAvx512();
#endif

}  // namespace croquis::simd
