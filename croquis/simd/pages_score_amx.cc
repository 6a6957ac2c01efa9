// Scores by AMX int8 tiles. Codes are expanded to bytes a block of 16 tokens ahead of the tile products that use them;
// further groups of query rows find the page expanded.
#include "croquis/simd/pages_amx.h"
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/tiles_amx.h"

namespace croquis::simd::amx {
namespace {

using avx512::LevelOf;
using avx512::PlaneWeight;

struct ScoreTile {
  const uint8_t* codes;  // of the plane; or its levels
  const int8_t* level;
  uint8_t* x;          // room for its levels, expanded
  bool all_kept;       // of these; else blocks take the place of the fourth before
  const std::byte* a;  // A tiles of the group
  const uint16_t* scales;
  const float* s;
  float plane_weight;
  bool add;
  int rows, dim, runs;
  float* logits;
};

// Logits of the sixteen tokens of block tb for every row, from sums that begin at c.
template <bool kFine, int kRows>
[[gnu::always_inline]] inline void Finish(const int32_t (*c)[16], int tb, int rows, const uint16_t* scales,
                                          const float* s, bool add, float* logits) {
  const __m512 scale = LoadHalf(scales + tb * 16);
  float* to = logits + tb * 16;
  CROQUIS_UNROLL for (int g = 0; g < kRows; ++g, to += kTokens) {
    if (g >= rows) break;
    const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(Combine<kFine>(c, g, kRows)), scale);
    const __m512 v = _mm512_mul_ps(sum, _mm512_set1_ps(s[g]));
    _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), v) : v);
  }
}

// C += A * the sixteen tokens whose levels are at b. Two steps' A tiles, first and first + 1, stay loaded.
template <int C, int kFirst>
[[gnu::always_inline]] inline void ScoreBlock(const std::byte* a, int steps, const uint8_t* b, bool load) {
  for (int k = 0; k < steps; k += 2, a += 2 * kTile, b += 2 * kTile) {
    if (load || steps > 2) LoadTile<kFirst>(a, 64);
    LoadTile<6>(b, 64);
    MultiplyTiles<C, kFirst, 6>(true);
    if (k + 1 == steps) break;
    if (load || steps > 2) LoadTile<kFirst + 1>(a + kTile, 64);
    LoadTile<7>(b + kTile, 64);
    MultiplyTiles<C, kFirst + 1, 7>(true);
  }
}

// One scale a token. While the tiles multiply block tb, block tb + 2 is expanded, sums of some blocks before leave
// their tile and still earlier ones become logits: what is stored is never read right after. kDim: the dim where known,
// or 0. What the loops need of t is copied: every tile instruction makes the compiler read memory again.
template <int F, bool kFine, int kDim, int kHeight>
void ScoreOneRun(const ScoreTile& t, Ahead& to_come) {
  constexpr int kShare = Groups::Share(kHeight), kRows = kFine ? kHeight / 2 : kHeight;
  constexpr int kAhead = BlocksAhead(kFine);
  alignas(64) Sums c[4 / kShare];
  alignas(64) float s[16];
  Ahead ahead = to_come;
  const int dim = kDim > 0 ? kDim : t.dim, atoms = dim / 32, steps = (dim + 63) / 64, rows = t.rows;
  const int mask = F == kExpanded || t.all_kept ? ~0 : 3;
  const uint8_t *const codes = t.codes, *const x = F == kExpanded ? t.codes : t.x;
  const std::byte* const a = t.a;
  uint8_t* const out = t.x;
  float* const logits = t.logits;
  const uint16_t* const scales = t.scales;
  const bool add = t.add;
  constexpr int kForm = F == kExpanded ? 8 : F;
  const auto tables = MakeTables<kForm>(t.level, false);
  for (int g = 0; g < rows; ++g) s[g] = t.s[g] * t.plane_weight;
  // Where the levels of a block are.
  const auto block = [&](int tb) __attribute__((always_inline)) { return (tb & mask) * 16 * dim; };
  // Lines are prefetched evenly over the blocks: with the first ones at once, long pages are a tenth slower.
  const auto expand = [&](int tb, bool prefetch) __attribute__((always_inline)) {
    for (int i = 0; i < atoms; ++i) {
      if (prefetch) ahead.Step();
      if (F != kExpanded && tb < 8)
        ExpandAtom<kForm>(codes + (tb * atoms + i) * (64 * BitsOf(F)), tables, out + block(tb) + i * 512);
    }
  };
  const auto finish = [&](int tb, const int32_t(*sums)[16]) __attribute__((always_inline)) {
    Finish<kFine, kRows>(sums, tb, rows, scales, s, add, logits);
  };
  expand(0, false);
  if (kAhead == 2) expand(1, false);
  if constexpr (kShare == 1) {
    for (int half = 0; half < 8; half += 4) {
      Unroll<4>([&](auto index) __attribute__((always_inline)) {
        constexpr int i = index.value;
        const int tb = half + i;
        expand(tb + kAhead, true);
        ZeroTile<i>();
        ScoreBlock<i, 4>(a, steps, x + block(tb), i == 0 && half == 0);
        if (i >= 2 || half > 0) StoreTile<(i + 2) % 4>(c[(i + 2) % 4]);
        if (i >= 3 || half > 0) finish(tb - 3, c[(i + 1) % 4]);
      });
    }
    StoreTile<2>(c[2]);
    StoreTile<3>(c[3]);
    finish(5, c[1]);
    finish(6, c[2]);
    finish(7, c[3]);
  } else {
    const auto finish_pair = [&](int pair) __attribute__((always_inline)) {
      finish(2 * pair, c[pair % 2]);
      finish(2 * pair + 1, c[pair % 2] + kHeight);
    };
    Unroll<4>([&](auto index) __attribute__((always_inline)) {
      constexpr int i = index.value, C = i % 2;
      expand(2 * i + kAhead, true);
      ZeroTile<C>();
      ScoreBlock<C, 2>(a, steps, x + block(2 * i), i == 0);
      if constexpr (i > 0) StoreTile<1 - C>(c[1 - C]);
      expand(2 * i + 1 + kAhead, true);
      ScoreBlock<C, 4>(a + size_t(steps) * kTile, steps, x + block(2 * i + 1), i == 0);
      if constexpr (i > 1) finish_pair(i - 2);
    });
    StoreTile<1>(c[1]);
    finish_pair(2);
    finish_pair(3);
  }
}

// A scale for each 32 dims: products of 32 dims (half of an A tile's columns), summed in f32.
template <int F, bool kFine>
void ScoreRuns(const ScoreTile& t, Ahead& ahead) {
  constexpr int kLow = 8;  // rows of a group before their low bytes: groups take 16 rows here
  alignas(64) Sums c[2];
  const uint8_t* x = F == kExpanded ? t.codes : t.x;
  constexpr int kForm = F == kExpanded ? 8 : F;
  const auto tables = MakeTables<kForm>(t.level, false);
  const auto expand = [&](int atom) __attribute__((always_inline)) {
    ahead.Step();
    if constexpr (F != kExpanded) ExpandAtom<kForm>(t.codes + atom * (64 * BitsOf(F)), tables, t.x + atom * 512);
  };
  expand(0);
  for (int tb = 0; tb < 8; ++tb) {
    __m512 sum[16];
    for (__m512& v : sum) v = _mm512_setzero_ps();
    for (int r = 0; r < t.runs; ++r) {
      const int atom = tb * t.runs + r;
      if (atom + 1 < 8 * t.runs) expand(atom + 1);
      ZeroTile<0>();
      LoadTile<4>(t.a + size_t(r / 2) * kTile + r % 2 * 32, 64);
      LoadTile<6>(x + atom * 512, 64);
      MultiplyTiles<0, 4, 6>(true);
      StoreTile<0>(c[r % 2]);
      const __m512 scale = LoadHalf(t.scales + r * kTokens + tb * 16);
      for (int g = 0; g < t.rows; ++g) {
        sum[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(Combine<kFine>(c[r % 2], g, kLow)), scale, sum[g]);
      }
    }
    for (int g = 0; g < t.rows; ++g) {
      float* out = t.logits + g * kTokens + tb * 16;
      const __m512 v = _mm512_mul_ps(sum[g], _mm512_set1_ps(t.s[g] * t.plane_weight));
      _mm512_storeu_ps(out, t.add ? _mm512_add_ps(_mm512_loadu_ps(out), v) : v);
    }
  }
}

template <int F, bool kFine>
void ScoreForm(const ScoreTile& t, int height, Ahead& ahead) {
  if (t.runs > 1) return ScoreRuns<F, kFine>(t, ahead);
  WithSizes<kFine>(t.dim, height, [&](auto dim, auto h) { ScoreOneRun<F, kFine, dim.value, h.value>(t, ahead); });
}

}  // namespace

void ScoreTiles(const PageLayout& layout, const Levels& levels, bool fine, const std::byte* page,
                const std::byte* query, int64_t rows, const Upcoming& next, float* logits, std::byte* scratch) {
  const Groups groups(rows, fine, layout.runs == 1);
  const QueryAt at(layout, groups, rows);
  const auto* s = reinterpret_cast<const float*>(query + at.s);
  const auto* m = reinterpret_cast<const float*>(query + at.m);
  const Tiles tiles({groups.tile_rows(), layout.runs > 1 ? 32 : 64});
  Ahead ahead(next, layout.dim / 4);
  ScoreTile t;
  t.scales = reinterpret_cast<const uint16_t*>(page);
  t.dim = layout.dim;
  t.runs = layout.runs;
  t.all_kept = groups.count > 1;
  for (int64_t i = 0; i < groups.count; ++i) {
    const int64_t first = i * groups.rows;
    t.a = query + size_t(i) * at.group;
    t.s = s + first;
    t.rows = int(rows - first < groups.rows ? rows - first : groups.rows);
    t.logits = logits + first * kTokens;
    for (int plane = 0; plane < levels.planes; ++plane) {
      t.level = LevelOf(levels, plane);
      const PlaneCodes codes(layout, t.level, page, plane, i == 0, true, scratch);
      t.codes = codes.codes;
      t.x = codes.x;
      t.plane_weight = PlaneWeight(levels, plane);
      t.add = plane > 0;
      WithForm(codes.form, [&](auto form) {
        fine ? ScoreForm<form.value, true>(t, groups.height, ahead)
             : ScoreForm<form.value, false>(t, groups.height, ahead);
      });
      ahead = Ahead();
    }
    for (int g = 0; layout.mins && g < t.rows; ++g) {
      avx512::AddKeyMins(t.scales + layout.runs * kTokens, layout.runs, m + (first + g) * layout.runs, 1,
                         t.logits + g * kTokens);
    }
  }
}

}  // namespace croquis::simd::amx
