#include "croquis/attention/lev/leverage_factor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/linalg/gemm.h"

namespace croquis::attention::lev {
namespace {

constexpr double kUnit = std::numeric_limits<double>::epsilon();
constexpr int64_t kParallelRows = 1024;
constexpr int64_t kPiece = 64;  // keys whose bounds are computed at a time

double SquaredNorm(const float* x, int64_t d) {
  double sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

}  // namespace

LeverageFactor::LeverageFactor(int64_t dim, double ridge)
    : dim_(dim), ridge_(ridge), gram_(dim, dim), inverse_(dim, dim), factor_(dim) {}

int64_t LeverageFactor::bytes() const {
  return factor_.bytes() + (gram_.rows() + inverse_.rows()) * dim_ * 8 + inverse32_.rows() * dim_ * 4;
}

// Sums of products: for each block an addition, whose rounding is relative to the trace, and in it sums of n products;
// then the factorisation, d of them. Against the least eigenvalue, 1 / inverse_norm2.
double LeverageFactor::ProductError(double inverse_norm2) const {
  return kUnit * double(products_ + 64 + dim_) * trace_ * inverse_norm2;
}

double LeverageFactor::Error() const {
  const double step = 8 * kUnit * std::sqrt(double(dim_));
  const double reflections = 2 * step * double(reflections_) * std::sqrt(double(dim_) / ridge_);
  return std::min(.5, largest_error_ + reflections);
}

// gram_ += the products, factor_ anew; whether its error stays within kTolerance (if not, factor_ is as before).
bool LeverageFactor::AddProducts(MatView<const float> keys, Executor* executor) {
  const int64_t pieces = executor == nullptr ? 1 : (keys.rows + kParallelRows - 1) / kParallelRows;
  products_ += pieces;
  if (pieces > 1) {
    std::vector<Matrix<double>> parts;
    parts.reserve(size_t(pieces));
    for (int64_t i = 0; i < pieces; ++i) parts.emplace_back(dim_, dim_);
    executor->ParallelFor(pieces, [&](int64_t i, int) {
      const int64_t first = i * kParallelRows;
      linalg::AddGram(keys.Rows(first, std::min(kParallelRows, keys.rows - first)), {}, parts[size_t(i)].View());
    });
    for (const Matrix<double>& part : parts)
      for (int64_t i = 0; i < dim_ * dim_; ++i) gram_.data()[i] += part.data()[i];
  } else {
    linalg::AddGram(keys, {}, gram_.View());
  }
  auto made = linalg::Cholesky::Make(gram_.View(), ridge_ * trace_ / double(dim_));
  if (!made) return false;
  made->InverseLower(inverse_.View());
  double norm2 = 0;
  for (int64_t i = 0; i < dim_ * dim_; ++i) norm2 += inverse_.data()[i] * inverse_.data()[i];
  const double error = ProductError(norm2);
  if (!(error <= kTolerance)) return false;
  largest_error_ = std::max(largest_error_, error);
  factor_ = std::move(*made);
  ridge_in_ = ridge_ * trace_ / double(dim_);
  inverse_norm2_ = norm2;
  return true;
}

void LeverageFactor::Add(MatView<const float> keys, Executor* executor) {
  const bool first = trace_ == 0;
  for (int64_t j = 0; j < keys.rows; ++j) trace_ += SquaredNorm(keys.Row(j), dim_);
  if (trace_ == 0) return;
  if (first || (!by_products_ && ProductError(inverse_norm2_) < kTolerance / 4)) {
    // Well conditioned: from here on by products. What reflections gave is rounded once more; its ridge stays in.
    by_products_ = true;
    ++products_;
    if (!first) factor_.Product(gram_.View());
    for (int64_t i = 0; i < dim_; ++i) gram_.Row(i)[i] -= ridge_in_;
  }
  by_products_ = by_products_ && AddProducts(keys, executor);
  if (!by_products_) {
    ++reflections_;
    if (executor != nullptr)
      factor_.Add(RidgeFactor(*executor, keys, {}, 0));
    else
      factor_.AddRows(keys);
    if (ridge_ * trace_ / double(dim_) > 2 * ridge_in_)
      RaiseRidge();
    else
      SetInverse();
  } else {
    SetInverse();
  }
}

void LeverageFactor::RaiseRidge() {
  const double want = ridge_ * trace_ / double(dim_);
  if (by_products_ || want <= ridge_in_) return;
  ++reflections_;
  factor_.AddRidge(want - ridge_in_);
  ridge_in_ = want;
  SetInverse();
}

void LeverageFactor::SetInverse() {
  if (!by_products_) {
    factor_.InverseLower(inverse_.View());
    inverse_norm2_ = 0;
    for (int64_t i = 0; i < dim_ * dim_; ++i) inverse_norm2_ += inverse_.data()[i] * inverse_.data()[i];
  }
  // f32 helps where its rounding, relative to the largest direction, is small beside the smallest one, and where
  // neither the numbers nor their products leave its range.
  const bool useful = trace_ * inverse_norm2_ < 1e8 && inverse_norm2_ < 1e24 && inverse_norm2_ > 1e-24;
  if (!useful) {
    inverse32_ = {};
    return;
  }
  if (inverse32_.rows() == 0) inverse32_ = Matrix<float>(dim_, dim_);
  for (int64_t i = 0; i < dim_ * dim_; ++i) inverse32_.data()[i] = float(inverse_.data()[i]);
}

void LeverageFactor::UpperBounds(MatView<const float> keys, double care, std::span<double> bounds) const {
  if (empty()) {
    for (int64_t j = 0; j < keys.rows; ++j)
      bounds[size_t(j)] = SquaredNorm(keys.Row(j), dim_) > 0 ? std::numeric_limits<double>::infinity() : 0;
    return;
  }
  std::vector<int64_t> again;
  if (inverse32_.rows() == 0) {
    factor_.QuadraticForms(keys, bounds);
    return;
  }
  Matrix<float> z(std::min(kPiece, keys.rows), dim_);
  // |fl(x) - x| <= (d + 2) 2^-24 |L^-1|_F |k| for the rounded inverse and sums of d products in any order.
  const double rounding = double(dim_ + 2) * 0x1p-24 * std::sqrt(inverse_norm2_);
  for (int64_t first = 0; first < keys.rows; first += kPiece) {
    const int64_t n = std::min(kPiece, keys.rows - first);
    linalg::Gemm(false, true, 1, keys.Rows(first, n), inverse32_.View(), 0, z.View().Rows(0, n));
    for (int64_t j = 0; j < n; ++j) {
      const double norm = SquaredNorm(keys.Row(first + j), dim_);
      const double root = std::sqrt(SquaredNorm(z.Row(j), dim_)) + rounding * std::sqrt(norm) + 1e-30;
      bounds[size_t(first + j)] = norm > 0 ? root * root : 0;
      if (!(bounds[size_t(first + j)] < care) && norm > 0) again.push_back(first + j);
    }
  }
  if (again.empty()) return;
  Matrix<float> rows(int64_t(again.size()), dim_);
  for (size_t i = 0; i < again.size(); ++i) std::copy_n(keys.Row(again[i]), dim_, rows.Row(int64_t(i)));
  std::vector<double> forms(again.size());
  factor_.QuadraticForms(rows.View(), forms);
  for (size_t i = 0; i < again.size(); ++i) bounds[size_t(again[i])] = forms[i];
}

}  // namespace croquis::attention::lev
