#include <cmath>
#include <cstring>

#include "croquis/attention/polysketch/polysketch.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention::polysketch {
namespace {

constexpr float kNormEps = 1e-5f;  // of the layer normalisation, as in the paper's code

}  // namespace

PolyForm::PolyForm(const PolyConfig& config, int64_t dim, float scale)
    : config_(config),
      dim_(dim),
      scale_(scale),
      exact_local_(config.mixed || !config.sketch || config.degree == 2),
      sketch_(dim, config.sketch ? config.degree / 2 : 1, config.rank, config.sketch.value_or(SketchKind::kGaussian),
              config.seed),
      map_(linear::FeatureMap::Square(sketch_.rank())),
      bias_(float(config.bias)) {
  if (!config.normalise) return;
  lse_shift_ = config.degree * std::log(double(dim));
  bias_ = float(config.bias * std::exp(-lse_shift_));
}

float PolyForm::Lse(float mass) const { return float(std::log(double(mass)) + lse_shift_); }

void PolyForm::Prepare(const RowsView& rows, bool queries, float* x) const {
  for (int64_t r = 0; r < rows.rows; ++r) {
    float* const to = x + r * dim_;
    if (rows.type == simd::RowType::kF32)
      std::memcpy(to, rows.Row(r), size_t(dim_) * sizeof(float));
    else
      rows.Read(r, to);
    if (!config_.normalise && queries) simd::Dense().scale(to, dim_, scale_);
  }
  if (config_.normalise)
    simd::FeatureLoops().layer_norm(x, rows.rows, dim_, kNormEps, float(1 / std::sqrt(double(dim_))));
}

}  // namespace croquis::attention::polysketch
