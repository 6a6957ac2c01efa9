#include "croquis/attention/lev/streaming.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "croquis/base/check.h"

namespace croquis::attention::lev {
namespace {

constexpr int64_t kMostPending = 512;
constexpr int kReweighings = 8;  // bounds hold for any weights; more iterations make them hardly tighter

double SquaredNorm(const float* x, int64_t d) {
  double sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

}  // namespace

StreamingLeverage::StreamingLeverage(const Options& options)
    : o_(options), leverage_(options.dim, options.ridge), factor_(options.dim) {
  CROQUIS_DCHECK(o_.dim > 0 && o_.p >= 1 && o_.eps > 0 && o_.ridge >= kLeastRidge);
}

MatView<const float> StreamingLeverage::Rows(int64_t first) const {
  return {keys_.data() + first * o_.dim, int64_t(index_.size()) - first, o_.dim};
}

double StreamingLeverage::Margin() const {
  if (o_.p == 2) return leverage_.Error() + 1e-12;
  // Reflections only, see LeverageFactor::Error().
  const double step = 8 * std::numeric_limits<double>::epsilon() * std::sqrt(double(o_.dim));
  return std::min(.5, 2 * step * double(chunks_ + 1) * std::sqrt(double(o_.dim) / o_.ridge));
}

double StreamingLeverage::Epsilon() const { return lost_ / (1 - Margin()); }

int64_t StreamingLeverage::bytes() const {
  return int64_t(index_.size()) * (int64_t(sizeof(int64_t)) + o_.dim * 4 + 16) + int64_t(pending_.capacity()) * 4 +
         (o_.p == 2 ? leverage_.bytes() : factor_.bytes());
}

void StreamingLeverage::Append(MatView<const float> keys) {
  CROQUIS_DCHECK(keys.cols == o_.dim);
  for (int64_t r = 0; r < keys.rows; ++r) {
    index_.push_back(seen_++);
    keys_.insert(keys_.end(), keys.Row(r), keys.Row(r) + o_.dim);
    weights_.push_back(1);
    bounds_.push_back(1);
    if (++open_ == kChunk) {
      CloseChunk();
      SweepIfDue();
    }
  }
}

void StreamingLeverage::Prune() {
  CloseChunk();
  Sweep();
}

void StreamingLeverage::CloseChunk() {
  if (open_ == 0) return;
  ++chunks_;
  const int64_t first = int64_t(index_.size()) - open_;
  open_ = 0;
  for (int64_t j = first; j < int64_t(index_.size()); ++j)
    if (SquaredNorm(keys_.data() + j * o_.dim, o_.dim) == 0) weights_[size_t(j)] = bounds_[size_t(j)] = 0;
  if (o_.p > 2) return;  // kept until the next reduction
  // With `top` a key somewhat below the last cut may yet outlive those above it.
  const double below = o_.top > 0 ? cut_ / 2 : o_.eps * (1 - Margin());
  if (o_.p == 2)
    Judge(Rows(first), below);
  else
    AdmitWeighted(Rows(first));
  Evict(first, below);
  const int64_t most = WarmingUp() ? kMostPending : std::clamp<int64_t>(seen_ / 8, kChunk, kMostPending);
  if (int64_t(pending_.size()) >= most * o_.dim) TakeInPending();
}

bool StreamingLeverage::WarmingUp() const {
  return o_.p == 2 && (o_.top > 0 ? seen_ <= o_.top : double(seen_) * o_.eps <= double(o_.dim));
}

// p = 2: bounds of the last rows kept, against the factor as it is and themselves.
void StreamingLeverage::Judge(MatView<const float> chunk, double below) {
  const std::span<double> bounds = std::span(bounds_).last(size_t(chunk.rows));
  if (!WarmingUp()) {
    leverage_.UpperBounds(chunk, below < 1 ? below / (1 - below) : std::numeric_limits<double>::infinity(), bounds);
    for (double& a : bounds) a = std::isinf(a) ? 1 : a / (1 + a);
  }
  pending_.insert(pending_.end(), chunk.data, chunk.data + chunk.rows * o_.dim);
}

void StreamingLeverage::TakeInPending() {
  if (pending_.empty()) return;
  leverage_.Add({pending_.data(), int64_t(pending_.size()) / o_.dim, o_.dim});
  pending_.clear();
}

// p < 2: gives the last rows kept their weights, takes them into the factor and bounds them.
void StreamingLeverage::AdmitWeighted(MatView<const float> chunk) {
  const std::span<double> weights = std::span(weights_).last(size_t(chunk.rows));
  double trace = 0;
  for (int64_t j = 0; j < chunk.rows; ++j) trace += SquaredNorm(chunk.Row(j), o_.dim);
  if (trace == 0) return;
  trace_ += trace;
  if (ridge_in_ == 0) RaiseRidge();
  factor_.AddRows(chunk);
  // With weight 1 for the chunk the factor is at most what it becomes, so these weights are at least the leverages.
  std::vector<double> more(weights.size());
  factor_.QuadraticForms(chunk, more);
  trace = 0;
  for (size_t j = 0; j < weights.size(); ++j) {
    if (weights[j] <= 0) continue;
    weights[j] = std::clamp(std::pow(more[j], o_.p / 2), 1e-100, 1.);
    more[j] = std::sqrt(std::pow(weights[j], 1 - 2 / o_.p) - 1);
    trace += more[j] * more[j] * SquaredNorm(chunk.Row(int64_t(j)), o_.dim);
  }
  factor_.AddRows(chunk, more);
  trace_ += trace;
  BoundsForSmallP(chunk, std::span(bounds_).last(size_t(chunk.rows)));
}

// p < 2: w (t / w)^(p/2) with t = w^(1 - 2/p) k^T A^-1 k, in which the weight cancels: (k^T A^-1 k)^(p/2).
void StreamingLeverage::BoundsForSmallP(MatView<const float> keys, std::span<double> bounds) const {
  if (factor_.MinPivot() <= 0) {  // no key but zeros so far
    std::fill(bounds.begin(), bounds.end(), 0.);
    return;
  }
  factor_.QuadraticForms(keys, bounds);
  for (double& b : bounds) b = std::pow(b, o_.p / 2);
}

// The ridge grows with the trace and is brought up to date now and then: too little of it makes bounds too large.
void StreamingLeverage::RaiseRidge() {
  const double want = o_.ridge * trace_ / double(o_.dim);
  if (want <= ridge_in_) return;
  factor_.AddRidge(want - ridge_in_);
  ridge_in_ = want;
}

void StreamingLeverage::SweepIfDue() {
  if (WarmingUp()) return;
  const int64_t kept = int64_t(index_.size());
  if (o_.p > 2) {
    // A reduction costs kReweighings factorisations of all kept keys.
    if (kept >= 2 * swept_kept_ + 4 * kChunk) Sweep();
  } else if ((o_.p == 2 && o_.top == 0 && double(kept) * o_.eps > double(o_.dim)) ||
             kept >= swept_kept_ + swept_kept_ / 4 + kChunk ||
             (seen_ >= swept_seen_ + swept_seen_ / 2 + kChunk && kept > 0)) {
    Sweep();
  }
}

void StreamingLeverage::Sweep() {
  if (o_.p > 2) {
    ReweighForLargeP();
  } else if (o_.p == 2) {
    TakeInPending();
    leverage_.RaiseRidge();
    leverage_.UpperBounds(Rows(0), 0, bounds_);
  } else {
    RaiseRidge();
    BoundsForSmallP(Rows(0), bounds_);
  }
  double below = o_.eps * (1 - Margin());
  if (o_.top > 0) {
    below = 0;
    if (int64_t(bounds_.size()) > o_.top) {
      std::vector<double> order = bounds_;
      std::nth_element(order.begin(), order.begin() + (o_.top - 1), order.end(), std::greater<>());
      below = cut_ = order[size_t(o_.top - 1)];
    }
  }
  generation_ += Evict(0, below);
  swept_kept_ = int64_t(index_.size());
  swept_seen_ = seen_;
}

// p > 2: Lewis weights of the kept keys and of the stand-in, then SensitivityBounds of the kept keys. Sums here run
// over both; the stand-in's part of the factor is W^(1 - 2/p) n^(2/p - 1) G for n dropped keys with Gram matrix G.
void StreamingLeverage::ReweighForLargeP() {
  const int64_t n = int64_t(index_.size());
  const double half = .5 - 1 / o_.p;
  std::vector<double> scales(static_cast<size_t>(n));
  for (int iteration = 0; iteration <= kReweighings; ++iteration) {
    double trace = 0, sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      const double w = weights_[size_t(j)];
      scales[size_t(j)] = w > 0 ? std::pow(w, half) : 0;
      trace += scales[size_t(j)] * scales[size_t(j)] * SquaredNorm(keys_.data() + j * o_.dim, o_.dim);
      sum += w;
    }
    linalg::Cholesky all(o_.dim);
    all.AddRows(Rows(0), scales);
    if (dropped_ > 0) {
      const double scale = std::pow(group_weight_, half) * std::pow(dropped_, -half);
      all.Add(factor_, scale);
      trace += scale * scale * trace_;
    }
    if (trace == 0) {
      std::fill(bounds_.begin(), bounds_.end(), 0.);
      return;
    }
    all.AddRidge(o_.ridge * trace / double(o_.dim));
    all.QuadraticForms(Rows(0), bounds_);
    double taken = 0;
    for (size_t j = 0; j < bounds_.size(); ++j) taken += bounds_[j] *= scales[j] * scales[j];
    if (iteration == kReweighings) {
      const double factor = std::pow(sum + group_weight_, o_.p / 2 - 1);
      for (size_t j = 0; j < bounds_.size(); ++j)
        bounds_[j] = weights_[j] > 0 ? weights_[j] * std::pow(bounds_[j] / weights_[j], o_.p / 2) * factor : 0;
      return;
    }
    for (size_t j = 0; j < bounds_.size(); ++j) weights_[j] = weights_[j] > 0 ? std::max(bounds_[j], 1e-100) : 0;
    // Leverages add up to d: the rest of it is the stand-in's.
    if (dropped_ > 0) group_weight_ = std::max(double(o_.dim) - taken, 1e-6);
  }
}

// Drops those of the rows from `first` on whose bounds are below `below`, and zero keys. Whether there were any.
bool StreamingLeverage::Evict(int64_t first, double below) {
  const size_t n = index_.size();
  auto to = size_t(first);
  std::vector<float> gone;
  for (auto j = size_t(first); j < n; ++j) {
    const float* row = keys_.data() + int64_t(j) * o_.dim;
    if (bounds_[j] <= 0 || bounds_[j] < below) {
      lost_ = std::max(lost_, bounds_[j]);
      if (o_.p > 2 && weights_[j] > 0) gone.insert(gone.end(), row, row + o_.dim);
      continue;
    }
    if (to != j) {
      index_[to] = index_[j], weights_[to] = weights_[j], bounds_[to] = bounds_[j];
      std::copy(row, row + o_.dim, keys_.begin() + int64_t(to) * o_.dim);
    }
    ++to;
  }
  if (to == n) return false;
  index_.resize(to), weights_.resize(to), bounds_.resize(to);
  keys_.resize(to * size_t(o_.dim));
  if (gone.empty()) return true;
  const MatView<const float> rows(gone.data(), int64_t(gone.size()) / o_.dim, o_.dim);
  factor_.AddRows(rows);
  for (int64_t j = 0; j < rows.rows; ++j) trace_ += SquaredNorm(rows.Row(j), o_.dim);
  if (dropped_ == 0) group_weight_ = 1;
  dropped_ += double(rows.rows);
  return true;
}

}  // namespace croquis::attention::lev
