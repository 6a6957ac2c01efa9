// Tile kernels for AVX2 with FMA and F16C. The loops are in tile_inl.h and tile_product_inl.h.
#include <immintrin.h>

#include "croquis/simd/tile_internal.h"
#include "croquis/simd/vector_avx2.h"

namespace croquis::simd {
namespace {

#include "croquis/simd/tile_avx2.h"
#include "croquis/simd/tile_inl.h"
#include "croquis/simd/tile_product_inl.h"

}  // namespace

const TileKernels& TilesAvx2(TileType type) {
  static constexpr TileKernels kF32 = {"avx2",
                                       Target::kAvx2,
                                       PackBlock<TileType::kF32>,
                                       PackQueries<TileType::kF32>,
                                       Attend<TileType::kF32>,
                                       AddProducts<TileType::kF32>,
                                       ScratchBytes};
  static constexpr TileKernels kBf16 = {"avx2",
                                        Target::kAvx2,
                                        PackBlock<TileType::kBf16>,
                                        PackQueries<TileType::kBf16>,
                                        AttendWidened,
                                        AddProductsWidened,
                                        WidenedBytes};
  return type == TileType::kF32 ? kF32 : kBf16;
}

}  // namespace croquis::simd
