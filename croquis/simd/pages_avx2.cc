// Page kernels for AVX2. The loops are in pages_avx2_inl.h; here is the product they are written in.
#include <immintrin.h>

#include "croquis/simd/pages_avx2.h"
#include "croquis/simd/prefetch_inl.h"

namespace croquis::simd {
namespace {

inline __m256i Dot(__m256i acc, __m256i x, __m256i y) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, y)); }

#include "croquis/simd/pages_avx2_inl.h"

}  // namespace

const PageKernels& PagesAvx2() {
  static constexpr PageKernels kKernels = {
      .name = "avx2",
      .target = Target::kAvx2,
      .enter = NothingToKeep,
      .leave = NothingToKeep,
      .query_bytes = avx2::QueryBytes,
      .scratch_bytes = avx2::ScratchBytes,
      .prepare = avx2::Prepare,
      .score = Score,
      .accumulate = Accumulate,
      .pack_keys = avx2::PackKeys,
      .pack_values = avx2::PackValues,
      .fwht = avx2::Fwht,
      .nearest = avx2::Nearest,
      .f16_to_f32 = avx2::F16ToF32,
      .f32_to_f16 = avx2::F32ToF16,
      .bf16_to_f32 = avx2::Bf16ToF32,
      .f32_to_bf16 = avx2::F32ToBf16,
  };
  return kKernels;
}

}  // namespace croquis::simd
