// Row kernels for AVX-512. The loops are in row_inl.h.
#include <immintrin.h>

#include "croquis/simd/row_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace {

using V = VectorAvx512;

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
