// Feature kernels for AVX2 with FMA. The loops are in feature_inl.h.
#include "croquis/simd/feature_internal.h"
#include "croquis/simd/vector_avx2.h"

namespace croquis::simd {
namespace {

using V = VectorAvx2;

#include "croquis/simd/feature_inl.h"

}  // namespace

const FeatureKernels& FeaturesAvx2() {
  static constexpr FeatureKernels kKernels = {"avx2",    Target::kAvx2, SquareRows, SquareColumns, EvenPowers,
                                              Product,   RowDots,       RowSums,    ScanStep,      Exp,
                                              LayerNorm, RankOne,       TripleSums};
  return kKernels;
}

}  // namespace croquis::simd
