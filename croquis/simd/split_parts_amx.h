// What split products on AMX are made of: numbers cut into bf16 parts, and sums of products of parts. For files with
// AMX flags only, each of which gets machine code of its own.
//
// An A tile is 16 rows of 32 bf16, a B tile 16 pairs of rows of 16 bf16; both lie in memory as they are loaded, one KiB
// each. The 32 numbers that are summed over may stand in any order, the same in both: number i is paired with number
// 16 + i, which needs no instruction across a vector (putting them in order took two cycles a row and part).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "croquis/simd/amx_state.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd::amx {
namespace {

constexpr int64_t kTile = 1024;
constexpr int64_t kTokens = 128;  // of a page
constexpr int64_t kRowTile = 16, kInner = 32;
constexpr int kQueryParts = 3;  // of queries and weights
constexpr TileShape kShape = {16, 64};

constexpr int64_t Up(int64_t n, int64_t to) { return (n + to - 1) / to; }
inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- parts ----

// The upper eight bits of the significand, cut off or rounded. Three parts make up an f32 either way; two are within
// 2^-17 of it when they are rounded.
template <bool kRound = false>
inline __m512 Top(__m512 x) {
  __m512i bits = _mm512_castps_si512(x);
  if constexpr (kRound) bits = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000))));
}

struct F32Row {
  static constexpr int kBytes = 4, kParts = 3;
  static constexpr bool kRound = false;
  static __m512 Load(const std::byte* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
};
struct F16Row {
  static constexpr int kBytes = 2, kParts = 2;
  static constexpr bool kRound = true;  // halves what FewPairs leaves out
  static __m512 Load(const std::byte* p, __mmask16 mask) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p)); }
};
struct Bf16Row {
  static constexpr int kBytes = 2, kParts = 1;
  static constexpr bool kRound = false;
  static __m512 Load(const std::byte* p, __mmask16 mask) {
    return VectorAvx512::WidenBf16(_mm256_maskz_loadu_epi16(mask, p));
  }
};

constexpr __mmask16 kAll = 0xffff;
inline __mmask16 First(int64_t n) { return n >= 16 ? kAll : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1); }

// A part of 16 pairs a[i], b[i]: a row of a tile. What is left of a and b comes back in them.
template <bool kRound = false>
inline __m512i TakePairs(__m512& a, __m512& b) {
  const __m512 top_a = Top<kRound>(a), top_b = Top<kRound>(b);
  const __m512i row =
      _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(kRound ? top_a : a), 16), _mm512_castps_si512(top_b));
  a = _mm512_sub_ps(a, top_a), b = _mm512_sub_ps(b, top_b);
  return row;
}

// Asks for what is read next, a few lines at a step: all at once they would stall. One line in four; the second cache
// fetches those between by itself. Asking for all of them kept the first cache's line buffers full, and tiles that come
// from the second cache had to wait: 15.8 us a product of 128 rows beside 64 KiB, against 11.5 us (10.5 without).
class Ahead {
 public:
  static constexpr int64_t kStep = 128;
  Ahead(const std::byte* next, size_t bytes, int64_t times)
      : at_(next), end_(next + bytes), lines_(Up(Up(int64_t(bytes), kStep), times)) {}
  void Step() {
    for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += kStep)
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
  }

 private:
  const std::byte *at_, *end_;
  int64_t lines_;
};

// ---- products ----

// Which part of the page's numbers meets which of the others: those above 2^-24 of the largest, small ones first as far
// as it goes. Those of one part of the page follow each other, and where it can be those of one part of the others, so
// that tiles are loaded less often: 14 instead of 18 a step of six products saved 5 % of a batch.
struct Pair {
  int page, other;
};
template <int kPageParts>
struct Pairs;
template <>
struct Pairs<3> {
  static constexpr int kParts = 3;
  static constexpr Pair kAll[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 2}, {0, 0}};
};
template <>
struct Pairs<2> {
  static constexpr int kParts = 2;
  static constexpr Pair kAll[] = {{1, 1}, {1, 0}, {0, 2}, {0, 1}, {0, 0}};
};
template <>
struct Pairs<1> {
  static constexpr int kParts = 1;
  static constexpr Pair kAll[] = {{0, 2}, {0, 1}, {0, 0}};
};
// Those above 2^-17 or so, a fiftieth of what an f16 is rounded by: three products instead of five.
template <int kPageParts>
struct FewPairs : Pairs<kPageParts> {};
template <>
struct FewPairs<2> {
  static constexpr int kParts = 2;
  static constexpr Pair kAll[] = {{1, 0}, {0, 0}, {0, 1}};
};
template <>
struct FewPairs<1> {
  static constexpr int kParts = 1;
  static constexpr Pair kAll[] = {{0, 1}, {0, 0}};
};

template <class Products>
constexpr int64_t kBesides = int64_t(sizeof(Products::kAll) / sizeof(Pair));

// Where the tiles of one row of A tiles, or one column of B tiles, lie: [inner step][part].
struct Strip {
  const std::byte* at;
  int parts;
  const std::byte* Tile(int64_t step, int part) const { return at + (step * parts + part) * kTile; }
};

// Sums 2 x 2 tiles: A strip i times B strip j into the 16 x 16 numbers at c + i * a_gap + j * b_gap; kA, kB: 1 leaves
// out the second of a pair. kPageIsA: whether the page's numbers are A. beside() is called kBesides times a step:
// vectors work while tiles do, but only what stands within some fifty instructions of a product is begun before it is
// done. (48 FMAs beside every four products: 9.8 us where products alone take 9.5 and FMAs 4.0; 288 beside every
// 24: 13.4.)
template <class Products, bool kPageIsA, int kA, int kB, class Beside>
inline void Block(const Strip (&a)[2], const Strip (&b)[2], int64_t steps, float* c, int64_t a_gap, int64_t b_gap,
                  Beside&& beside) {
  ZeroTile<0>();
  if constexpr (kB > 1) ZeroTile<1>();
  if constexpr (kA > 1) ZeroTile<2>();
  if constexpr (kA > 1 && kB > 1) ZeroTile<3>();
  // All products of a step while its tiles are in the first cache.
  for (int64_t s = 0; s < steps; ++s) {
    int held = -1, held_other = -1;  // parts that are loaded
#pragma GCC unroll 6
    for (const Pair pair : Products::kAll) {
      const int pa = kPageIsA ? pair.page : pair.other, pb = kPageIsA ? pair.other : pair.page;
      if (kPageIsA ? pair.page != held : pair.other != held_other) {
        LoadTile<4>(a[0].Tile(s, pa), 64);
        if constexpr (kA > 1) LoadTile<5>(a[1].Tile(s, pa), 64);
      }
      if (kPageIsA ? pair.other != held_other : pair.page != held) {
        LoadTile<6>(b[0].Tile(s, pb), 64);
        if constexpr (kB > 1) LoadTile<7>(b[1].Tile(s, pb), 64);
      }
      held = pair.page, held_other = pair.other;
      MultiplyBf16<0, 4, 6>();
      if constexpr (kB > 1) MultiplyBf16<1, 4, 7>();
      if constexpr (kA > 1) MultiplyBf16<2, 5, 6>();
      if constexpr (kA > 1 && kB > 1) MultiplyBf16<3, 5, 7>();
      beside();
    }
  }
  StoreTile<0>(c);
  if constexpr (kB > 1) StoreTile<1>(c + b_gap);
  if constexpr (kA > 1) StoreTile<2>(c + a_gap);
  if constexpr (kA > 1 && kB > 1) StoreTile<3>(c + a_gap + b_gap);
}

// Strips i, i + 1 of a and j, j + 1 of b, all of them `steps` steps long; two_a, two_b: whether there are the second.
template <class Products, bool kPageIsA, class Beside>
inline void BlockAt(const std::byte* a, int64_t i, bool two_a, const std::byte* b, int64_t j, bool two_b, int64_t steps,
                    float* c, int64_t a_gap, int64_t b_gap, Beside&& beside) {
  constexpr int kAParts = kPageIsA ? Products::kParts : kQueryParts,
                kBParts = kPageIsA ? kQueryParts : Products::kParts;
  const int64_t a_strip = steps * kAParts * kTile, b_strip = steps * kBParts * kTile;
  const Strip as[2] = {{a + i * a_strip, kAParts}, {a + (i + 1) * a_strip, kAParts}};
  const Strip bs[2] = {{b + j * b_strip, kBParts}, {b + (j + 1) * b_strip, kBParts}};
  if (two_a && two_b)
    Block<Products, kPageIsA, 2, 2>(as, bs, steps, c, a_gap, b_gap, beside);
  else if (two_a)
    Block<Products, kPageIsA, 2, 1>(as, bs, steps, c, a_gap, b_gap, beside);
  else if (two_b)
    Block<Products, kPageIsA, 1, 2>(as, bs, steps, c, a_gap, b_gap, beside);
  else
    Block<Products, kPageIsA, 1, 1>(as, bs, steps, c, a_gap, b_gap, beside);
}

// ---- pages ----

inline size_t KeyTilesBytes(int64_t dim) { return size_t(kTokens / kRowTile * Up(dim, kInner) * 3 * kTile); }
inline size_t ValueTilesBytes(int64_t dim) { return size_t(Up(dim, 16) * (kTokens / kInner) * 3 * kTile); }

// How far a page is packed: `t` tokens whole, `n` rows of tiles of the next. (Two tokens at a time for values.) A piece
// is up to eight rows of tiles: more than there are instructions around them, fewer than hold up the products.
struct Packed {
  int64_t t = 0, n = 0;
};
constexpr int64_t kPieceRows = 8;

// The next `pieces` pieces, at most, of a page of keys to A tiles [8 tiles of tokens][steps of dims][parts]; a row is
// 32 numbers of a token.
inline int64_t KeyPieces(int64_t dim) { return kTokens * Up(Up(dim, kInner), kPieceRows); }
template <class K, bool kWhole>
inline void PackKeysOf(const std::byte* k, int64_t dim, Packed& at, int64_t pieces, std::byte* tiles) {
  const int64_t steps = Up(dim, kInner);
  for (; pieces > 0 && at.t < kTokens; --pieces) {
    const int64_t end = Min(at.n + kPieceRows, steps);
    const std::byte* x = k + (at.t * dim + at.n * kInner) * K::kBytes;
    std::byte* to = tiles + (at.t / 16 * steps + at.n) * K::kParts * kTile + at.t % 16 * 64;
    for (int64_t n = at.n; n < end; ++n, x += kInner * K::kBytes, to += K::kParts * kTile) {
      const int64_t left = dim - n * kInner;
      __m512 a = K::Load(x, kWhole ? kAll : First(left)),
             b = K::Load(x + 16 * K::kBytes, kWhole ? kAll : First(left - 16));
#pragma GCC unroll 3
      for (int p = 0; p < K::kParts; ++p) _mm512_store_si512(to + p * kTile, TakePairs<K::kRound>(a, b));
    }
    at.n = end;
    if (end == steps) at.n = 0, ++at.t;
  }
}
template <class K>
inline void PackKeys(const std::byte* k, int64_t dim, Packed& at, int64_t pieces, std::byte* tiles) {
  if (dim % kInner == 0)
    PackKeysOf<K, true>(k, dim, at, pieces, tiles);
  else
    PackKeysOf<K, false>(k, dim, at, pieces, tiles);
}

// The same of a page of values to B tiles [tiles of dims][4 steps of tokens][parts]; a row is 16 numbers of tokens t
// and t + 16, at.t counts both.
inline int64_t ValuePieces(int64_t dim) { return kTokens / 2 * Up(Up(dim, 16), kPieceRows); }
template <class K, bool kWhole>
inline void PackValuesOf(const std::byte* v, int64_t dim, Packed& at, int64_t pieces, std::byte* tiles) {
  constexpr int64_t kStep = K::kParts * kTile;
  const int64_t dim_tiles = Up(dim, 16);
  for (; pieces > 0 && at.t < kTokens; --pieces) {
    const int64_t step = at.t / kInner, pair = at.t % kInner / 2, end = Min(at.n + kPieceRows, dim_tiles);
    const std::byte* x = v + ((step * kInner + pair) * dim + at.n * 16) * K::kBytes;
    std::byte* to = tiles + (at.n * (kTokens / kInner) + step) * kStep + pair * 64;
    for (int64_t n = at.n; n < end; ++n, x += 16 * K::kBytes, to += kTokens / kInner * kStep) {
      const __mmask16 mask = kWhole ? kAll : First(dim - n * 16);
      __m512 a = K::Load(x, mask), b = K::Load(x + 16 * dim * K::kBytes, mask);
#pragma GCC unroll 3
      for (int part = 0; part < K::kParts; ++part) _mm512_store_si512(to + part * kTile, TakePairs<K::kRound>(a, b));
    }
    at.n = end;
    if (end == dim_tiles) at.n = 0, at.t += 2;
  }
}
template <class K>
inline void PackValues(const std::byte* v, int64_t dim, Packed& at, int64_t pieces, std::byte* tiles) {
  if (dim % 16 == 0)
    PackValuesOf<K, true>(v, dim, at, pieces, tiles);
  else
    PackValuesOf<K, false>(v, dim, at, pieces, tiles);
}

}  // namespace
}  // namespace croquis::simd::amx
