// Gram matrices and triangular factors in double precision, by Eigen: least squares, leverage scores, ridge systems.
// Everything here runs on the calling thread and may be called from workers of an Executor.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "croquis/base/result.h"
#include "croquis/base/view.h"

namespace croquis::linalg {

// gram += sum_j w_j x_j x_j^T over the rows x_j of `rows` [n, d], products and sums in double; both triangles. gram is
// [d, d]; weights are n numbers >= 0, or none for 1 each.
void AddGram(MatView<const float> rows, std::span<const double> weights, MatView<double> gram);

// A = V diag(values) V^T for symmetric A [d, d] (its lower triangle is read): values ascending, row i of `vectors`
// [d, d] the unit eigenvector of values[i]. Errors: no convergence, as with NaN (kNumeric).
Status SymmetricEigen(MatView<const double> a, std::span<double> values, MatView<double> vectors);

// A symmetric positive definite matrix A = L L^T, kept as L.
class Cholesky {
 public:
  // A = 0, of dimension d >= 1; something must be added before it can solve (MinPivot() > 0).
  explicit Cholesky(int64_t dim);
  // A + ridge I for A [d, d], whose lower triangle is read. Errors: not positive definite (kNumeric).
  static Result<Cholesky> Make(MatView<const double> a, double ridge = 0);
  Cholesky(const Cholesky&);
  Cholesky& operator=(const Cholesky&);
  Cholesky(Cholesky&&) noexcept;
  Cholesky& operator=(Cholesky&&) noexcept;
  ~Cholesky();

  int64_t dim() const;
  // Bytes of the factor.
  int64_t bytes() const;
  // A += x x^T, by Givens rotations.
  void Add(std::span<const double> x);
  // A += sum_j (s_j x_j)(s_j x_j)^T over the rows of `rows` [n, d]; scales are n numbers, or none for 1 each. By
  // Householder reflections of [L^T; rows], so A itself is never formed and its condition number is not squared: rows
  // of very different sizes stay resolved (Golub and Van Loan, Matrix Computations, 6.5.3).
  void AddRows(MatView<const float> rows, std::span<const double> scales = {});
  // A += ridge I, in the same way; ridge >= 0.
  void AddRidge(double ridge);
  // A += scale^2 times other's A, in the same way; of the same dimension.
  void Add(const Cholesky& other, double scale = 1);

  // The smallest number on L's diagonal; 0: A is singular.
  double MinPivot() const;
  double LogDeterminant() const;
  // A, both triangles, [d, d].
  void Product(MatView<double> a) const;
  // L^-1, lower triangular, [d, d]. Needs MinPivot() > 0, as all below.
  void InverseLower(MatView<double> out) const;
  // Each row x of `rows` [n, d] becomes L^-1 x.
  void SolveLower(MatView<double> rows) const;
  // Each row x of `rows` becomes A^-1 x.
  void Solve(MatView<double> rows) const;
  // out[j] = x_j^T A^-1 x_j.
  void QuadraticForms(MatView<const float> rows, std::span<double> out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace croquis::linalg
