// Quantised tile kernels for AVX-VNNI. The loops are in tile_quantised_inl.h.
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

const QuantisedKernels& QuantisedAvxVnni() {
  static constexpr QuantisedKernels kKernels = {"avxvnni", Target::kAvxVnni, Q::kWide,
                                                RoundRow,  PackValues,       AttendQuantised};
  return kKernels;
}

}  // namespace croquis::simd
