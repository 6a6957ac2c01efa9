#include "croquis/eval/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace croquis::eval {

double LogSumExp(std::span<const float> x) {
  if (x.empty()) return -std::numeric_limits<double>::infinity();
  const double m = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (float v : x) sum += std::exp(double(v) - m);
  return m + std::log(sum);
}

int32_t ArgMax(std::span<const float> x) {
  if (x.empty()) return -1;
  return int32_t(std::max_element(x.begin(), x.end()) - x.begin());
}

void ReferenceRow::Set(std::span<const float> logits) {
  const double lse = LogSumExp(logits);
  p_.resize(logits.size());
  log_p_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); i++) {
    log_p_[i] = double(logits[i]) - lse;
    p_[i] = std::exp(log_p_[i]);
  }
  top_ = ArgMax(logits);
}

RowDivergence ReferenceRow::Compare(std::span<const float> test, int32_t target) const {
  const double lse = LogSumExp(test);
  double kl = 0;
  for (size_t i = 0; i < test.size(); i++) kl += p_[i] * (log_p_[i] - (double(test[i]) - lse));
  RowDivergence row;
  row.kl = std::max(0.0, kl);  // rounding may leave -1e-16
  row.nll = target >= 0 ? lse - double(test[size_t(target)]) : 0;
  row.same_top = ArgMax(test) == top_;
  return row;
}

double Quantile(std::span<double> values, double q) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double at = std::clamp(q, 0.0, 1.0) * double(values.size() - 1);
  const auto lo = size_t(at);
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(lo), values.end());
  const double a = values[lo];
  if (lo + 1 >= values.size() || at == double(lo)) return a;
  const double b = *std::min_element(values.begin() + std::ptrdiff_t(lo) + 1, values.end());
  return a + (at - double(lo)) * (b - a);
}

double Mean(std::span<const double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (double v : values) sum += v;
  return sum / double(values.size());
}

void DivergenceCollector::Add(const RowDivergence& row, bool has_target) {
  kl_.push_back(row.kl);
  same_ += row.same_top ? 1 : 0;
  if (has_target) {
    nll_ += row.nll;
    targets_++;
  }
}

DivergenceSummary DivergenceCollector::Summary() const {
  DivergenceSummary s;
  s.positions = int64_t(kl_.size());
  std::vector<double> v = kl_;
  s.kl_mean = Mean(v);
  s.kl_median = Median(v);
  s.kl_p99 = Quantile(v, 0.99);
  s.kl_p999 = Quantile(v, 0.999);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  s.same_top = kl_.empty() ? nan : double(same_) / double(kl_.size());
  s.ppl = targets_ > 0 ? std::exp(nll_ / double(targets_)) : nan;
  return s;
}

}  // namespace croquis::eval
