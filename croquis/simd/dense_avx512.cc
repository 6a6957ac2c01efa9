// Dense kernels for AVX-512. The loops are in dense_inl.h; here is what they need beside vector_avx512.h.
#include <immintrin.h>

#include "croquis/simd/dense_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace {

struct V : VectorAvx512 {
  static constexpr int kTokens = 4;  // tokens of one step of ScoreFew, with 4 rows: 16 of 32 registers
  static constexpr int kMr = 6;      // GEMM block: 6 rows x 4 vectors = 24 accumulators
  static constexpr int kNv = 4;

  static bool AllAbsAtMost(F x, F bound) { return _mm512_cmp_ps_mask(_mm512_abs_ps(x), bound, _CMP_LE_OQ) == 0xffff; }

  struct F32Row {
    static constexpr int kBytes = 4;
    static F Load(const std::byte* p) { return V::Load((const float*)p); }
    static F LoadN(const std::byte* p, int64_t n) { return V::LoadN((const float*)p, n); }
  };
  struct F16Row {
    static constexpr int kBytes = 2;
    static F Load(const std::byte* p) { return LoadF16(p); }
    static F LoadN(const std::byte* p, int64_t n) { return WidenF16(_mm256_maskz_loadu_epi16(Mask(n), p)); }
  };
  struct Bf16Row {
    static constexpr int kBytes = 2;
    static F Load(const std::byte* p) { return LoadBf16(p); }
    static F LoadN(const std::byte* p, int64_t n) { return WidenBf16(_mm256_maskz_loadu_epi16(Mask(n), p)); }
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
    F a[16];
    Transpose(x, a);
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
#include "croquis/simd/dense_waves_inl.h"

}  // namespace

const DenseKernels& DenseAvx512() {
  static constexpr DenseKernels kKernels = {"avx512",     Target::kAvx512, ScoreRows,    AccumulateRows,
                                            SoftmaxTiles, Exp2Tiles,       ScaleInPlace, AddWaves,
                                            AddTo,        AllBelow,        SmallGemm};
  return kKernels;
}

}  // namespace croquis::simd
