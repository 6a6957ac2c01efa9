// Tiles of attention on integers, after SageAttention2 (arXiv 2411.10958): queries and keys of 8 bits (16 where that
// costs no more), weights and values of 16 or 8. Rows of a tile keep the same streaming softmax as in tile_kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/view.h"
#include "croquis/simd/target.h"
#include "croquis/simd/tile_kernels.h"

namespace croquis::simd {

inline constexpr int kQuantisedFewValues = 110, kQuantisedFour = 32767 / kQuantisedFewValues;  // see AddsFour

// How queries, and a block of 64 keys and its values, lie in memory.
//   queries: bytes plus 128, [kTileRows][units][4], or [kTileRows][units][2] of 16 bits (wide)
//   keys: signed bytes [units][64][4], or [units][64][2] of 16 bits (wide): four or two numbers of a key are a unit
//   values: [32][width][2] of 16 bits, or [16][width][4] signed bytes (narrow): two or four keys together
// Padding, and slots without a key, hold zeros.
struct QuantisedLayout {
  int64_t dim = 0, value_dim = 0;
  bool wide = false, narrow = false;

  int64_t UnitNumbers() const { return wide ? 2 : 4; }
  int64_t Units() const { return (dim + UnitNumbers() - 1) / UnitNumbers(); }
  int64_t Width() const { return (value_dim + 15) / 16 * 16; }
  size_t KeyBlockBytes() const { return size_t(kTileKeys * 4 * Units()); }
  size_t ValueBlockBytes() const { return size_t(kTileKeys * Width()) * (narrow ? 1 : 2); }
  // Largest magnitudes: 64 products of weights and values have to fit 32 bits.
  int ValueLevels() const { return !narrow ? 4095 : wide ? kQuantisedFewValues : 127; }
  int WeightLevels() const { return narrow ? 255 : 4095; }
  // With narrow values and wide keys (AVX2: vpmaddubsw) four products are added in 16 bits, those of keys 2i, 2i + 1,
  // 2i + 32 and 2i + 33 of a block: a row of a block has fewer levels where the largest sum of four such powers (see
  // kQuantisedExp) asks for it. 4: for rounding.
  bool AddsFour() const { return narrow && wide; }
};

// Logits are base 2: row_scale[r] * key_scale[key] * <query, key> + bias[key - bias_first].
struct QuantisedCall {
  QuantisedLayout layout;
  const std::byte* queries = nullptr;  // rows beyond `rows` may hold anything
  const float* row_scale = nullptr;
  int64_t rows = 0;
  const std::byte *keys = nullptr, *values = nullptr;  // the set's first blocks
  const float* key_scale = nullptr;                    // by slot; whole blocks
  const int32_t* key_offset = nullptr;                 // by slot: -128 times the sum of the key's bytes; not if wide
  const float* value_scale = nullptr;                  // [blocks][Width()]
  const float* bias = nullptr;                         // whole blocks from the one of `begin` on; may be null
  int64_t bias_first = 0;                              // its first slot
  int64_t begin = 0, end = 0;
  const int32_t *first = nullptr, *last = nullptr;  // as in TileCall
  float *max = nullptr, *mass = nullptr;            // as in TileCall
  MatView<float> sums;
  std::byte* scratch = nullptr;  // kQuantisedScratch bytes, 64-byte aligned
};

struct QuantisedKernels {
  std::string_view name;
  Target target;
  bool wide;  // the layout that `attend` takes (the portable form takes both)

  // x [n] as integers up to `most` in magnitude, rounded to the nearest: 8 bits, or 16 if wide. `out`
  // has room for n rounded up to 16 numbers; those beyond n are zeros. Returns their scale; 0 where all are zeros.
  float (*round_row)(const float* x, int64_t n, bool wide, int most, std::byte* out);
  // `keys` rows of v [keys, Width()] minus center [Width()] become a block of values; scale [Width()]: what their units
  // are worth in each channel.
  void (*pack_values)(const QuantisedLayout& layout, const float* v, const float* center, int64_t keys, float* scale,
                      std::byte* values);
  void (*attend)(const QuantisedCall& call);
};

inline constexpr size_t kQuantisedScratch = size_t{48} << 10;
// Smaller magnitudes are rounded to zeros: their inverse could overflow.
inline constexpr float kQuantisedSmallest = 1e-30f;

// Powers 2^x, x a logit less the largest of the row's block of keys, are computed in integers with 15 bits after the
// point: x in steps of 1/2048, what is below -16 as -16 and 0 as the next step. For the fraction f,
// 2^f = kQuantisedExp[0] (1 + kQuantisedExp[1] f + kQuantisedExp[2] f^2 + kQuantisedExp[3] f^3), minimax in relative
// error, 7.5e-5. Their sum is the mass; rounded to levels they are the weights of values.
inline constexpr float kQuantisedStep = 2048;
inline constexpr double kQuantisedExp[] = {.9999252185, .6958855776, .2260840630, .0780302873};

// Of a target; where it has none of its own, of the next one below.
const QuantisedKernels& QuantisedTiles();
const QuantisedKernels& QuantisedTiles(Target target);

}  // namespace croquis::simd
