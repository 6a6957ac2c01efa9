#include "croquis/simd/tile_kernels.h"

#include "croquis/simd/tile_internal.h"

namespace croquis::simd {

const TileKernels& Tiles(TileType type, Target) { return TilesScalar(type); }

const TileKernels& Tiles(TileType type) { return Tiles(type, Active()); }

}  // namespace croquis::simd
