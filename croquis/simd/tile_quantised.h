// Tiles of attention on integers, after SageAttention2 (arXiv 2411.10958): queries and keys of 8 bits, weights and
// values of 16 or 8. Rows of a tile keep the same streaming softmax as in tile_kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/view.h"
#include "croquis/simd/target.h"
#include "croquis/simd/tile_kernels.h"

namespace croquis::simd {

// How a block of 64 keys and its values lie in memory.
//   keys: signed bytes [units][64][4]: four numbers of a key are a unit
//   values: [32][width][2] of 16 bits, or [16][width][4] signed bytes (narrow): two or four keys together
// Padding, and slots without a key, hold zeros.
struct QuantisedLayout {
  int64_t dim = 0, value_dim = 0;
  bool narrow = false;

  int64_t Units() const { return (dim + 3) / 4; }
  int64_t Width() const { return (value_dim + 15) / 16 * 16; }
  size_t KeyBlockBytes() const { return size_t(kTileKeys * 4 * Units()); }
  size_t ValueBlockBytes() const { return size_t(kTileKeys * Width()) * (narrow ? 1 : 2); }
};

// Largest magnitudes: of a value of 16 bits, so that 64 products with weights of 12 bits fit 32.
inline constexpr int kQuantisedValues = 4095;

// Logits are base 2: row_scale[r] * key_scale[key] * <query - 128, key> + bias[key - bias_first].
struct QuantisedCall {
  QuantisedLayout layout;
  const uint8_t* queries = nullptr;  // [kTileRows][Units()][4], plus 128; rows beyond `rows` may hold anything
  const float* row_scale = nullptr;
  int64_t rows = 0;
  const std::byte *keys = nullptr, *values = nullptr;  // the set's first blocks
  const float* key_scale = nullptr;                    // by slot; whole blocks
  const int32_t* key_offset = nullptr;                 // by slot: -128 times the sum of the key's numbers; whole blocks
  const float* bias = nullptr;                         // whole blocks from the one of `begin` on; may be null
  int64_t bias_first = 0;                              // its first slot
  int64_t begin = 0, end = 0;
  const int32_t *first = nullptr, *last = nullptr;  // as in TileCall
  // As in TileCall. Sums are in units of the values' integers.
  float *max = nullptr, *mass = nullptr;
  MatView<float> sums;
  std::byte* scratch = nullptr;  // kQuantisedScratch bytes, 64-byte aligned
};

struct QuantisedKernels {
  std::string_view name;
  Target target;
  void (*attend)(const QuantisedCall& call);
};

inline constexpr size_t kQuantisedScratch = size_t{48} << 10;

// Of a target; where it has none of its own, of the next one below.
const QuantisedKernels& QuantisedTiles();
const QuantisedKernels& QuantisedTiles(Target target);

}  // namespace croquis::simd
