// Split products on AMX. An A tile is 16 rows of 32 bf16, a B tile 16 pairs of rows of 16 bf16; both lie in memory as
// they are loaded, one KiB each.
//
// Scores come out as [tokens][query rows]: keys are A, which leaves them in the order they are stored in, and queries,
// prepared once, are B. A tile of 16 x 16 sums is turned around when it is stored, less work than turning the keys.
#include <immintrin.h>

#include "croquis/simd/amx_state.h"
#include "croquis/simd/split_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace amx {
namespace {

constexpr int64_t kTile = 1024;
constexpr int64_t kTokens = 128;  // of a page
constexpr int64_t kRowTile = 16, kInner = 32;
constexpr int kQueryParts = 3;  // of queries and weights
constexpr TileShape kShape = {16, 64};

constexpr int64_t Up(int64_t n, int64_t to) { return (n + to - 1) / to; }
inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- parts ----

inline __m512 Top(__m512 x) {  // the upper eight bits of the significand
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0xffff0000))));
}

struct F32Row {
  static constexpr int kBytes = 4, kParts = 3;
  static __m512 Load(const std::byte* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
};
struct F16Row {
  static constexpr int kBytes = 2, kParts = 2;
  static __m512 Load(const std::byte* p, __mmask16 mask) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p)); }
};
struct Bf16Row {
  static constexpr int kBytes = 2, kParts = 1;
  static __m512 Load(const std::byte* p, __mmask16 mask) {
    return VectorAvx512::WidenBf16(_mm256_maskz_loadu_epi16(mask, p));
  }
};

inline __mmask16 First(int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1);
}

// Part p of 32 numbers a, b in order: one row of an A tile. What is left of a and b comes back in them.
inline __m512i TakeRow(__m512& a, __m512& b) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i row =
      _mm512_permutex2var_epi16(_mm512_castps_si512(a), _mm512_load_si512(kOdd), _mm512_castps_si512(b));
  a = _mm512_sub_ps(a, Top(a)), b = _mm512_sub_ps(b, Top(b));
  return row;
}

// Part p of 16 pairs a[i], b[i]: one row of a B tile.
inline __m512i TakePairs(__m512& a, __m512& b) {
  const __m512 top_b = Top(b);
  const __m512i row = _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(top_b));
  a = _mm512_sub_ps(a, Top(a)), b = _mm512_sub_ps(b, top_b);
  return row;
}

// ---- products ----

// Which part of the page's numbers meets which of the others: those above 2^-24 of the largest, small ones first. Those
// of one part of the page follow each other, so that its tiles are loaded once.
struct Pair {
  int page, other;
};
template <int kParts>
struct Pairs;
template <>
struct Pairs<3> {
  static constexpr Pair kAll[] = {{2, 0}, {1, 1}, {1, 0}, {0, 2}, {0, 1}, {0, 0}};
};
template <>
struct Pairs<2> {
  static constexpr Pair kAll[] = {{1, 1}, {1, 0}, {0, 2}, {0, 1}, {0, 0}};
};
template <>
struct Pairs<1> {
  static constexpr Pair kAll[] = {{0, 2}, {0, 1}, {0, 0}};
};

// Where the tiles of one row of A tiles, or one column of B tiles, lie: [inner step][part].
struct Strip {
  const std::byte* at;
  int parts;
  const std::byte* Tile(int64_t step, int part) const { return at + (step * parts + part) * kTile; }
};

// Asks for what is read next, a few lines at a step: all at once they would stall.
class Ahead {
 public:
  Ahead(const std::byte* next, size_t bytes, int64_t times)
      : at_(next), end_(next + bytes), lines_(Up(Up(int64_t(bytes), 64), times)) {}
  void Step() {
    for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += 64)
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
  }

 private:
  const std::byte *at_, *end_;
  int64_t lines_;
};

// Sums 2 x 2 tiles (A strips a0, a1; B strips b0, b1) into c [2][2][16][16]; kA, kB: 1 leaves out the second of a pair.
// page_is_a: whether the page's numbers are A.
template <int kParts, bool kPageIsA, int kA, int kB>
inline void Block(const Strip (&a)[2], const Strip (&b)[2], int64_t steps, Ahead& ahead, float* c) {
  ZeroTile<0>();
  if (kB > 1) ZeroTile<1>();
  if (kA > 1) ZeroTile<2>();
  if (kA > 1 && kB > 1) ZeroTile<3>();
  // All products of a step while its tiles are in the first cache.
  for (int64_t s = 0; s < steps; ++s) {
    ahead.Step();
    int held = -1;  // part of the page that is loaded
    for (const Pair pair : Pairs<kParts>::kAll) {
      const int pa = kPageIsA ? pair.page : pair.other, pb = kPageIsA ? pair.other : pair.page;
      if (!kPageIsA || pair.page != held) {
        LoadTile<4>(a[0].Tile(s, pa), 64);
        if constexpr (kA > 1) LoadTile<5>(a[1].Tile(s, pa), 64);
      }
      if (kPageIsA || pair.page != held) {
        LoadTile<6>(b[0].Tile(s, pb), 64);
        if constexpr (kB > 1) LoadTile<7>(b[1].Tile(s, pb), 64);
      }
      held = pair.page;
      MultiplyBf16<0, 4, 6>();
      if constexpr (kB > 1) MultiplyBf16<1, 4, 7>();
      if constexpr (kA > 1) MultiplyBf16<2, 5, 6>();
      if constexpr (kA > 1 && kB > 1) MultiplyBf16<3, 5, 7>();
    }
  }
  StoreTile<0>(c);
  if (kB > 1) StoreTile<1>(c + 256);
  if (kA > 1) StoreTile<2>(c + 512);
  if (kA > 1 && kB > 1) StoreTile<3>(c + 768);
}

// All blocks of `a_tiles` x `b_tiles`; use(a tile, b tile, sums [16][16]).
template <int kParts, bool kPageIsA, class Use>
inline void AllBlocks(const std::byte* a, int64_t a_tiles, const std::byte* b, int64_t b_tiles, int64_t steps,
                      const std::byte* next, size_t next_bytes, const Use& use) {
  Ahead ahead(next, next_bytes, Up(a_tiles, 2) * Up(b_tiles, 2) * steps);
  alignas(64) float c[4 * 256];
  constexpr int kAParts = kPageIsA ? kParts : kQueryParts, kBParts = kPageIsA ? kQueryParts : kParts;
  const int64_t a_strip = steps * kAParts * kTile, b_strip = steps * kBParts * kTile;
  for (int64_t j = 0; j < b_tiles; j += 2)
    for (int64_t i = 0; i < a_tiles; i += 2) {
      const bool two_a = i + 1 < a_tiles, two_b = j + 1 < b_tiles;
      const Strip as[2] = {{a + i * a_strip, kAParts}, {a + (i + 1) * a_strip, kAParts}};
      const Strip bs[2] = {{b + j * b_strip, kBParts}, {b + (j + 1) * b_strip, kBParts}};
      if (two_a && two_b)
        Block<kParts, kPageIsA, 2, 2>(as, bs, steps, ahead, c);
      else if (two_a)
        Block<kParts, kPageIsA, 2, 1>(as, bs, steps, ahead, c);
      else if (two_b)
        Block<kParts, kPageIsA, 1, 2>(as, bs, steps, ahead, c);
      else
        Block<kParts, kPageIsA, 1, 1>(as, bs, steps, ahead, c);
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

// Keys [8 tiles of tokens][steps of dims][parts]; or values [tiles of dims][4 steps of tokens][parts], then weights
// [tiles of rows][4 steps of tokens][3].
size_t ScratchBytes(int64_t rows, int64_t dim) {
  const int64_t keys = kTokens / kRowTile * Up(dim, kInner) * 3;
  const int64_t values = Up(dim, 16) * (kTokens / kInner) * 3, weights = Up(rows, kRowTile) * (kTokens / kInner) * 3;
  return size_t((keys > values + weights ? keys : values + weights) * kTile);
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
        for (auto& p : part) p[n] = _mm512_castsi512_ps(TakeRow(a, b));
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
  for (int64_t t = 0; t < kTokens; ++t) {
    const std::byte* x = k + t * dim * K::kBytes;
    for (int64_t s = 0; s < steps; ++s, x += kInner * K::kBytes) {
      const int64_t left = dim - s * kInner;
      __m512 a = K::Load(x, First(left)), b = K::Load(x + 16 * K::kBytes, First(left - 16));
      std::byte* to = scratch + ((t / 16 * steps + s) * K::kParts) * kTile + t % 16 * 64;
#pragma GCC unroll 3
      for (int p = 0; p < K::kParts; ++p) _mm512_store_si512(to + p * kTile, TakeRow(a, b));
    }
  }
  const Tiles tiles(kShape);
  AllBlocks<K::kParts, true>(scratch, kTokens / 16, query, Up(rows, kRowTile), steps, next, next_bytes,
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
  for (int64_t t = 0; t < kTokens; t += 2) {
    const std::byte* x = v + t * dim * K::kBytes;
    for (int64_t d = 0; d < dim_tiles; ++d) {
      const __mmask16 mask = First(dim - d * 16);
      __m512 a = K::Load(x + d * 16 * K::kBytes, mask), b = K::Load(x + (dim + d * 16) * K::kBytes, mask);
      std::byte* to = scratch + ((d * kSteps + t / kInner) * K::kParts) * kTile + t % kInner / 2 * 64;
#pragma GCC unroll 3
      for (int part = 0; part < K::kParts; ++part) _mm512_store_si512(to + part * kTile, TakePairs(a, b));
    }
  }
  std::byte* const weights = scratch + dim_tiles * kSteps * K::kParts * kTile;
  for (int64_t r = 0; r < row_tiles * kRowTile; ++r)
    for (int64_t s = 0; s < kSteps; ++s) {
      std::byte* to = weights + ((r / 16 * kSteps + s) * kQueryParts) * kTile + r % 16 * 64;
      __m512 a = _mm512_setzero_ps(), b = a;
      if (r < acc.rows)
        a = _mm512_loadu_ps(p + r * kTokens + s * kInner), b = _mm512_loadu_ps(p + r * kTokens + s * kInner + 16);
#pragma GCC unroll 3
      for (int part = 0; part < kQueryParts; ++part) _mm512_store_si512(to + part * kTile, TakeRow(a, b));
    }
  const Tiles tiles(kShape);
  AllBlocks<K::kParts, false>(weights, row_tiles, scratch, dim_tiles, kSteps, next, next_bytes,
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
  static constexpr SplitKernels kKernels = {"amx-bf16",   16,         amx::QueryBytes, amx::ScratchBytes,
                                            amx::Prepare, amx::Score, amx::Accumulate};
  return kKernels;
}

}  // namespace croquis::simd
