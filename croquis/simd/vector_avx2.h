// Vectors of eight f32 in AVX2 with FMA and F16C: what the loops of the dense, feature, row and tile kernels share. For
// files with AVX2 flags only, each of which gets machine code of its own.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "croquis/simd/vector_common.h"

namespace croquis::simd {
namespace {

struct VectorAvx2 {
  using F = __m256;
  static constexpr int kW = 8;  // lanes

  static __m256i Mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  // The first n lanes; no byte past them is touched.
  static F LoadN(const float* p, int64_t n) { return _mm256_maskload_ps(p, Mask(n)); }
  // Eight halves of 16 bits, wherever they stand.
  static F WidenF16(__m128i x) { return _mm256_cvtph_ps(x); }
  static F WidenBf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static F LoadF16(const void* p) { return WidenF16(_mm_loadu_si128((const __m128i*)p)); }
  static F LoadBf16(const void* p) { return WidenBf16(_mm_loadu_si128((const __m128i*)p)); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void StoreN(float* p, F x, int64_t n) { _mm256_maskstore_ps(p, Mask(n), x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float Sum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float MaxOf(F x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Zero where d < bound, else x.
  static F ZeroBelow(F x, F d, F bound) { return _mm256_and_ps(_mm256_cmp_ps(d, bound, _CMP_GE_OQ), x); }
  static F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x - floor(x), and p times 2^floor(x), where that is normal; zero for x < -126.
  static constexpr bool kRaiseSaturates = false;
  static F Fraction(F x) { return _mm256_sub_ps(x, _mm256_floor_ps(x)); }
  static F Raise(F p, F x) {
    const __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(x)), 23);
    const F raised = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
    return _mm256_and_ps(_mm256_cmp_ps(x, Set(-126), _CMP_GE_OQ), raised);
  }

  // Lanes the other way round.
  static F Reverse(F x) { return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0)); }
  // y[i] lane t = x[t] lane i; y may be x.
  static void Transpose(const F* x, F* y) {
    F a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      a[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int g = 0; g < 8; g += 4) {
      b[g] = _mm256_shuffle_ps(a[g], a[g + 2], 0x44);
      b[g + 1] = _mm256_shuffle_ps(a[g], a[g + 2], 0xee);
      b[g + 2] = _mm256_shuffle_ps(a[g + 1], a[g + 3], 0x44);
      b[g + 3] = _mm256_shuffle_ps(a[g + 1], a[g + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      y[j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
      y[4 + j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
    }
  }
};

}  // namespace
}  // namespace croquis::simd
