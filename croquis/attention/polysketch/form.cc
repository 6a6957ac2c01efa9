#include <cmath>

#include "croquis/attention/polysketch/polysketch.h"

namespace croquis::attention::polysketch {
namespace {

constexpr float kNormEps = 1e-5f;  // of the layer normalisation, as in the paper's code

// (x - mean) / sqrt(variance + eps) * factor, sums in fixed lanes.
void LayerNorm(float* x, int64_t n, float factor) {
  constexpr int kLanes = 8;
  const auto sum = [&](const auto& at) {
    float s[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int l = 0; l < kLanes; ++l) s[l] += at(x[i + l]);
    for (; i < n; ++i) s[i % kLanes] += at(x[i]);
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
  };
  const float mean = sum([](float a) { return a; }) / float(n);
  const float variance = sum([&](float a) { return (a - mean) * (a - mean); }) / float(n);
  const float scale = factor / std::sqrt(variance + kNormEps);
  for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - mean) * scale;
}

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
  const float factor = float(1 / std::sqrt(double(dim_)));
  for (int64_t r = 0; r < rows.rows; ++r, x += dim_) {
    rows.Read(r, x);
    if (config_.normalise)
      LayerNorm(x, dim_, factor);
    else if (queries)
      for (int64_t i = 0; i < dim_; ++i) x[i] *= scale_;
  }
}

}  // namespace croquis::attention::polysketch
