// Split products on AMX, a page at a time. Scores come out as [tokens][query rows]: keys are A, which leaves them in
// the order they are stored in, and queries, prepared once, are B. A tile of 16 x 16 sums is turned around when it is
// stored, less work than turning the keys.
#include <immintrin.h>

#include "croquis/simd/split_internal.h"
#include "croquis/simd/split_parts_amx.h"

namespace croquis::simd {
namespace amx {
namespace {

// All blocks of `a_tiles` x `b_tiles`; use(a tile, b tile, sums [16][16]).
template <class Products, bool kPageIsA, class Use>
inline void AllBlocks(const std::byte* a, int64_t a_tiles, const std::byte* b, int64_t b_tiles, int64_t steps,
                      const std::byte* next, size_t next_bytes, const Use& use) {
  Ahead ahead(next, next_bytes, Up(a_tiles, 2) * Up(b_tiles, 2) * steps * kBesides<Products>);
  alignas(64) float c[4 * 256];
  for (int64_t j = 0; j < b_tiles; j += 2)
    for (int64_t i = 0; i < a_tiles; i += 2) {
      const bool two_a = i + 1 < a_tiles, two_b = j + 1 < b_tiles;
      BlockAt<Products, kPageIsA>(a, i, two_a, b, j, two_b, steps, c, 512, 256, [&] { ahead.Step(); });
      use(i, j, c);
      if (two_b) use(i, j + 1, c + 256);
      if (two_a) use(i + 1, j, c + 512);
      if (two_a && two_b) use(i + 1, j + 1, c + 768);
    }
}

// ---- the interface ----

size_t QueryBytes(int64_t rows, int64_t dim) {
  return size_t(Up(rows, kRowTile) * Up(dim, kInner) * kQueryParts * kTile);
}

// Tiles of keys; or of values, then weights [tiles of rows][4 steps of tokens][3].
size_t ScratchBytes(int64_t rows, int64_t dim) {
  const size_t weights = size_t(Up(rows, kRowTile) * (kTokens / kInner) * kQueryParts * kTile);
  const size_t keys = KeyTilesBytes(dim), values = ValueTilesBytes(dim) + weights;
  return keys > values ? keys : values;
}

void Prepare(MatView<const float> q, std::byte* query) {
  const int64_t steps = Up(q.cols, kInner);
  for (int64_t tile = 0; tile < Up(q.rows, kRowTile); ++tile)
    for (int64_t s = 0; s < steps; ++s) {
      __m512 part[kQueryParts][16];
      for (int64_t n = 0; n < kRowTile; ++n) {
        const int64_t row = tile * kRowTile + n, left = row < q.rows ? q.cols - s * kInner : 0;
        const float* x = q.data + Min(row, q.rows - 1) * q.stride + s * kInner;
        __m512 a = _mm512_maskz_loadu_ps(First(left), x), b = _mm512_maskz_loadu_ps(First(left - 16), x + 16);
        for (auto& p : part) p[n] = _mm512_castsi512_ps(TakePairs<true>(a, b));
      }
      for (int p = 0; p < kQueryParts; ++p) {
        VectorAvx512::Transpose(part[p], part[p]);
        std::byte* to = query + ((tile * steps + s) * kQueryParts + p) * kTile;
        for (int j = 0; j < 16; ++j) _mm512_store_ps(to + j * 64, part[p][j]);
      }
    }
}

template <class K>
void ScorePage(const std::byte* k, const std::byte* query, int64_t rows, int64_t dim, const std::byte* next,
               size_t next_bytes, float* logits, std::byte* scratch) {
  const int64_t steps = Up(dim, kInner);
  Packed packed;
  PackKeys<K>(k, dim, packed, KeyPieces(dim), scratch);
  const Tiles tiles(kShape);
  AllBlocks<Pairs<K::kParts>, true>(scratch, kTokens / 16, query, Up(rows, kRowTile), steps, next, next_bytes,
                                    [&](int64_t token_tile, int64_t row_tile, const float* c) {
                                      __m512 x[16];
#pragma GCC unroll 16
                                      for (int i = 0; i < 16; ++i) x[i] = _mm512_load_ps(c + 16 * i);
                                      VectorAvx512::Transpose(x, x);
                                      const int64_t n = Min(16, rows - row_tile * 16);
                                      float* to = logits + row_tile * 16 * kTokens + token_tile * 16;
                                      for (int i = 0; i < 16; ++i)
                                        if (i < n) _mm512_storeu_ps(to + i * kTokens, x[i]);
                                    });
}

template <class K>
void AccumulatePage(const std::byte* v, const float* p, const float* p_scale, const std::byte* next, size_t next_bytes,
                    MatView<float> acc, std::byte* scratch) {
  constexpr int64_t kSteps = kTokens / kInner;
  const int64_t dim = acc.cols, dim_tiles = Up(dim, 16), row_tiles = Up(acc.rows, kRowTile);
  Packed packed;
  PackValues<K>(v, dim, packed, ValuePieces(dim), scratch);
  std::byte* const weights = scratch + dim_tiles * kSteps * K::kParts * kTile;
  for (int64_t r = 0; r < row_tiles * kRowTile; ++r)
    for (int64_t s = 0; s < kSteps; ++s) {
      std::byte* to = weights + ((r / 16 * kSteps + s) * kQueryParts) * kTile + r % 16 * 64;
      __m512 a = _mm512_setzero_ps(), b = a;
      if (r < acc.rows)
        a = _mm512_loadu_ps(p + r * kTokens + s * kInner), b = _mm512_loadu_ps(p + r * kTokens + s * kInner + 16);
#pragma GCC unroll 3
      for (int part = 0; part < kQueryParts; ++part) _mm512_store_si512(to + part * kTile, TakePairs(a, b));
    }
  const Tiles tiles(kShape);
  AllBlocks<Pairs<K::kParts>, false>(weights, row_tiles, scratch, dim_tiles, kSteps, next, next_bytes,
                                     [&](int64_t row_tile, int64_t dim_tile, const float* c) {
                                       const __mmask16 mask = First(dim - dim_tile * 16);
                                       const int64_t n = Min(16, acc.rows - row_tile * 16);
                                       for (int64_t i = 0; i < n; ++i) {
                                         const int64_t r = row_tile * 16 + i;
                                         float* to = acc.data + r * acc.stride + dim_tile * 16;
                                         const __m512 sum =
                                             _mm512_fmadd_ps(_mm512_load_ps(c + 16 * i), _mm512_set1_ps(p_scale[r]),
                                                             _mm512_maskz_loadu_ps(mask, to));
                                         _mm512_mask_storeu_ps(to, mask, sum);
                                       }
                                     });
}

void Score(RowType type, const std::byte* k, const std::byte* query, int64_t rows, int64_t dim, const std::byte* next,
           size_t next_bytes, float* logits, std::byte* scratch) {
  switch (type) {
    case RowType::kF32:
      return ScorePage<F32Row>(k, query, rows, dim, next, next_bytes, logits, scratch);
    case RowType::kF16:
      return ScorePage<F16Row>(k, query, rows, dim, next, next_bytes, logits, scratch);
    case RowType::kBf16:
      return ScorePage<Bf16Row>(k, query, rows, dim, next, next_bytes, logits, scratch);
  }
}

void Accumulate(RowType type, const std::byte* v, const float* p, const float* p_scale, const std::byte* next,
                size_t next_bytes, MatView<float> acc, std::byte* scratch) {
  switch (type) {
    case RowType::kF32:
      return AccumulatePage<F32Row>(v, p, p_scale, next, next_bytes, acc, scratch);
    case RowType::kF16:
      return AccumulatePage<F16Row>(v, p, p_scale, next, next_bytes, acc, scratch);
    case RowType::kBf16:
      return AccumulatePage<Bf16Row>(v, p, p_scale, next, next_bytes, acc, scratch);
  }
}

}  // namespace
}  // namespace amx

const SplitKernels& SplitAmx() {
  static constexpr SplitKernels kKernels = {"amx-bf16",      16,         amx::QueryBytes, amx::ScratchBytes,
                                            amx::Prepare,    amx::Score, amx::Accumulate, amx::SplitAttendBytes,
                                            amx::SplitAttend};
  return kKernels;
}

}  // namespace croquis::simd
