#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
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

// Mean |r - r^|^2 / |r|^2 over 512 projections of 8 Gaussian rows each.
double Simulate(SignProjection::Kind kind, int64_t head_dim) {
  constexpr int kProjections = 512, kRows = 8;
  double sum = 0;
  for (int k = 0; k < kProjections; ++k) {
    const Stream rows = Stream{1, Purpose("turboquant.simulation")}.Sub(uint64_t(k));
    const auto p = SignProjection::Make(kind, head_dim, rows.purpose);
    if (!p) return 0;
    std::vector<float> x(static_cast<size_t>(head_dim)), y(static_cast<size_t>(p->Projections()));
    for (int r = 0; r < kRows; ++r) {
      double power = 0, error = 0;
      for (size_t i = 0; i < x.size(); ++i) x[i] = rows.Gaussian(uint64_t(r) * x.size() + i);
      for (float v : x) power += double(v) * double(v);
      p->Apply(x.data(), y.data());
      const float unit = p->Unit() * float(std::sqrt(power));
      for (float& v : y) v = v > 0 ? -unit : unit;
      p->AddBack(y.data(), x.data());  // x - x^
      for (float v : x) error += double(v) * double(v);
      sum += error / power / (kProjections * kRows);
    }
  }
  return sum;
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
  if (kind == Kind::kGaussian) return std::numbers::pi / 2 * d / m - 1 / m;
  if (m == d) return 1 / (d * u * u) - 1;
  static std::mutex mutex;
  static std::map<int64_t, double> known;
  const std::lock_guard lock(mutex);
  const auto [it, added] = known.try_emplace(head_dim);
  if (added) it->second = Simulate(kind, head_dim);
  return it->second;
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
