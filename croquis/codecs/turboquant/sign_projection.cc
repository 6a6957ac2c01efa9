#include <algorithm>
#include <cmath>
#include <numbers>

#include "croquis/codecs/turboquant/prod.h"

namespace croquis::codecs {
namespace {

// E|u_1| of a uniform point u of the unit sphere in R^d.
double MeanAbsCoordinate(double d) {
  return std::exp(std::lgamma(d / 2) - std::lgamma((d + 1) / 2)) / std::sqrt(std::numbers::pi);
}

// Eight running sums in a fixed order: the same bits on every machine.
float Dot(const float* a, const float* b, int64_t n) {
  float s[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int64_t k = 0; k < 8; ++k) s[k] += a[i + k] * b[i + k];
  for (int64_t k = 0; i + k < n; ++k) s[k] += a[i + k] * b[i + k];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

}  // namespace

Result<SignProjection> SignProjection::Make(Kind kind, int64_t head_dim, uint64_t seed) {
  SignProjection p;
  const int64_t m = transforms::Rotation::Padded(head_dim);
  const double d = double(head_dim);
  p.head_dim_ = head_dim;
  p.projections_ = m;
  if (kind == Kind::kOrthogonal) {
    // Signs of their own; two rounds because 1-bit codes of one round are biased on sparse rows.
    CROQUIS_TRY(p.rotation_, transforms::Rotation::Make(head_dim, 2, seed ^ Purpose("turboquant.signs")));
    p.unit_ = float(1 / (std::sqrt(double(m) * d) * MeanAbsCoordinate(d)));
    return p;
  }
  const Stream entries{seed, Purpose("turboquant.gaussian")};
  const float unit = float(1 / std::sqrt(d));
  p.rows_.resize(size_t(m * head_dim));
  for (size_t i = 0; i < p.rows_.size(); ++i) p.rows_[i] = unit * entries.Gaussian(i);
  p.unit_ = float(std::sqrt(std::numbers::pi / 2 * d) / double(m));
  return p;
}

double SignProjection::RelMse(Kind kind, int64_t head_dim) {
  const double d = double(head_dim), m = double(transforms::Rotation::Padded(head_dim)), u = MeanAbsCoordinate(d);
  return kind == Kind::kOrthogonal ? 1 / (d * u * u) - 1 : std::numbers::pi / 2 * d / m - 1 / m;
}

void SignProjection::Apply(const float* x, float* y) const noexcept {
  if (rotation_) return rotation_->Apply(x, y);
  for (int64_t j = 0; j < projections_; ++j) y[j] = Dot(rows_.data() + j * head_dim_, x, head_dim_);
}

void SignProjection::AddBack(const float* y, float* x) const noexcept {
  if (rotation_) {
    alignas(64) float back[transforms::Rotation::kMaxDim];
    rotation_->Inverse(y, back);
    for (int64_t i = 0; i < head_dim_; ++i) x[i] += back[i];
    return;
  }
  for (int64_t j = 0; j < projections_; ++j)
    for (int64_t i = 0; i < head_dim_; ++i) x[i] += y[j] * rows_[size_t(j * head_dim_ + i)];
}

}  // namespace croquis::codecs
