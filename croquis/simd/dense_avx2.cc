// Dense kernels for AVX2 with FMA and F16C. The loops are in dense_inl.h; here are the vectors they are written in.
#include <immintrin.h>

#include "croquis/simd/dense_internal.h"

namespace croquis::simd {
namespace {

struct V {
  using F = __m256;
  static constexpr int kW = 8;       // lanes
  static constexpr int kTokens = 2;  // tokens of one step of ScoreFew, with 4 rows: 8 of 16 registers
  static constexpr int kMr = 6;      // GEMM block: 6 rows x 2 vectors = 12 accumulators
  static constexpr int kNv = 2;

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
  static bool AllAbsAtMost(F x, F bound) {
    const F a = _mm256_andnot_ps(Set(-0.f), x);
    return _mm256_movemask_ps(_mm256_cmp_ps(a, bound, _CMP_LE_OQ)) == 0xff;
  }
  // Zero where d < bound, else x.
  static F ZeroBelow(F x, F d, F bound) { return _mm256_and_ps(_mm256_cmp_ps(d, bound, _CMP_GE_OQ), x); }
  static F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // x * 2^n for an integral n in [-126, 127].
  static F Ldexp(F x, F n) {
    const __m256i e = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
  }

  // n < 8 halves of 16 bits, the rest zero; no byte past them is touched.
  static __m128i LoadHalves(const std::byte* p, int64_t n) {
    alignas(16) uint16_t h[8] = {};
    __builtin_memcpy(h, p, size_t(n) * 2);
    return _mm_load_si128((const __m128i*)h);
  }
  struct F32Row {
    static constexpr int kBytes = 4;
    static F Load(const std::byte* p) { return _mm256_loadu_ps((const float*)p); }
    static F LoadN(const std::byte* p, int64_t n) { return _mm256_maskload_ps((const float*)p, Mask(n)); }
  };
  struct F16Row {
    static constexpr int kBytes = 2;
    static F Load(const std::byte* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static F LoadN(const std::byte* p, int64_t n) { return _mm256_cvtph_ps(LoadHalves(p, n)); }
  };
  struct Bf16Row {
    static constexpr int kBytes = 2;
    static F Widen(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
    static F Load(const std::byte* p) { return Widen(_mm_loadu_si128((const __m128i*)p)); }
    static F LoadN(const std::byte* p, int64_t n) { return Widen(LoadHalves(p, n)); }
  };

  // Horizontal sums of a[row][token], all at once, to out[row * stride + token] for the first n tokens.
  template <int R>
  static void StoreSums(const F (*a)[kTokens], float* out, int64_t stride, int64_t n) {
    F h[4];
    for (int r = 0; r < 4; ++r) h[r] = r < R ? _mm256_hadd_ps(a[r][0], a[r][1]) : Zero();
    const F x = _mm256_hadd_ps(h[0], h[1]), y = _mm256_hadd_ps(h[2], h[3]);  // half-sums of rows 0,1 and of rows 2,3
    const __m128 s[2] = {_mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
                         _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1))};
    for (int r = 0; r < R; ++r) {
      const __m128 v = r % 2 ? _mm_movehl_ps(s[r / 2], s[r / 2]) : s[r / 2];
      if (n == 2)
        _mm_storel_pi((__m64*)(out + r * stride), v);
      else
        _mm_store_ss(out + r * stride, v);
    }
  }

  // out[i * stride + t] = x[t] lane i, for lanes i < n.
  static void StoreTransposed(const F* x, float* out, int64_t stride, int64_t n) {
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
      a[j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
      a[4 + j] = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (i < n) Store(out + i * stride, a[i]);
  }
};

#include "croquis/simd/dense_inl.h"

}  // namespace

const DenseKernels& DenseAvx2() {
  static constexpr DenseKernels kKernels = {"avx2",        Target::kAvx2, ScoreRows, AccumulateRows, SoftmaxTiles,
                                            ScaleInPlace, AddTo,         AllBelow,  SmallGemm};
  return kKernels;
}

}  // namespace croquis::simd
