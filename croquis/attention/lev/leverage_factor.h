// The matrix that leverage is measured with, growing by blocks of keys: as fast as its condition allows, and knowing
// its own error.
#pragma once

#include <cstdint>
#include <span>

#include "croquis/base/executor.h"
#include "croquis/base/view.h"
#include "croquis/linalg/factor.h"

namespace croquis::attention::lev {

// A = sum of k k^T over the keys so far + ridge * (trace / d) I, and upper bounds of k^T A^-1 k.
//
// While A is well conditioned it is kept as a sum of products in double (six times cheaper than reflections), and most
// bounds are computed in f32 with a bound on their rounding error added; what comes out near the caller's threshold is
// computed again in double. When the error of the sums could exceed kTolerance of some k^T A^-1 k, blocks are taken in
// by Householder reflections of the keys themselves, until the condition is better. The test is rigorous: with
// |L^-1|_F^2 = s the least eigenvalue of A is at least 1 / s.
class LeverageFactor {
 public:
  static constexpr double kTolerance = 1e-6;

  LeverageFactor(int64_t dim, double ridge);

  // Takes in keys [n, d], many at once in parallel if there is an executor. With reflections the ridge may stay behind
  // by half, which makes bounds larger, not smaller.
  void Add(MatView<const float> keys, Executor* executor = nullptr);
  // Brings the ridge up to the trace.
  void RaiseRidge();
  // No keys but zeros so far.
  bool empty() const { return trace_ == 0; }

  // bounds[j] >= k_j^T A^-1 k_j for keys [n, d], up to Error(); tight to 1e-5 where it is `care` or more, and in most
  // cases below. +infinity for all while empty() (0 for zero keys).
  void UpperBounds(MatView<const float> keys, double care, std::span<double> bounds) const;
  // What rounding can have done to k^T A^-1 k, relative. Of reflections it is some units in the last place of the whole
  // matrix for every block, ten times what is seen, measured with the least that A can have, the ridge.
  double Error() const;
  int64_t bytes() const;

 private:
  bool AddProducts(MatView<const float> keys, Executor* executor);
  void SetInverse();
  double ProductError(double inverse_norm2) const;

  int64_t dim_;
  double ridge_, ridge_in_ = 0, trace_ = 0, largest_error_ = 0;
  int64_t products_ = 0, reflections_ = 0;  // blocks taken in either way
  bool by_products_ = false;                // gram_ holds A's sum of products
  Matrix<double> gram_, inverse_;           // inverse_: L^-1
  linalg::Cholesky factor_;
  double inverse_norm2_ = 0;  // |L^-1|_F^2
  Matrix<float> inverse32_;   // L^-1 in f32; empty where f32 cannot say anything
};

}  // namespace croquis::attention::lev
