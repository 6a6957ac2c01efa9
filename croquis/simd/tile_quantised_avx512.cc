// Quantised tile kernels for AVX-512 VNNI. The loops are in tile_quantised_inl.h.
#include <immintrin.h>

#include "croquis/simd/tile_quantised_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace {

#include "croquis/simd/tile_avx512.h"
#include "croquis/simd/tile_inl.h"
#include "croquis/simd/tile_quantised_avx512.h"
#include "croquis/simd/tile_quantised_inl.h"

}  // namespace

const QuantisedKernels& QuantisedAvx512() {
  static constexpr QuantisedKernels kKernels = {"avx512", Target::kAvx512, Q::kWide,
                                                RoundRow, PackValues,      AttendQuantised};
  return kKernels;
}

}  // namespace croquis::simd
