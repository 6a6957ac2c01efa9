// Weighted sums by AMX int8 tiles. As with scores, codes are expanded half a block (16 dims, 64 tokens at a time) ahead
// of the products.
#include "croquis/simd/pages_amx.h"
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/tiles_amx.h"

namespace croquis::simd::amx {
namespace {

using avx512::LevelOf;
using avx512::PlaneWeight;

// Quantised weights of `rows` rows for one run.
template <bool kFine, bool kSigned>
void MakeWeights(const float* p, const uint16_t* scales, int rows, const Groups& groups, Weights& w) {
  __m512 scale[8];
  CROQUIS_UNROLL for (int i = 0; i < 8; ++i) scale[i] = LoadHalf(scales + 16 * i);
  const auto put = [&](int row, __m512i first, __m512i second) {
    _mm512_store_si512(w.line[0][row], first);
    _mm512_store_si512(w.line[1][row], second);
  };
  const int top = groups.share == 2 ? groups.height : 0;  // the group's first row
  alignas(64) uint8_t hi[128], lo[128];
  for (int g = 0; g < rows; ++g) {
    int32_t total;
    w.unit[g] = avx512::QuantiseRow<kFine, kSigned>(p + g * kTokens, scale, hi, lo, &total);
    put(top + g, _mm512_load_si512(hi), _mm512_load_si512(hi + 64));
    if constexpr (kFine) put(top + groups.rows + g, _mm512_load_si512(lo), _mm512_load_si512(lo + 64));
  }
  // What lies in rows of the group that do not exist is never read out of the sums; what lies around it must be zero.
  for (int row = 0; row < top; ++row) {
    put(row, _mm512_setzero_si512(), _mm512_setzero_si512());
    put(top + groups.height + row, _mm512_setzero_si512(), _mm512_setzero_si512());
  }
}

struct SumTile {
  const uint8_t* codes;
  const int8_t* level;
  uint8_t* x;
  bool all_kept;           // expanded levels; else half blocks take the place of the fourth before
  const Weights* weights;  // [runs]
  bool is_signed;
  float step;
  const float* p_scale;
  int rows, dim, runs;
  float* acc;
  int64_t stride;
};

// C0 (dims 0-15 of the block) and C1 (dims 16-31) += the weights of half the tokens, A0 and A1, * their levels at b.
template <int C0, int C1, int A0, int A1>
[[gnu::always_inline]] inline void SumHalf(bool is_signed, const uint8_t* b) {
  LoadTile<6>(b, 128);
  MultiplyTiles<C0, A0, 6>(is_signed);
  LoadTile<7>(b + 64, 128);
  MultiplyTiles<C1, A1, 7>(is_signed);
}

// 32 dims at a time, each over both halves of the tokens; what the products give is read a block later. Shared, both
// halves of a block's dims are in one C tile, and A tiles are 2 and 3 (first half of the tokens), 4 and 5 (second);
// else they are 4 (first) and 5 (second).
template <int F, bool kFine, int kDim, int kHeight>
void SumBlocks(const SumTile& t, Ahead& to_come) {
  constexpr int kShare = Groups::Share(kHeight), kRows = kFine ? kHeight / 2 : kHeight;
  constexpr int kAhead = BlocksAhead(kFine);
  alignas(64) Sums c[4 / kShare];
  alignas(64) float s[16];
  Ahead ahead = to_come;
  const int blocks = (kDim > 0 ? kDim : t.dim) / 32, rows = t.rows;
  const int mask = F == kExpanded || t.all_kept ? ~0 : 3;
  const uint8_t *const codes = t.codes, *const x = F == kExpanded ? t.codes : t.x;
  uint8_t* const out = t.x;
  const Weights* const weights = t.weights;
  const bool runs = t.runs > 1, is_signed = t.is_signed;
  float* const acc = t.acc;
  const int64_t stride = t.stride;
  constexpr int kForm = F == kExpanded ? 8 : F;
  const auto tables = MakeTables<kForm>(t.level, false);
  const auto scale_of = [&](const Weights& w) {
    for (int g = 0; g < rows; ++g) s[g] = (w.unit[g] * t.step) * t.p_scale[g];
  };
  // Where the levels of a half block are.
  const auto half = [&](int half_block) __attribute__((always_inline)) { return (half_block & mask) * 4 * 512; };
  const auto expand = [&](int half_block, bool prefetch) __attribute__((always_inline)) {
    for (int i = 0; i < 4; ++i) {
      if (prefetch) ahead.Step();
      if (F != kExpanded && half_block < 2 * blocks)
        ExpandAtom<kForm>(codes + (4 * half_block + i) * (64 * BitsOf(F)), tables, out + half(half_block) + i * 512);
    }
  };
  const auto load_weights = [&](const Weights& w) __attribute__((always_inline)) {
    if constexpr (kShare == 2) {
      LoadTile<2>(w.line[0][kHeight], 64);
      LoadTile<3>(w.line[0][0], 64);
      LoadTile<4>(w.line[1][kHeight], 64);
      LoadTile<5>(w.line[1][0], 64);
    } else {
      LoadTile<4>(w.line[0], 64);
      LoadTile<5>(w.line[1], 64);
    }
  };
  const auto finish = [&](int block) __attribute__((always_inline)) {
    if (runs) scale_of(weights[block]);
    for (int j = 0; j < 2; ++j) {
      const int32_t(*sums)[16] = kShare == 2 ? c[block % 2] + j * kHeight : c[(block % 2 * 2 + j) % (4 / kShare)];
      float* to = acc + 32 * block + 16 * j;
      CROQUIS_UNROLL for (int g = 0; g < kRows; ++g, to += stride) {
        if (g >= rows) break;
        const __m512 sum = _mm512_cvtepi32_ps(Combine<kFine>(sums, g, kRows));
        _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_set1_ps(s[g]), _mm512_loadu_ps(to)));
      }
    }
  };
  const auto store = [&](auto parity) __attribute__((always_inline)) {
    constexpr int first = 2 / kShare * parity.value;
    StoreTile<first>(c[first]);
    if constexpr (kShare == 1) StoreTile<first + 1>(c[first + 1]);
  };
  if (!runs) scale_of(weights[0]);
  expand(0, false);
  if (kAhead == 2) expand(1, false);
  for (int pair = 0; pair < blocks; pair += 2) {
    Unroll<2>([&](auto index) __attribute__((always_inline)) {
      // Tiles of this block.
      constexpr int C0 = 2 / kShare * index.value, C1 = kShare == 2 ? C0 : C0 + 1;
      constexpr int A0 = kShare == 2 ? 2 : 4, A1 = kShare == 2 ? 3 : 4, A2 = kShare == 2 ? 4 : 5;
      const int block = pair + index.value;
      if (block >= blocks) return;
      expand(2 * block + kAhead, true);
      if (block == 0 || runs) load_weights(weights[runs ? block : 0]);
      ZeroTile<C0>();
      if constexpr (C1 != C0) ZeroTile<C1>();
      SumHalf<C0, C1, A0, A1>(is_signed, x + half(2 * block));
      expand(2 * block + 1 + kAhead, true);
      SumHalf<C0, C1, A2, 5>(is_signed, x + half(2 * block + 1));
      if (block > 0) store(Index<1 - index.value>{});
      if (block > 1) finish(block - 2);
    });
  }
  blocks % 2 == 0 ? store(Index<1>{}) : store(Index<0>{});
  if (blocks > 1) finish(blocks - 2);
  finish(blocks - 1);
}

template <int F, bool kFine>
void SumForm(const SumTile& t, int height, Ahead& ahead) {
  WithSizes<kFine>(t.dim, height, [&](auto dim, auto h) { SumBlocks<F, kFine, dim.value, h.value>(t, ahead); });
}

}  // namespace

void SumTiles(const PageLayout& layout, const Levels& levels, bool fine, const std::byte* page, const float* p,
              const float* p_scale, int64_t rows, const Upcoming& next, MatView<float> acc, std::byte* scratch) {
  const auto* scales = reinterpret_cast<const uint16_t*>(page);
  const Groups groups(rows, fine, layout.runs == 1);
  const Tiles tiles({groups.tile_rows(), 64});
  auto* weights = reinterpret_cast<Weights*>(scratch + ScratchAt(layout, levels).weights);
  Ahead ahead(next, layout.dim / 4);
  SumTile t;
  t.is_signed = avx512::AnyNegative(scales, int64_t(layout.runs) * kTokens);
  const auto make = fine ? (t.is_signed ? MakeWeights<true, true> : MakeWeights<true, false>)
                         : (t.is_signed ? MakeWeights<false, true> : MakeWeights<false, false>);
  t.weights = weights;
  t.dim = layout.dim;
  t.runs = layout.runs;
  t.all_kept = groups.count > 1;
  t.stride = acc.stride;
  for (int64_t i = 0; i < groups.count; ++i) {
    const int64_t first = i * groups.rows;
    const float* group_p = p + first * kTokens;
    t.rows = int(rows - first < groups.rows ? rows - first : groups.rows);
    t.p_scale = p_scale + first;
    t.acc = acc.data + first * acc.stride;
    for (int r = 0; r < t.runs; ++r) make(group_p, scales + r * kTokens, t.rows, groups, weights[r]);
    for (int plane = 0; plane < levels.planes; ++plane) {
      t.level = LevelOf(levels, plane);
      const PlaneCodes codes(layout, t.level, page, plane, i == 0, false, scratch);
      t.codes = codes.codes;
      t.x = codes.x;
      t.step = levels.step * PlaneWeight(levels, plane);
      WithForm(codes.form, [&](auto form) {
        fine ? SumForm<form.value, true>(t, groups.height, ahead) : SumForm<form.value, false>(t, groups.height, ahead);
      });
      ahead = Ahead();
    }
    for (int g = 0; layout.mins && g < t.rows; ++g) {
      avx512::AddValueMins(scales + layout.runs * kTokens, layout.runs, layout.dim / layout.runs, group_p + g * kTokens,
                           t.p_scale[g], t.acc + g * t.stride);
    }
  }
}

}  // namespace croquis::simd::amx
