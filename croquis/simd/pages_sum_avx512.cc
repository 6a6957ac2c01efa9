// Values: weighted sums of one page for one group of query rows, vpdpbusd over quadruples of tokens.
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"

namespace croquis::simd::avx512 {
namespace {

// Weights are the unsigned operand and levels the signed one; with signed weights the other way about (levels + 128).
template <bool kSigned>
[[gnu::always_inline]] inline __m512i Dot(__m512i acc, __m512i weights, __m512i levels) {
  return kSigned ? _mm512_dpbusd_epi32(acc, levels, weights) : _mm512_dpbusd_epi32(acc, weights, levels);
}

// kHalves 16-dim halves of blocks starting at half `first` of this one: 2, or 1 where two would not fit the registers,
// or 4, those of the next block too, where registers are left: then each broadcast (a load) feeds as many products.
template <int F, int G, bool kFine, bool kSigned, int kHalves, int first>
[[gnu::always_inline]] inline void SumBlock(const SumArgs& a, const Tables<F>& tables, const uint8_t* p,
                                            const RunWeights& w, Ahead& ahead, float* acc) {
  constexpr int kAtom = 64 * BitsOf(F);
  // Few rows: two sums each, for the latency of vpdpbusd.
  constexpr int kSums = G * kHalves * (kFine ? 2 : 1) < 8 ? 2 : 1;
  __m512i high[G][kHalves][kSums], low[G][kHalves][kSums];
  CROQUIS_UNROLL for (int i = 0; i < G * kHalves * kSums; ++i) {
    const int g = i / (kHalves * kSums), j = i / kSums % kHalves;
    high[g][j][i % kSums] = low[g][j][i % kSums] = _mm512_setzero_si512();
  }
  for (int tb = 0; tb < 8; ++tb, p += kAtom) {
    if constexpr (first == 0) ahead.Step();
    if constexpr (kHalves == 4) ahead.Step();
    if constexpr (first == 0) {
      // The next lines, for the first cache.
      for (int l = 0; l < BitsOf(F) * (kHalves == 4 ? 2 : 1); ++l)
        _mm_prefetch(p + kAtom + (l / BitsOf(F)) * 8 * kAtom + 64 * (l % BitsOf(F)), _MM_HINT_T0);
    }
    Unroll<4>([&](auto index) __attribute__((always_inline)) {
      constexpr int k = index.value, kSum = k % kSums;
      __m512i unit[kHalves];
      unit[0] = Unit<F, 2 * k + first>(p, tables);
      if constexpr (kHalves >= 2) unit[1] = Unit<F, 2 * k + 1>(p, tables);
      if constexpr (kHalves == 4) {
        unit[2] = Unit<F, 2 * k>(p + 8 * kAtom, tables);
        unit[3] = Unit<F, 2 * k + 1>(p + 8 * kAtom, tables);
      }
      CROQUIS_UNROLL for (int g = 0; g < G; ++g) {
        const __m512i h = Broadcast(&w.hi[g][tb * 16 + 4 * k]);
        CROQUIS_UNROLL for (int j = 0; j < kHalves; ++j) {
          high[g][j][kSum] = Dot<kSigned>(high[g][j][kSum], h, unit[j]);
        }
        if constexpr (!kFine) continue;
        const __m512i l = Broadcast(&w.lo[g][tb * 16 + 4 * k]);
        CROQUIS_UNROLL for (int j = 0; j < kHalves; ++j) {
          low[g][j][kSum] = Dot<kSigned>(low[g][j][kSum], l, unit[j]);
        }
      }
    });
  }
  CROQUIS_UNROLL for (int g = 0; g < G; ++g) {
    if (g >= a.rows) break;
    const __m512 scale = _mm512_set1_ps((w.unit[g] * a.step) * a.p_scale[g]);
    CROQUIS_UNROLL for (int j = 0; j < kHalves; ++j) {
      __m512i sum = high[g][j][0];
      if constexpr (kSums == 2) sum = _mm512_add_epi32(sum, high[g][j][1]);
      if constexpr (kFine) {
        sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), low[g][j][0]);
        if constexpr (kSums == 2) sum = _mm512_add_epi32(sum, low[g][j][1]);
      }
      if constexpr (kSigned) sum = _mm512_add_epi32(sum, Broadcast(&w.off[g]));
      float* out = acc + g * a.stride + 16 * (first + j);
      _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_loadu_ps(out)));
    }
  }
}

template <int F, int G, bool kFine, bool kSigned>
void SumGroup(const SumArgs& a) {
  const Tables<F> tables = MakeTables<F>(a.level, kSigned);
  Ahead ahead(a.next, 8 * a.blocks);
  constexpr int kBlock = 8 * 64 * BitsOf(F);
  const uint8_t* p = a.codes;
  int block = 0;
  if constexpr (G == 4 && !kFine) {
    for (; a.runs == 1 && block + 2 <= a.blocks; block += 2, p += 2 * kBlock)
      SumBlock<F, G, kFine, kSigned, 4, 0>(a, tables, p, a.weights[0], ahead, a.acc + 32 * block);
  }
  for (; block < a.blocks; ++block, p += kBlock) {
    const RunWeights& w = a.weights[a.runs == 1 ? 0 : block];
    float* acc = a.acc + 32 * block;
    if constexpr (G == 8 && kFine) {
      SumBlock<F, G, kFine, kSigned, 1, 0>(a, tables, p, w, ahead, acc);
      SumBlock<F, G, kFine, kSigned, 1, 1>(a, tables, p, w, ahead, acc);
    } else {
      SumBlock<F, G, kFine, kSigned, 2, 0>(a, tables, p, w, ahead, acc);
    }
  }
}

template <int F, int G>
constexpr SumFn kForms[2][2] = {{SumGroup<F, G, false, false>, SumGroup<F, G, false, true>},
                                {SumGroup<F, G, true, false>, SumGroup<F, G, true, true>}};
template <int F>
SumFn Width(int width, bool fine, bool is_signed) {
  switch (width) {
    case 1:
      return kForms<F, 1>[fine][is_signed];
    case 2:
      return kForms<F, 2>[fine][is_signed];
    case 4:
      return kForms<F, 4>[fine][is_signed];
    default:
      return kForms<F, 8>[fine][is_signed];
  }
}

}  // namespace

SumFn SumOf(int form, int width, bool fine, bool is_signed) {
  switch (form) {
    case 1:
      return Width<1>(width, fine, is_signed);
    case 2:
      return Width<2>(width, fine, is_signed);
    case 3:
      return Width<3>(width, fine, is_signed);
    case 4:
      return Width<4>(width, fine, is_signed);
    case 5:
      return Width<5>(width, fine, is_signed);
    case 6:
      return Width<6>(width, fine, is_signed);
    case 7:
      return Width<7>(width, fine, is_signed);
    case 8:
      return Width<8>(width, fine, is_signed);
    default:
      return Width<kLooked8>(width, fine, is_signed);
  }
}

}  // namespace croquis::simd::avx512
