#include "croquis/simd/tile_kernels.h"

#include "croquis/simd/tile_internal.h"

namespace croquis::simd {
namespace {

#if defined(__x86_64__)
// vdpbf16ps does twice the work of an FMA. AMD's Zen 4 and later start one a cycle or more; Intel's Sapphire Rapids one
// in two cycles and two FMAs a cycle, so that there widening is twice as fast.
bool FastPairs() {
  static const bool fast = [] {
    __builtin_cpu_init();
    return __builtin_cpu_is("amd") != 0;
  }();
  return fast;
}
#endif

}  // namespace

const TileKernels& Tiles(TileType type, Target target) {
#if defined(__x86_64__)
  if (target >= Target::kAmx && type == TileType::kBf16) return TilesAmx();
  if (target >= Target::kAvx512) return TilesAvx512(type, FastPairs());
  if (target >= Target::kAvx2) return TilesAvx2(type);
#endif
  (void)target;
  return TilesScalar(type);
}

const TileKernels& Tiles(TileType type) { return Tiles(type, Active()); }

}  // namespace croquis::simd
