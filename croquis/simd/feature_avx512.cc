// Feature kernels for AVX-512. The loops are in feature_inl.h.
#include "croquis/simd/feature_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace {

using V = VectorAvx512;

#include "croquis/simd/feature_inl.h"

}  // namespace

const FeatureKernels& FeaturesAvx512() {
  static constexpr FeatureKernels kKernels = {"avx512",  Target::kAvx512, SquareRows, SquareColumns, EvenPowers,
                                              Product,   RowDots,         RowSums,    ScanStep,      Exp,
                                              LayerNorm, RankOne,         TripleSums};
  return kKernels;
}

}  // namespace croquis::simd
