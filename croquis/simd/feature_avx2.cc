// Feature kernels for AVX2 with FMA. The loops are in feature_inl.h; here are the vectors they are written in.
#include <immintrin.h>

#include "croquis/simd/feature_internal.h"

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
  // Zero where d < bound, else x.
  static F ZeroBelow(F x, F d, F bound) { return _mm256_and_ps(_mm256_cmp_ps(d, bound, _CMP_GE_OQ), x); }
  static F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x * 2^n for an integral n in [-126, 127].
  static F Ldexp(F x, F n) {
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
  }
};

#include "croquis/simd/feature_inl.h"

}  // namespace

const FeatureKernels& FeaturesAvx2() {
  static constexpr FeatureKernels kKernels = {"avx2",    Target::kAvx2, SquareRows, SquareColumns, EvenPowers,
                                              Product,   RowDots,       RowSums,    ScanStep,      Exp,
                                              LayerNorm, RankOne,       TripleSums};
  return kKernels;
}

}  // namespace croquis::simd
