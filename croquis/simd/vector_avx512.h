// Vectors of sixteen f32 in AVX-512: what the loops of the dense, feature, row, tile and split kernels share. For files
// with AVX-512 flags only, each of which gets machine code of its own.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "croquis/simd/vector_common.h"

namespace croquis::simd {
namespace {

struct VectorAvx512 {
  using F = __m512;
  static constexpr int kW = 16;  // lanes

  static __mmask16 Mask(int64_t n) { return __mmask16((1u << n) - 1); }
  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  // The first n lanes; no byte past them is touched.
  static F LoadN(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  // Sixteen halves of 16 bits, wherever they stand.
  static F WidenF16(__m256i x) { return _mm512_cvtph_ps(x); }
  static F WidenBf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  static F LoadF16(const void* p) { return WidenF16(_mm256_loadu_si256((const __m256i*)p)); }
  static F LoadBf16(const void* p) { return WidenBf16(_mm256_loadu_si256((const __m256i*)p)); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void StoreN(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, Mask(n), x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(F x) { return _mm512_reduce_add_ps(x); }
  static float MaxOf(F x) { return _mm512_reduce_max_ps(x); }
  // Zero where d < bound, else x.
  static F ZeroBelow(F x, F d, F bound) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(d, bound, _CMP_GE_OQ), x); }
  static F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x - floor(x), and p times 2^floor(x); infinite where that is too large.
  static constexpr bool kRaiseSaturates = true;
  static F Fraction(F x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static F Raise(F p, F x) { return _mm512_scalef_ps(p, x); }

  // Lanes the other way round.
  static F Reverse(F x) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), x);
  }
  // y[i] lane t = x[t] lane i; y may be x.
  static void Transpose(const F* x, F* y) {
    F a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    // b[4g + j]: lane group l holds rows 4g .. 4g + 3 of number 4l + j.
#pragma GCC unroll 4
    for (int g = 0; g < 16; g += 4) {
      const __m512d p = _mm512_castps_pd(a[g]), q = _mm512_castps_pd(a[g + 2]);
      const __m512d r = _mm512_castps_pd(a[g + 1]), s = _mm512_castps_pd(a[g + 3]);
      b[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(p, q));
      b[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p, q));
      b[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(r, s));
      b[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(r, s));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const F lo = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x44), hi = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xee);
      const F lo2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x44);
      const F hi2 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xee);
      y[j] = _mm512_shuffle_f32x4(lo, lo2, 0x88);
      y[4 + j] = _mm512_shuffle_f32x4(lo, lo2, 0xdd);
      y[8 + j] = _mm512_shuffle_f32x4(hi, hi2, 0x88);
      y[12 + j] = _mm512_shuffle_f32x4(hi, hi2, 0xdd);
    }
  }
};

}  // namespace
}  // namespace croquis::simd
