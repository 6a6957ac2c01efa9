// Quantised tile kernels for AVX2. The loops are in tile_quantised_inl.h.
#include <immintrin.h>

#include "croquis/simd/tile_quantised_internal.h"
#include "croquis/simd/vector_avx2.h"

namespace croquis::simd {
namespace {

#include "croquis/simd/tile_avx2.h"
#include "croquis/simd/tile_inl.h"
#include "croquis/simd/tile_quantised_avx2.h"
#include "croquis/simd/tile_quantised_inl.h"

}  // namespace

const QuantisedKernels& QuantisedAvx2() {
  static constexpr QuantisedKernels kKernels = {"avx2", Target::kAvx2, Q::kWide, RoundRow, PackValues, AttendQuantised};
  return kKernels;
}

}  // namespace croquis::simd
