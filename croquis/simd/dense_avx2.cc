// Dense kernels for AVX2 with FMA and F16C. The loops are in dense_inl.h; here is what they need beside
// vector_avx2.h.
#include <immintrin.h>

#include "croquis/simd/dense_internal.h"
#include "croquis/simd/vector_avx2.h"

namespace croquis::simd {
namespace {

struct V : VectorAvx2 {
  static constexpr int kTokens = 2;  // tokens of one step of ScoreFew, with 4 rows: 8 of 16 registers
  static constexpr int kMr = 6;      // GEMM block: 6 rows x 2 vectors = 12 accumulators
  static constexpr int kNv = 2;

  static bool AllAbsAtMost(F x, F bound) {
    const F a = _mm256_andnot_ps(Set(-0.f), x);
    return _mm256_movemask_ps(_mm256_cmp_ps(a, bound, _CMP_LE_OQ)) == 0xff;
  }

  // n < 8 halves of 16 bits, the rest zero; no byte past them is touched.
  static __m128i LoadHalves(const std::byte* p, int64_t n) {
    alignas(16) uint16_t h[8] = {};
    __builtin_memcpy(h, p, size_t(n) * 2);
    return _mm_load_si128((const __m128i*)h);
  }
  struct F32Row {
    static constexpr int kBytes = 4;
    static F Load(const std::byte* p) { return V::Load((const float*)p); }
    static F LoadN(const std::byte* p, int64_t n) { return V::LoadN((const float*)p, n); }
  };
  struct F16Row {
    static constexpr int kBytes = 2;
    static F Load(const std::byte* p) { return LoadF16(p); }
    static F LoadN(const std::byte* p, int64_t n) { return WidenF16(LoadHalves(p, n)); }
  };
  struct Bf16Row {
    static constexpr int kBytes = 2;
    static F Load(const std::byte* p) { return LoadBf16(p); }
    static F LoadN(const std::byte* p, int64_t n) { return WidenBf16(LoadHalves(p, n)); }
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
    F a[8];
    Transpose(x, a);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (i < n) Store(out + i * stride, a[i]);
  }
};

#include "croquis/simd/dense_inl.h"
#include "croquis/simd/dense_waves_inl.h"

}  // namespace

const DenseKernels& DenseAvx2() {
  static constexpr DenseKernels kKernels = {"avx2",       Target::kAvx2, ScoreRows,    AccumulateRows,
                                            SoftmaxTiles, Exp2Tiles,     ScaleInPlace, AddWaves,
                                            AddTo,        AllBelow,      SmallGemm};
  return kKernels;
}

}  // namespace croquis::simd
