// Queries and softmax weights to integers, and the `mins` terms (the arithmetic stated in pages_internal.h).
// Included by the AVX-512 and AMX files only.
#pragma once

#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"

namespace croquis::simd::avx512 {
namespace {

// Members of the public types again: their inline functions must not be built with wide instructions.
inline size_t CodesAt(const PageLayout& x) { return size_t(x.runs) * (x.mins ? 512 : 256); }
inline const int8_t* LevelOf(const Levels& levels, int plane) {
  return reinterpret_cast<const int8_t*>(&levels.level) + 256 * plane;
}
inline float PlaneWeight(const Levels& levels, int plane) { return levels.planes == 2 && plane == 0 ? 128.f : 1.f; }

// v = 256 * HighByte(v) + int8(v).
inline __m512i HighByte(__m512i v) { return _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8); }

inline float MaxAbs(const float* x, int n) {
  __m512 max = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) max = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i)), max);  // NaN: keeps max
  return _mm512_reduce_max_ps(max);
}

inline float SumOfRun(const float* x, int n) {
  __m512 sum = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + i));
  return TreeSum(sum);
}

inline bool AnyNegative(const uint16_t* scales, int64_t n) {
  __m512i any = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 32) any = _mm512_or_si512(any, _mm512_loadu_si512(scales + i));
  return _mm512_movepi16_mask(any) != 0;
}

// The 64 bytes of four vectors of 32-bit integers below 2^16, in order: low bytes to `lo`, high bytes to `hi`.
template <bool kFine, bool kSigned>
inline void StoreBytes(const __m512i* v, uint8_t* hi, uint8_t* lo) {
  // Packing works within 128-bit lanes; this puts the dwords back in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto pack = [](__m512i x, __m512i y) { return kSigned ? _mm512_packs_epi32(x, y) : _mm512_packus_epi32(x, y); };
  const __m512i a = pack(v[0], v[1]), b = pack(v[2], v[3]);
  if constexpr (!kFine) {
    const __m512i bytes = kSigned ? _mm512_packs_epi16(a, b) : _mm512_packus_epi16(a, b);
    _mm512_storeu_si512(hi, _mm512_permutexvar_epi32(order, bytes));
    return;
  }
  const __m512i m255 = _mm512_set1_epi16(255), half = _mm512_set1_epi16(128);
  const __m512i low = _mm512_packus_epi16(_mm512_and_si512(a, m255), _mm512_and_si512(b, m255));
  const __m512i high = kSigned ? _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(a, half), 8),
                                                    _mm512_srai_epi16(_mm512_add_epi16(b, half), 8))
                               : _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
  _mm512_storeu_si512(lo, _mm512_permutexvar_epi32(order, low));
  _mm512_storeu_si512(hi, _mm512_permutexvar_epi32(order, high));
}

// One row's weights p * S of one run. Returns max|w| / top, 0 when nothing weighs; *total is the sum of the integers.
template <bool kFine, bool kSigned>
inline float QuantiseRow(const float* p, const __m512* scale, uint8_t* hi, uint8_t* lo, int32_t* total) {
  constexpr float kTop = kFine ? (kSigned ? 32639.f : 65535.f) : (kSigned ? 127.f : 255.f);
  __m512 w[8], max[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  CROQUIS_UNROLL for (int i = 0; i < 8; ++i) {
    w[i] = _mm512_mul_ps(_mm512_loadu_ps(p + 16 * i), scale[i]);
    max[i % 2] = _mm512_max_ps(kSigned ? _mm512_abs_ps(w[i]) : w[i], max[i % 2]);
  }
  const float top = _mm512_reduce_max_ps(_mm512_max_ps(max[0], max[1]));
  const __m512 inverse = _mm512_set1_ps(top < kTiny ? 0.f : kTop / top);
  __m512i v[8], sum = _mm512_setzero_si512();
  CROQUIS_UNROLL for (int i = 0; i < 8; ++i) {
    v[i] = _mm512_cvtps_epi32(_mm512_mul_ps(w[i], inverse));
    if constexpr (kSigned) sum = _mm512_add_epi32(sum, v[i]);
  }
  if constexpr (kSigned) *total = _mm512_reduce_add_epi32(sum);
  StoreBytes<kFine, kSigned>(v, hi, lo);
  StoreBytes<kFine, kSigned>(v + 4, hi + 64, lo + 64);
  return top < kTiny ? 0.f : top / kTop;
}

template <bool kFine, bool kSigned>
inline void QuantiseRun(const float* p, const uint16_t* scales, int rows, int width, RunWeights& w) {
  __m512 scale[8];
  CROQUIS_UNROLL for (int i = 0; i < 8; ++i) scale[i] = LoadHalf(scales + 16 * i);
  for (int g = 0; g < rows; ++g) {
    int32_t total = 0;
    w.unit[g] = QuantiseRow<kFine, kSigned>(p + g * kTokens, scale, w.hi[g], w.lo[g], &total);
    w.off[g] = -128 * total;
  }
  for (int g = rows; g < width; ++g) {
    __builtin_memset(w.hi[g], 0, kTokens);
    __builtin_memset(w.lo[g], 0, kTokens);
  }
}
inline void QuantiseRun(const float* p, const uint16_t* scales, int rows, int width, bool fine, bool is_signed,
                        RunWeights& w) {
  if (fine) {
    is_signed ? QuantiseRun<true, true>(p, scales, rows, width, w)
              : QuantiseRun<true, false>(p, scales, rows, width, w);
  } else {
    is_signed ? QuantiseRun<false, true>(p, scales, rows, width, w)
              : QuantiseRun<false, false>(p, scales, rows, width, w);
  }
}

// logits[128] += sum over runs of M[r][t] * m[r * stride].
inline void AddKeyMins(const uint16_t* mins, int runs, const float* m, int stride, float* logits) {
  for (int t = 0; t < kTokens; t += 16) {
    __m512 x = _mm512_loadu_ps(logits + t);
    for (int r = 0; r < runs; ++r) {
      x = _mm512_fmadd_ps(LoadHalf(mins + r * kTokens + t), _mm512_set1_ps(m[r * stride]), x);
    }
    _mm512_storeu_ps(logits + t, x);
  }
}

// acc of run r += p_scale * sum_t p[t] * M[r][t].
inline void AddValueMins(const uint16_t* mins, int runs, int run_dims, const float* p, float p_scale, float* acc) {
  for (int r = 0; r < runs; ++r) {
    __m512 sum = _mm512_setzero_ps();
    for (int t = 0; t < kTokens; t += 16) {
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(p + t), LoadHalf(mins + r * kTokens + t), sum);
    }
    const __m512 add = _mm512_set1_ps(TreeSum(sum)), scale = _mm512_set1_ps(p_scale);
    for (int i = r * run_dims; i < (r + 1) * run_dims; i += 16) {
      _mm512_storeu_ps(acc + i, _mm512_fmadd_ps(scale, add, _mm512_loadu_ps(acc + i)));
    }
  }
}

}  // namespace
}  // namespace croquis::simd::avx512
