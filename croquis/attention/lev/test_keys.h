// For tests of lev: keys, queries that try to find a bound wrong, scores by definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/base/rng.h"
#include "croquis/base/view.h"

namespace croquis::attention::lev::testing {

inline Matrix<float> Gaussian(int64_t n, int64_t d, uint64_t seed) {
  Matrix<float> keys(n, d);
  const Stream random{seed, Purpose("test.lev.keys")};
  for (int64_t i = 0; i < n * d; ++i) keys.data()[i] = random.Gaussian(uint64_t(i));
  return keys;
}

// Keys of a space of `rank` dimensions, up to rounding.
inline Matrix<float> LowRank(int64_t n, int64_t d, int64_t rank, uint64_t seed) {
  const Matrix<float> mix = Gaussian(n, rank, seed), base = Gaussian(rank, d, seed + 1);
  Matrix<float> keys(n, d);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < d; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < rank; ++r) sum += double(mix.Row(j)[r]) * double(base.Row(r)[i]);
      keys.Row(j)[i] = float(sum);
    }
  return keys;
}

// weights[j] = |<k_j, y>|^p / sum_l |<k_l, y>|^p; zeros when y sees nothing.
inline void Score(const Matrix<float>& keys, const std::vector<double>& y, double p, std::vector<double>& weights) {
  double top = 0, sum = 0;
  for (int64_t j = 0; j < keys.rows(); ++j) {
    double x = 0;
    for (int64_t i = 0; i < keys.cols(); ++i) x += double(keys.Row(j)[i]) * y[size_t(i)];
    top = std::max(top, weights[size_t(j)] = std::abs(x));
  }
  for (double& w : weights) sum += w = top > 0 ? std::pow(w / top, p) : 0;
  if (sum > 0)
    for (double& w : weights) w /= sum;
}

// Calls fn(y) for `random` Gaussian queries and, for each key, for its direction and for the query that p-scores it
// highest as far as ten steps of reweighted least squares find it.
template <class F>
void ForHardQueries(const Matrix<float>& keys, double p, int64_t random, const F& fn) {
  const int64_t n = keys.rows(), d = keys.cols();
  std::vector<double> y(static_cast<size_t>(d)), scores(static_cast<size_t>(n)), scales(static_cast<size_t>(n));
  const Stream stream{3, Purpose("test.lev.hard")};
  for (int64_t r = 0; r < random; ++r) {
    for (int64_t i = 0; i < d; ++i) y[size_t(i)] = double(stream.Sub(uint64_t(r)).Gaussian(uint64_t(i)));
    fn(y);
  }
  Executor executor;
  const linalg::Cholesky gram = RidgeFactor(executor, keys.View(), {}, kDefaultRidge);
  if (gram.MinPivot() <= 0) return;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < d; ++i) y[size_t(i)] = double(keys.Row(j)[i]);
    fn(y);
    for (int step = 0; step < (p == 2 ? 1 : 10); ++step) {
      // The highest score is that of the y with <k_j, y> = 1 and least sum |<k_l, y>|^p: least squares with weights
      // |<k_l, y>|^(p-2), damped for p > 2 where the plain steps overshoot.
      Score(keys, y, p, scores);
      const double top = *std::max_element(scores.begin(), scores.end());
      for (size_t l = 0; l < size_t(n); ++l)
        scales[l] = step == 0 ? 1
                              : std::pow(std::max(scores[l] / top, 1e-9), (p - 2) / (2 * p)) *
                                    (p > 2 ? std::pow(scales[l], .5) : 1);
      Matrix<double> next(1, d);
      for (int64_t i = 0; i < d; ++i) next.Row(0)[i] = double(keys.Row(j)[i]);
      if (step == 0)
        gram.Solve(next.View());
      else
        RidgeFactor(executor, keys.View(), scales, kDefaultRidge).Solve(next.View());
      y.assign(next.data(), next.data() + d);
      fn(y);
    }
  }
}

}  // namespace croquis::attention::lev::testing
