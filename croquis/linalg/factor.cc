#include "croquis/linalg/factor.h"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <string>

namespace croquis::linalg {
namespace {

using ColMatrix = Eigen::MatrixXd;
using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Strided = Eigen::OuterStride<>;

constexpr int64_t kChunk = 128;     // rows that a product or a solve takes at a time: they stay in the caches
constexpr int64_t kMaxStack = 512;  // rows that one factorisation takes in

auto View(MatView<const double> m) {
  return Eigen::Map<const RowMatrix, 0, Strided>(m.data, m.rows, m.cols, Strided(m.stride));
}
auto View(MatView<double> m) { return Eigen::Map<RowMatrix, 0, Strided>(m.data, m.rows, m.cols, Strided(m.stride)); }

// Rows first .. first + n as columns [d, n] of double, column j times scale(j).
template <class Scale>
void ReadColumns(MatView<const float> rows, int64_t first, int64_t n, const Scale& scale, ColMatrix& out) {
  out.resize(rows.cols, n);
  for (int64_t j = 0; j < n; ++j) {
    const float* from = rows.Row(first + j);
    const double s = scale(first + j);
    for (int64_t i = 0; i < rows.cols; ++i) out(i, j) = s * double(from[i]);
  }
}

}  // namespace

void AddGram(MatView<const float> rows, std::span<const double> weights, MatView<double> gram) {
  CROQUIS_DCHECK(gram.rows == rows.cols && gram.cols == rows.cols);
  CROQUIS_DCHECK(weights.empty() || int64_t(weights.size()) == rows.rows);
  const auto root = [&](int64_t j) { return weights.empty() ? 1 : std::sqrt(weights[size_t(j)]); };
  ColMatrix sum = ColMatrix::Zero(rows.cols, rows.cols), x;
  for (int64_t first = 0; first < rows.rows; first += kChunk) {
    ReadColumns(rows, first, std::min(kChunk, rows.rows - first), root, x);
    sum.selfadjointView<Eigen::Lower>().rankUpdate(x);
  }
  View(gram) += ColMatrix(sum.selfadjointView<Eigen::Lower>());
}

Status SymmetricEigen(MatView<const double> a, std::span<double> values, MatView<double> vectors) {
  CROQUIS_DCHECK(a.rows == a.cols && vectors.rows == a.rows && vectors.cols == a.rows);
  CROQUIS_DCHECK(int64_t(values.size()) == a.rows);
  const ColMatrix matrix = View(a);
  if (!matrix.allFinite()) return Numeric("the eigenvalues of a matrix that is not finite were asked for");
  const Eigen::SelfAdjointEigenSolver<ColMatrix> solver(matrix);
  if (solver.info() != Eigen::Success)
    return Numeric("the eigenvalues of a symmetric matrix of dimension " + std::to_string(a.rows) +
                   " did not converge");
  std::copy_n(solver.eigenvalues().data(), a.rows, values.begin());
  View(vectors) = solver.eigenvectors().transpose();
  return {};
}

struct Cholesky::Impl {
  explicit Impl(int64_t d) : lower(ColMatrix::Zero(d, d)) {}
  // lower := the factor of lower lower^T + stack^T stack's lower rows, where `stack` [d + n, d] holds n rows below room
  // for L^T. Destroys `stack`.
  void Absorb(ColMatrix& stack) {
    const int64_t d = lower.rows();
    stack.topRows(d) = lower.transpose();
    const Eigen::HouseholderQR<Eigen::Ref<ColMatrix>> qr(stack);
    lower = stack.topRows(d).transpose().triangularView<Eigen::Lower>();
    for (int64_t i = 0; i < d; ++i)
      if (lower(i, i) < 0) lower.col(i) = -lower.col(i);
  }

  ColMatrix lower;
};

Cholesky::Cholesky(int64_t dim) : impl_(std::make_unique<Impl>(dim)) {}
Cholesky::Cholesky(const Cholesky& from) : impl_(std::make_unique<Impl>(*from.impl_)) {}
Cholesky& Cholesky::operator=(const Cholesky& from) {
  if (this != &from) impl_ = std::make_unique<Impl>(*from.impl_);
  return *this;
}
Cholesky::Cholesky(Cholesky&&) noexcept = default;
Cholesky& Cholesky::operator=(Cholesky&&) noexcept = default;
Cholesky::~Cholesky() = default;

Result<Cholesky> Cholesky::Make(MatView<const double> a, double ridge) {
  CROQUIS_DCHECK(a.rows == a.cols);
  ColMatrix matrix = View(a);
  matrix.diagonal().array() += ridge;
  const Eigen::LLT<ColMatrix> llt(matrix);
  // LLT lets NaN pass.
  const ColMatrix lower = llt.matrixL();
  if (llt.info() != Eigen::Success || !lower.allFinite())
    return Numeric("a matrix of dimension " + std::to_string(a.rows) +
                   " is not positive definite; a larger ridge (now " + std::to_string(ridge) + ") makes it so");
  Cholesky made(a.rows);
  made.impl_->lower = lower;
  return made;
}

int64_t Cholesky::dim() const { return impl_->lower.rows(); }
int64_t Cholesky::bytes() const { return dim() * dim() * int64_t(sizeof(double)); }

void Cholesky::Add(std::span<const double> x) {
  CROQUIS_DCHECK(int64_t(x.size()) == dim());
  ColMatrix& lower = impl_->lower;
  Eigen::VectorXd rest = Eigen::Map<const Eigen::VectorXd>(x.data(), dim());
  for (int64_t i = 0; i < dim(); ++i) {
    if (rest(i) == 0) continue;
    const double r = std::hypot(lower(i, i), rest(i)), c = lower(i, i) / r, s = rest(i) / r;
    const int64_t below = dim() - i - 1;
    lower(i, i) = r;
    auto column = lower.col(i).tail(below);
    auto tail = rest.tail(below);
    const Eigen::VectorXd before = column;
    column = c * before + s * tail;
    tail = c * tail - s * before;
  }
}

void Cholesky::AddRows(MatView<const float> rows, std::span<const double> scales) {
  CROQUIS_DCHECK(rows.cols == dim() && (scales.empty() || int64_t(scales.size()) == rows.rows));
  const int64_t d = dim();
  ColMatrix stack;
  for (int64_t first = 0; first < rows.rows; first += kMaxStack) {
    const int64_t n = std::min(kMaxStack, rows.rows - first);
    stack.resize(d + n, d);
    for (int64_t j = 0; j < n; ++j) {
      const float* from = rows.Row(first + j);
      const double scale = scales.empty() ? 1 : scales[size_t(first + j)];
      for (int64_t i = 0; i < d; ++i) stack(d + j, i) = scale * double(from[i]);
    }
    impl_->Absorb(stack);
  }
}

void Cholesky::AddRidge(double ridge) {
  const int64_t d = dim();
  ColMatrix stack(2 * d, d);
  stack.bottomRows(d) = std::sqrt(ridge) * ColMatrix::Identity(d, d);
  impl_->Absorb(stack);
}

void Cholesky::Add(const Cholesky& other, double scale) {
  CROQUIS_DCHECK(other.dim() == dim());
  ColMatrix stack(2 * dim(), dim());
  stack.bottomRows(dim()) = scale * other.impl_->lower.transpose();
  impl_->Absorb(stack);
}

double Cholesky::MinPivot() const { return impl_->lower.diagonal().minCoeff(); }
double Cholesky::LogDeterminant() const { return 2 * impl_->lower.diagonal().array().log().sum(); }

void Cholesky::Product(MatView<double> a) const {
  CROQUIS_DCHECK(a.rows == dim() && a.cols == dim());
  View(a) = impl_->lower * impl_->lower.transpose();
}

void Cholesky::InverseLower(MatView<double> out) const {
  CROQUIS_DCHECK(out.rows == dim() && out.cols == dim());
  View(out) = impl_->lower.triangularView<Eigen::Lower>().solve(ColMatrix::Identity(dim(), dim()));
}

void Cholesky::SolveLower(MatView<double> rows) const {
  CROQUIS_DCHECK(rows.cols == dim());
  auto x = View(rows);
  // Rows of a row-major matrix are columns of its transpose: L X^T = B^T.
  impl_->lower.triangularView<Eigen::Lower>().transpose().solveInPlace<Eigen::OnTheRight>(x);
}

void Cholesky::Solve(MatView<double> rows) const {
  SolveLower(rows);
  auto x = View(rows);
  impl_->lower.triangularView<Eigen::Lower>().solveInPlace<Eigen::OnTheRight>(x);
}

void Cholesky::QuadraticForms(MatView<const float> rows, std::span<double> out) const {
  CROQUIS_DCHECK(rows.cols == dim() && int64_t(out.size()) == rows.rows);
  ColMatrix x;
  for (int64_t first = 0; first < rows.rows; first += kChunk) {
    const int64_t n = std::min(kChunk, rows.rows - first);
    ReadColumns(
        rows, first, n, [](int64_t) { return 1.; }, x);
    impl_->lower.triangularView<Eigen::Lower>().solveInPlace(x);
    for (int64_t j = 0; j < n; ++j) out[size_t(first + j)] = x.col(j).squaredNorm();
  }
}

}  // namespace croquis::linalg
