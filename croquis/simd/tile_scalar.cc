// The reference of the tile kernels, in portable code.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "croquis/base/dtype.h"
#include "croquis/simd/number_scalar.h"
#include "croquis/simd/tile_internal.h"

namespace croquis::simd {
namespace {

// A packed number, at `i` numbers from the beginning of its block.
void Put(TileType type, float x, int64_t i, std::byte* to) {
  if (type == TileType::kF32)
    reinterpret_cast<float*>(to)[i] = x;
  else
    reinterpret_cast<uint16_t*>(to)[i] = FloatToBf16(x);
}
float Get(TileType type, const std::byte* from, int64_t i) {
  return type == TileType::kF32 ? reinterpret_cast<const float*>(from)[i]
                                : Bf16ToFloat(reinterpret_cast<const uint16_t*>(from)[i]);
}

int64_t KeyAt(const TileLayout& l, int64_t key, int64_t i) {
  return l.type == TileType::kF32 ? i * kTileKeys + key : (i / 2 * kTileKeys + key) * 2 + i % 2;
}
int64_t ValueAt(const TileLayout& l, int64_t key, int64_t i) {
  const int64_t width = l.PaddedValueDim();
  return l.type == TileType::kF32 ? key * width + i : (key / 2 * width + i) * 2 + key % 2;
}

void PackBlock(const TileLayout& l, RowType type, const std::byte* k, int64_t k_stride, const std::byte* v,
               int64_t v_stride, const int32_t* index, int64_t n, std::byte* keys, std::byte* values) {
  const int64_t bytes = RowTypeBytes(type);
  std::memset(keys, 0, l.KeyBlockBytes());
  if (v != nullptr) std::memset(values, 0, l.ValueBlockBytes());
  for (int64_t t = 0; t < n; ++t) {
    const int64_t row = index != nullptr ? index[t] : t;
    for (int64_t i = 0; i < l.dim; ++i) Put(l.type, Number(type, k + row * k_stride * bytes, i), KeyAt(l, t, i), keys);
    if (v == nullptr) continue;
    for (int64_t i = 0; i < l.value_dim; ++i)
      Put(l.type, Number(type, v + row * v_stride * bytes, i), ValueAt(l, t, i), values);
  }
}

void PackQueries(const TileLayout& l, RowType type, const std::byte* q, int64_t stride, const int32_t* index,
                 int64_t rows, float factor, std::byte* queries) {
  std::memset(queries, 0, l.QueryBytes());
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* row = q + (index != nullptr ? index[r] : r) * stride * RowTypeBytes(type);
    for (int64_t i = 0; i < l.dim; ++i) Put(l.type, Number(type, row, i) * factor, r * l.PaddedDim() + i, queries);
  }
}

float Logit(const TileCall& c, const TileRange& range, int64_t r, int64_t key) {
  const TileLayout& l = c.layout;
  const std::byte* block = range.keys + size_t(key / kTileKeys) * l.KeyBlockBytes();
  float x = 0;
  for (int64_t i = 0; i < l.dim; ++i)
    x += Get(l.type, c.queries, r * l.PaddedDim() + i) * Get(l.type, block, KeyAt(l, key % kTileKeys, i));
  x *= c.scale;
  if (range.bias != nullptr) x += range.bias[key];
  if (range.row_factor != nullptr) x += range.row_factor[r] * range.key_factor[key];
  return x;
}

void AttendRange(const TileCall& c, const TileRange& range) {
  const TileLayout& l = c.layout;
  auto* const logits = reinterpret_cast<float*>(c.scratch);
  for (int64_t r = range.row_begin; r < std::min(c.rows, range.row_end); ++r) {
    const int64_t first = std::max<int64_t>(range.begin, range.first != nullptr ? range.first[r] : range.begin),
                  last = std::min<int64_t>(range.end, range.last != nullptr ? range.last[r] : range.end);
    for (int64_t block = first / kTileKeys * kTileKeys; block < last; block += kTileKeys) {
      const int64_t from = std::max(first, block), to = std::min(last, block + kTileKeys);
      float top = c.max[r];
      for (int64_t key = from; key < to; ++key) top = std::max(top, logits[key - block] = Logit(c, range, r, key));
      if (top <= kMasked) continue;
      const float keep = std::exp2(c.max[r] - top);
      c.max[r] = top;
      c.mass[r] *= keep;
      float* const sums = c.sums.Row(r);
      for (int64_t i = 0; i < l.value_dim; ++i) sums[i] *= keep;
      const std::byte* values = range.values + size_t(block / kTileKeys) * l.ValueBlockBytes();
      for (int64_t key = from; key < to; ++key) {
        const float p = std::exp2(logits[key - block] - top);
        c.mass[r] += p;
        for (int64_t i = 0; i < l.value_dim; ++i) sums[i] += p * Get(l.type, values, ValueAt(l, key - block, i));
      }
    }
  }
}

void Attend(const TileCall& c) {
  AttendRange(c, c);
  for (int64_t i = 0; i < c.more_ranges; ++i) AttendRange(c, c.more[i]);
}

void AddProducts(const TileProducts& c) {
  const TileLayout& l = c.layout;
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t i = 0; i < l.dim; ++i) {
      const float x = c.weights[r] * Get(l.type, c.queries, r * l.PaddedDim() + i);
      const std::byte* rows = c.matrix + size_t(i / kTileKeys) * l.ValueBlockBytes();
      for (int64_t j = 0; j < l.value_dim; ++j) c.sums.Row(r)[j] += x * Get(l.type, rows, ValueAt(l, i % kTileKeys, j));
    }
}

size_t ScratchBytes(const TileLayout&) { return kTileKeys * sizeof(float); }

}  // namespace

const TileKernels& TilesScalar(TileType) {
  static constexpr TileKernels kKernels = {"scalar", Target::kScalar, PackBlock,   PackQueries,
                                           Attend,   AddProducts,     ScratchBytes};
  return kKernels;
}

}  // namespace croquis::simd
