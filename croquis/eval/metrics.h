// How far one next-token distribution is from another, and summaries over many positions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace croquis::eval {

// Distance of a test distribution from a reference one at one position, from logits. Natural log, in double.
struct RowDivergence {
  double kl = 0;         // sum p_ref ln(p_ref / p_test), at least 0
  double nll = 0;        // -ln p_test[target]; 0 when there is no target
  bool same_top = true;  // both have their largest logit at the same id (ties: the lowest id)
};

// The reference side of a row, computed once and compared with any number of test rows.
class ReferenceRow {
 public:
  // logits [vocab], finite, vocab at least 1. Keeps probabilities and log-probabilities in double.
  void Set(std::span<const float> logits);
  // test [vocab] of the same size. target: the token that came next, or -1.
  RowDivergence Compare(std::span<const float> test, int32_t target) const;
  // -ln p_ref[target].
  double Nll(int32_t target) const { return -log_p_[size_t(target)]; }

 private:
  std::vector<double> p_, log_p_;
  int32_t top_ = 0;
};

// ln sum exp(x_i) in double; -infinity when x is empty.
double LogSumExp(std::span<const float> x);
// Index of the largest entry, the lowest of equals; -1 when empty.
int32_t ArgMax(std::span<const float> x);

// Quantile q in [0, 1] of the values, linear between order statistics (type 7 of Hyndman and Fan 1996, the default of
// NumPy and R). Reorders `values`. NaN when empty.
double Quantile(std::span<double> values, double q);
inline double Median(std::span<double> values) { return Quantile(values, 0.5); }
// Mean of the values, NaN when empty.
double Mean(std::span<const double> values);

// What is collected over positions, and its summary.
struct DivergenceSummary {
  int64_t positions = 0;
  double kl_mean = 0, kl_median = 0, kl_p99 = 0, kl_p999 = 0;  // nats
  double same_top = 0;                                         // share of positions, 0..1
  double ppl = 0;                                              // exp of the mean nll over positions with a target
};

class DivergenceCollector {
 public:
  // Adds one position; has_target says whether row.nll counts.
  void Add(const RowDivergence& row, bool has_target);
  DivergenceSummary Summary() const;

 private:
  std::vector<double> kl_;
  int64_t same_ = 0, targets_ = 0;
  double nll_ = 0;
};

}  // namespace croquis::eval
