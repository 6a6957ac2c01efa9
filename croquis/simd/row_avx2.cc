// Row kernels for AVX2 with FMA and F16C. The loops are in row_inl.h; here are the vectors they are written in.
#include <immintrin.h>

#include "croquis/simd/row_internal.h"

namespace croquis::simd {
namespace {

struct V {
  using F = __m256;
  static constexpr int kW = 8;

  static __m256i Mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F LoadN(const float* p, int64_t n) { return _mm256_maskload_ps(p, Mask(n)); }
  static F LoadBf16(const uint16_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static F LoadF16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void StoreN(float* p, F x, int64_t n) { _mm256_maskstore_ps(p, Mask(n), x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float Sum(F x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

#include "croquis/simd/row_inl.h"

void SignBits(const float* z, int64_t stride, int64_t n, const float* threshold, uint16_t* codes) {
  const __m256 low = _mm256_loadu_ps(threshold), high = _mm256_loadu_ps(threshold + 8);
  for (int64_t r = 0; r < n; ++r) {
    const float* const x = z + r * stride;
    const int a = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), low, _CMP_GT_OQ)),
              b = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + 8), high, _CMP_GT_OQ));
    codes[r] = uint16_t(a | b << 8);
  }
}

}  // namespace

const RowKernels& RowsAvx2() {
  static constexpr RowKernels kKernels = {"avx2", Target::kAvx2, WidenAny, AddRows, Squares, SignBits, AddScaled};
  return kKernels;
}

}  // namespace croquis::simd
