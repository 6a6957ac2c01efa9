// Row kernels for AVX-512. The loops are in row_inl.h; here are the vectors they are written in.
#include <immintrin.h>

#include "croquis/simd/row_internal.h"

namespace croquis::simd {
namespace {

struct V {
  using F = __m512;
  static constexpr int kW = 16;

  static __mmask16 Mask(int64_t n) { return __mmask16((1u << n) - 1); }
  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F LoadN(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static F LoadBf16(const uint16_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F LoadF16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void StoreN(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, Mask(n), x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(F x) { return _mm512_reduce_add_ps(x); }
};

#include "croquis/simd/row_inl.h"

void SignBits(const float* z, int64_t stride, int64_t n, const float* threshold, uint16_t* codes) {
  const __m512 bound = _mm512_loadu_ps(threshold);
  for (int64_t r = 0; r < n; ++r)
    codes[r] = uint16_t(_mm512_cmp_ps_mask(_mm512_loadu_ps(z + r * stride), bound, _CMP_GT_OQ));
}

}  // namespace

const RowKernels& RowsAvx512() {
  static constexpr RowKernels kKernels = {"avx512", Target::kAvx512, WidenAny, AddRows, Squares, SignBits, AddScaled};
  return kKernels;
}

}  // namespace croquis::simd
