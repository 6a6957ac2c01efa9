// Keys: logits of one group of query rows against one page, vpdpbusd (u8 levels + 128 times s8 query).
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"

namespace croquis::simd::avx512 {
namespace {

// kBlocks blocks of 16 tokens run together: each query broadcast (a load) feeds that many products, and few rows
// still give the ten independent sums that hide vpdpbusd's latency.
constexpr int TokenBlocks(int width, bool fine) {
  if (width == 8) return fine ? 1 : 2;
  return width == 4 && fine ? 2 : 4;
}

template <int F, int G, bool kFine, bool kRuns>
void ScoreGroup(const ScoreArgs& a) {
  constexpr int kBlocks = TokenBlocks(G, kFine), kAtom = 64 * BitsOf(F), kParts = kFine ? 2 : 1;
  // Two sums a row and block where there is only one product each, if registers allow.
  constexpr bool kAlternate = !kFine && G * kBlocks <= 8;
  const Tables<F> tables = MakeTables<F>(a.level, true);
  const int64_t block_bytes = int64_t(a.blocks) * kAtom;
  Ahead ahead(a.next, 8 * a.blocks);
  for (int tb = 0; tb < 8; tb += kBlocks) {
    const uint8_t* p = a.codes + tb * block_bytes;
    const int32_t* q = a.q;
    __m512i high[G][kBlocks], low[G][kBlocks];
    __m512 sum[G][kBlocks];
    CROQUIS_UNROLL for (int i = 0; i < G * kBlocks; ++i) sum[i / kBlocks][i % kBlocks] = _mm512_setzero_ps();
    const auto start = [&](int run) __attribute__((always_inline)) {
      CROQUIS_UNROLL for (int i = 0; i < G * kBlocks; ++i) {
        const int g = i / kBlocks, b = i % kBlocks;
        high[g][b] = low[g][b] = _mm512_setzero_si512();
        (kFine || kAlternate ? low : high)[g][b] = Broadcast(a.off + run * G + g);
      }
    };
    const auto flush = [&](int run) __attribute__((always_inline)) {
      CROQUIS_UNROLL for (int b = 0; b < kBlocks; ++b) {
        const __m512 scale = LoadHalf(a.scales + run * kTokens + (tb + b) * 16);
        CROQUIS_UNROLL for (int g = 0; g < G; ++g) {
          __m512i& x = high[g][b];
          if constexpr (kFine) x = _mm512_slli_epi32(x, 8);
          if constexpr (kFine || kAlternate) x = _mm512_add_epi32(x, low[g][b]);
          sum[g][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), scale, sum[g][b]);
        }
      }
    };
    start(0);
    for (int block = 0; block < a.blocks; ++block, p += kAtom, q += 8 * kParts * G) {
      if (kRuns && block > 0) start(block);
      // The next lines of all blocks, for the first cache: strides of so few steps are not foreseen by the hardware.
      const uint8_t* const soon = block + 1 < a.blocks ? p + kAtom : a.codes + (tb + kBlocks) * block_bytes;
      Unroll<8>([&](auto index) __attribute__((always_inline)) {
        constexpr int k = index.value, kLines = kBlocks * BitsOf(F);
        if constexpr (k % (8 / kBlocks) == 0) ahead.Step();
        CROQUIS_UNROLL for (int l = k * kLines / 8; l < (k + 1) * kLines / 8; ++l)
            _mm_prefetch(soon + l % kBlocks * block_bytes + l / kBlocks * 64, _MM_HINT_T0);
        __m512i unit[kBlocks];
        CROQUIS_UNROLL for (int b = 0; b < kBlocks; ++b) unit[b] = Unit<F, k>(p + b * block_bytes, tables);
        CROQUIS_UNROLL for (int g = 0; g < G; ++g) {
          const __m512i h = Broadcast(q + k * kParts * G + g);
          CROQUIS_UNROLL for (int b = 0; b < kBlocks; ++b) {
            __m512i& to = kAlternate && k % 2 ? low[g][b] : high[g][b];
            to = _mm512_dpbusd_epi32(to, unit[b], h);
          }
          if constexpr (!kFine) continue;
          const __m512i l = Broadcast(q + (k * kParts + 1) * G + g);
          CROQUIS_UNROLL for (int b = 0; b < kBlocks; ++b) low[g][b] = _mm512_dpbusd_epi32(low[g][b], unit[b], l);
        }
      });
      if constexpr (kRuns) flush(block);
    }
    if constexpr (!kRuns) flush(0);
    CROQUIS_UNROLL for (int g = 0; g < G; ++g) {
      if (g >= a.rows) break;
      const __m512 s = _mm512_set1_ps(a.s[g] * a.plane_weight);
      CROQUIS_UNROLL for (int b = 0; b < kBlocks; ++b) {
        float* out = a.logits + g * kTokens + (tb + b) * 16;
        const __m512 x = _mm512_mul_ps(sum[g][b], s);
        _mm512_storeu_ps(out, a.add ? _mm512_add_ps(_mm512_loadu_ps(out), x) : x);
      }
    }
  }
}

template <int F, int G>
constexpr ScoreFn kForms[2][2] = {{ScoreGroup<F, G, false, false>, ScoreGroup<F, G, false, true>},
                                  {ScoreGroup<F, G, true, false>, ScoreGroup<F, G, true, true>}};
template <int F>
ScoreFn Width(int width, bool fine, bool runs) {
  switch (width) {
    case 1:
      return kForms<F, 1>[fine][runs];
    case 2:
      return kForms<F, 2>[fine][runs];
    case 4:
      return kForms<F, 4>[fine][runs];
    default:
      return kForms<F, 8>[fine][runs];
  }
}

}  // namespace

ScoreFn ScoreOf(int form, int width, bool fine, bool runs) {
  switch (form) {
    case 1:
      return Width<1>(width, fine, runs);
    case 2:
      return Width<2>(width, fine, runs);
    case 3:
      return Width<3>(width, fine, runs);
    case 4:
      return Width<4>(width, fine, runs);
    case 5:
      return Width<5>(width, fine, runs);
    case 6:
      return Width<6>(width, fine, runs);
    case 7:
      return Width<7>(width, fine, runs);
    case 8:
      return Width<8>(width, fine, runs);
    default:
      return Width<kLooked8>(width, fine, runs);
  }
}

}  // namespace croquis::simd::avx512
