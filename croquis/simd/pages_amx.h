// The two halves of the AMX page kernels; each is for row counts that use tiles, see LeastRows in pages_amx.cc.
#pragma once

#include "croquis/simd/page_kernels.h"
#include "croquis/simd/pages_internal.h"

namespace croquis::simd::amx {

void ScoreTiles(const PageLayout&, const Levels&, bool fine, const std::byte* page, const std::byte* query,
                int64_t rows, const Upcoming& next, float* logits, std::byte* scratch);
void SumTiles(const PageLayout&, const Levels&, bool fine, const std::byte* page, const float* p, const float* p_scale,
              int64_t rows, const Upcoming& next, MatView<float> acc, std::byte* scratch);

}  // namespace croquis::simd::amx
