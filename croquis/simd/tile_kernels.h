// Tiles of dense attention: a few query rows against packed keys and values, one streaming softmax. What every method
// that evaluates pairs is made of; which pairs, and with which weights, is the caller's business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/view.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/target.h"

namespace croquis::simd {

// What keys, values and queries are rounded to before they are multiplied; sums are f32.
enum class TileType : uint8_t { kF32, kBf16 };

inline constexpr int64_t kTileKeys = 64;  // keys of a packed block
inline constexpr int64_t kTileRows = 64;  // query rows of a tile, at most

// How a block of 64 keys and its values lie in memory; the same for every instruction set.
//   keys, f32:  [dim][64]                      values, f32:  [64][padded value_dim]
//   keys, bf16: [padded dim / 2][64][2]        values, bf16: [32][padded value_dim][2]: rows 2p and 2p + 1 interleaved
// Padding, and slots without a key, hold zeros.
struct TileLayout {
  TileType type = TileType::kF32;
  int64_t dim = 0, value_dim = 0;

  int64_t PaddedDim() const { return type == TileType::kBf16 ? (dim + 31) / 32 * 32 : dim; }
  int64_t PaddedValueDim() const { return (value_dim + 15) / 16 * 16; }
  size_t NumberBytes() const { return type == TileType::kBf16 ? 2 : 4; }
  size_t KeyBlockBytes() const { return size_t(kTileKeys * PaddedDim()) * NumberBytes(); }
  size_t ValueBlockBytes() const { return size_t(kTileKeys * PaddedValueDim()) * NumberBytes(); }
  // A tile of queries, [kTileRows][PaddedDim()] of the type.
  size_t QueryBytes() const { return size_t(kTileRows * PaddedDim()) * NumberBytes(); }
};

// Keys that rows of a tile take in.
struct TileRange {
  const std::byte *keys = nullptr, *values = nullptr;  // the set's first blocks
  int64_t begin = 0, end = 0;                          // keys of the set
  // Rows of the tile that take them in, as far as there are so many; row_begin a multiple of 16.
  int64_t row_begin = 0, row_end = kTileRows;
  // Row r sees keys [max(begin, first[r]), min(end, last[r])) (maybe none); null: all of begin .. end.
  const int32_t *first = nullptr, *last = nullptr;
  // Added to logits: bias[key] + row_factor[r] * key_factor[key]; indexed by the key's slot in the set; may be null
  // (the factors both or neither).
  const float *bias = nullptr, *row_factor = nullptr, *key_factor = nullptr;
};

// One call of TileKernels::attend: its own range of keys (maybe none), then `more` of them one after the other. All
// logits are base 2 here.
struct TileCall : TileRange {
  TileLayout layout;
  const std::byte* queries = nullptr;  // from pack_queries
  int64_t rows = 0;                    // at most kTileRows
  const TileRange* more = nullptr;
  int64_t more_ranges = 0;
  // Logits are scale * <q, k>, scale positive: where 16-bit queries must not be rounded twice they are packed unscaled.
  float scale = 1;
  // State, taken in and given back: a reference near the largest logit seen (kMasked: none seen yet), the mass relative
  // to it, and the weighted sums [kTileRows, PaddedValueDim()], relative to it too (rows beyond `rows` may be written).
  // Kernels let logits grow to 2^8 times the reference's weight before they move it.
  float *max = nullptr, *mass = nullptr;
  MatView<float> sums;
  std::byte* scratch = nullptr;  // scratch_bytes(layout), 64-byte aligned
};

// One call of TileKernels::add_products: sums[r] += weights[r] sum_i x_i row_i, x the r-th packed query and row_i the
// rows of a [dim, value_dim] matrix, which are packed like values: 64 a block, ceil(dim / 64) blocks.
struct TileProducts {
  TileLayout layout;
  const std::byte* queries = nullptr;
  int64_t rows = 0;
  const std::byte* matrix = nullptr;
  const float* weights = nullptr;
  MatView<float> sums;
  std::byte* scratch = nullptr;
};

struct TileKernels {
  std::string_view name;  // "avx512", "amx-bf16"
  Target target;

  // Rows index[0 .. n), n <= 64, of k [.., dim] and v [.., value_dim] into a block; index null: rows 0 .. n. Strides
  // are in numbers. v (and values) may be null.
  void (*pack_block)(const TileLayout& layout, RowType type, const std::byte* k, int64_t k_stride, const std::byte* v,
                     int64_t v_stride, const int32_t* index, int64_t n, std::byte* keys, std::byte* values);
  // Rows index[0 .. rows) of q, times factor; rows beyond are zero.
  void (*pack_queries)(const TileLayout& layout, RowType type, const std::byte* q, int64_t stride, const int32_t* index,
                       int64_t rows, float factor, std::byte* queries);
  void (*attend)(const TileCall& call);
  void (*add_products)(const TileProducts& call);
  size_t (*scratch_bytes)(const TileLayout& layout);
};

// The kernels of a target for a type; where the target has none of its own, those of the next one below.
const TileKernels& Tiles(TileType type);
const TileKernels& Tiles(TileType type, Target target);

}  // namespace croquis::simd
