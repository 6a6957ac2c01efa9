// Row kernels for AVX2 with FMA and F16C. The loops are in row_inl.h.
#include <immintrin.h>

#include "croquis/simd/row_internal.h"
#include "croquis/simd/vector_avx2.h"

namespace croquis::simd {
namespace {

using V = VectorAvx2;

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
