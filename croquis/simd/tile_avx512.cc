// Tile kernels for AVX-512: f32, bf16 widened to f32, and bf16 by vdpbf16ps, which multiplies pairs.
#include <immintrin.h>

#include "croquis/simd/tile_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace {

#include "croquis/simd/tile_avx512.h"
#include "croquis/simd/tile_inl.h"
#include "croquis/simd/tile_product_inl.h"

}  // namespace

const TileKernels& TilesAvx512(TileType type, bool pairs) {
  static constexpr TileKernels kF32 = {"avx512",
                                       Target::kAvx512,
                                       PackBlock<TileType::kF32>,
                                       PackQueries<TileType::kF32>,
                                       Attend<TileType::kF32>,
                                       AddProducts<TileType::kF32>,
                                       ScratchBytes};
  static constexpr TileKernels kBf16 = {
      "avx512",           Target::kAvx512, PackBlock<TileType::kBf16>, PackQueries<TileType::kBf16>, AttendWidened,
      AddProductsWidened, WidenedBytes};
  static constexpr TileKernels kPairs = {"avx512-bf16",
                                         Target::kAvx512,
                                         PackBlock<TileType::kBf16>,
                                         PackQueries<TileType::kBf16>,
                                         Attend<TileType::kBf16>,
                                         AddProducts<TileType::kBf16>,
                                         ScratchBytes};
  return type == TileType::kF32 ? kF32 : pairs ? kPairs : kBf16;
}

}  // namespace croquis::simd
