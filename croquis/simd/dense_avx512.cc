// Dense kernels for AVX-512. The loops are in dense_inl.h; here are the vectors they are written in.
#include <immintrin.h>

#include "croquis/simd/dense_internal.h"

namespace croquis::simd {
namespace {

struct V {
  using F = __m512;
  static constexpr int kW = 16;      // lanes
  static constexpr int kTokens = 4;  // tokens of one step of ScoreFew, with 4 rows: 16 of 32 registers
  static constexpr int kMr = 6;      // GEMM block: 6 rows x 4 vectors = 24 accumulators
  static constexpr int kNv = 4;

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
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(F x) { return _mm512_reduce_add_ps(x); }
  static float MaxOf(F x) { return _mm512_reduce_max_ps(x); }
  static bool AllAbsAtMost(F x, F bound) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(x), bound, _CMP_LE_OQ) == 0xffff;
  }
  // Zero where d < bound, else x.
  static F ZeroBelow(F x, F d, F bound) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(d, bound, _CMP_GE_OQ), x); }
  static F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x * 2^n for an integral n.
  static F Ldexp(F x, F n) { return _mm512_scalef_ps(x, n); }

  struct F32Row {
    static constexpr int kBytes = 4;
    static F Load(const std::byte* p) { return _mm512_loadu_ps(p); }
    static F LoadN(const std::byte* p, int64_t n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  };
  struct F16Row {
    static constexpr int kBytes = 2;
    static F Load(const std::byte* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    static F LoadN(const std::byte* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(Mask(n), p)); }
  };
  struct Bf16Row {
    static constexpr int kBytes = 2;
    static F Widen(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
    static F Load(const std::byte* p) { return Widen(_mm256_loadu_si256((const __m256i*)p)); }
    static F LoadN(const std::byte* p, int64_t n) { return Widen(_mm256_maskz_loadu_epi16(Mask(n), p)); }
  };

  // Horizontal sums of a[row][token], all at once: each step packs two vectors into one. Lane 4 * row + token of the
  // result goes to out[row * stride + token] for the first n tokens.
  template <int R>
  static void StoreSums(const F (*a)[kTokens], float* out, int64_t stride, int64_t n) {
    F u[4];
    for (int r = 0; r < 4; ++r) {
      if (r >= R) {
        u[r] = Zero();
        continue;
      }
      const F x = Add(_mm512_unpacklo_ps(a[r][0], a[r][1]), _mm512_unpackhi_ps(a[r][0], a[r][1]));
      const F y = Add(_mm512_unpacklo_ps(a[r][2], a[r][3]), _mm512_unpackhi_ps(a[r][2], a[r][3]));
      u[r] = Add(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y))),
                 _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y))));
    }
    const F v = Add(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
    const F w = Add(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
    const F s = Add(_mm512_shuffle_f32x4(v, w, 0x88), _mm512_shuffle_f32x4(v, w, 0xdd));
    const __mmask8 mask = __mmask8((1u << n) - 1);
    _mm_mask_storeu_ps(out, mask, _mm512_castps512_ps128(s));
    if (R > 1) _mm_mask_storeu_ps(out + stride, mask, _mm512_extractf32x4_ps(s, 1));
    if (R > 2) _mm_mask_storeu_ps(out + 2 * stride, mask, _mm512_extractf32x4_ps(s, 2));
    if (R > 3) _mm_mask_storeu_ps(out + 3 * stride, mask, _mm512_extractf32x4_ps(s, 3));
  }

  // out[i * stride + t] = x[t] lane i, for lanes i < n.
  static void StoreTransposed(const F* x, float* out, int64_t stride, int64_t n) {
    F a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    // b[4g + j]: lane group l holds tokens 4g..4g+3 of dim 4l + j.
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
      a[j] = _mm512_shuffle_f32x4(lo, lo2, 0x88);
      a[4 + j] = _mm512_shuffle_f32x4(lo, lo2, 0xdd);
      a[8 + j] = _mm512_shuffle_f32x4(hi, hi2, 0x88);
      a[12 + j] = _mm512_shuffle_f32x4(hi, hi2, 0xdd);
    }
    if (n == 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) Store(out + i * stride, a[i]);
    } else {
      for (int i = 0; i < 16; ++i)
        if (i < n) Store(out + i * stride, a[i]);
    }
  }
};

#include "croquis/simd/dense_inl.h"

}  // namespace

const DenseKernels& DenseAvx512() {
  static constexpr DenseKernels kKernels = {"avx512",      Target::kAvx512, ScoreRows, AccumulateRows, SoftmaxTiles,
                                            ScaleInPlace, AddTo,           AllBelow,  SmallGemm};
  return kKernels;
}

}  // namespace croquis::simd
