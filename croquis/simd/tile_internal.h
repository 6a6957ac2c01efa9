// The forms of TileKernels that this build holds; Tiles() in tile_kernels.cc picks among them.
#pragma once

#include "croquis/simd/tile_kernels.h"

namespace croquis::simd {

const TileKernels& TilesScalar(TileType type);
#if defined(__x86_64__)
const TileKernels& TilesAvx2(TileType type);
// pairs: bf16 by vdpbf16ps instead of widening.
const TileKernels& TilesAvx512(TileType type, bool pairs);
const TileKernels& TilesAmx();  // bf16
#endif

}  // namespace croquis::simd
