#include "croquis/simd/tile_kernels.h"

#include "croquis/simd/tile_internal.h"

namespace croquis::simd {

const TileKernels& Tiles(TileType type, Target target) {
#if defined(__x86_64__)
  if (target >= Target::kAmx && type == TileType::kBf16) return TilesAmx();
  if (target >= Target::kAvx512) return TilesAvx512(type);
#endif
  (void)target;
  return TilesScalar(type);
}

const TileKernels& Tiles(TileType type) { return Tiles(type, Active()); }

}  // namespace croquis::simd
