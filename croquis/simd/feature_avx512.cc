// Feature kernels for AVX-512. The loops are in feature_inl.h; here are the vectors they are written in.
#include <immintrin.h>

#include "croquis/simd/feature_internal.h"

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
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void StoreN(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, Mask(n), x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(F x) { return _mm512_reduce_add_ps(x); }
  // Zero where d < bound, else x.
  static F ZeroBelow(F x, F d, F bound) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(d, bound, _CMP_GE_OQ), x); }
  static F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x * 2^n for an integral n.
  static F Ldexp(F x, F n) { return _mm512_scalef_ps(x, n); }
};

#include "croquis/simd/feature_inl.h"

}  // namespace

const FeatureKernels& FeaturesAvx512() {
  static constexpr FeatureKernels kKernels = {"avx512",  Target::kAvx512, SquareRows, SquareColumns, EvenPowers,
                                              Product,   RowDots,         RowSums,    ScanStep,      Exp,
                                              LayerNorm, RankOne,         TripleSums};
  return kKernels;
}

}  // namespace croquis::simd
