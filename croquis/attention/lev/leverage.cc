#include "croquis/attention/lev/leverage.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

namespace croquis::attention::lev {
namespace {

constexpr int64_t kPieceRows = 1024;

int64_t Pieces(int64_t rows) { return (rows + kPieceRows - 1) / kPieceRows; }

// Calls fn(first, n) for pieces of rows.
template <class F>
void ForPieces(Executor& executor, int64_t rows, const F& fn) {
  executor.ParallelFor(Pieces(rows), [&](int64_t piece, int) {
    const int64_t first = piece * kPieceRows;
    fn(first, std::min(kPieceRows, rows - first));
  });
}

double SquaredNorm(const float* x, int64_t d) {
  double sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

// out[j] = k_j^T A^-1 k_j; zeros when all keys are zero.
void Forms(Executor& executor, const linalg::Cholesky& a, MatView<const float> keys, std::span<double> out) {
  if (a.MinPivot() <= 0) {
    std::fill(out.begin(), out.end(), 0.);
    return;
  }
  ForPieces(executor, keys.rows, [&](int64_t first, int64_t n) {
    a.QuadraticForms(keys.Rows(first, n), out.subspan(size_t(first), size_t(n)));
  });
}

// s_j = w_j^(1/2 - 1/p); 0 for w_j = 0.
void Scales(double p, std::span<const double> weights, std::span<double> scales) {
  for (size_t j = 0; j < weights.size(); ++j) scales[j] = weights[j] > 0 ? std::pow(weights[j], 0.5 - 1 / p) : 0;
}

}  // namespace

linalg::Cholesky RidgeFactor(Executor& executor, MatView<const float> keys, std::span<const double> scales,
                             double ridge) {
  const int64_t d = keys.cols, pieces = Pieces(keys.rows);
  std::vector<std::optional<linalg::Cholesky>> parts(static_cast<size_t>(pieces));
  std::vector<double> traces(static_cast<size_t>(pieces));
  ForPieces(executor, keys.rows, [&](int64_t first, int64_t n) {
    const auto piece = size_t(first / kPieceRows);
    parts[piece].emplace(d);
    parts[piece]->AddRows(keys.Rows(first, n), scales.empty() ? scales : scales.subspan(size_t(first), size_t(n)));
    for (int64_t j = first; j < first + n; ++j) {
      const double s = scales.empty() ? 1 : scales[size_t(j)];
      traces[piece] += s * s * SquaredNorm(keys.Row(j), d);
    }
  });
  linalg::Cholesky sum(d);
  double trace = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    trace += traces[i];
    if (i == 0)
      sum = std::move(*parts[i]);
    else
      sum.Add(*parts[i]);
  }
  if (trace > 0) sum.AddRidge(ridge * trace / double(d));
  return sum;
}

void LeverageScores(Executor& executor, MatView<const float> keys, double ridge, std::span<double> scores) {
  Forms(executor, RidgeFactor(executor, keys, {}, ridge), keys, scores);
}

LewisReport LewisWeights(Executor& executor, MatView<const float> keys, double p, double ridge,
                         std::span<double> weights, int max_iterations, double tolerance) {
  const auto n = size_t(keys.rows);
  std::vector<double> scales(n), forms(n);
  int64_t nonzero = 0;
  for (size_t j = 0; j < n; ++j) nonzero += SquaredNorm(keys.Row(int64_t(j)), keys.cols) > 0;
  for (size_t j = 0; j < n; ++j)
    weights[j] = SquaredNorm(keys.Row(int64_t(j)), keys.cols) > 0
                     ? std::min(1., double(keys.cols) / double(std::max<int64_t>(nonzero, 1)))
                     : 0;
  LewisReport report;
  while (report.iterations < max_iterations) {
    ++report.iterations;
    Scales(p, weights, scales);
    Forms(executor, RidgeFactor(executor, keys, scales, ridge), keys, forms);
    report.residual = 0;
    for (size_t j = 0; j < n; ++j) {
      if (weights[j] <= 0) continue;
      const double next = p <= 2 ? std::pow(forms[j], p / 2) : scales[j] * scales[j] * forms[j];
      const double kept = std::max(next, 1e-100);  // a key so far below the others must keep a weight
      report.residual = std::max(report.residual, std::abs(std::log(kept / weights[j])));
      weights[j] = kept;
    }
    if (report.residual <= tolerance) break;
  }
  return report;
}

void SensitivityBounds(Executor& executor, MatView<const float> keys, double p, double ridge,
                       std::span<const double> weights, std::span<double> bounds) {
  const auto n = size_t(keys.rows);
  std::vector<double> scales(n);
  Scales(p, weights, scales);
  Forms(executor, RidgeFactor(executor, keys, scales, ridge), keys, bounds);
  double sum = 0, ratio = 0;
  for (size_t j = 0; j < n; ++j) {
    if (weights[j] <= 0) continue;
    bounds[j] *= scales[j] * scales[j];
    sum += weights[j];
    ratio = std::max(ratio, bounds[j] / weights[j]);
  }
  const double factor = p <= 2 ? std::pow(ratio, 1 - p / 2) : std::pow(sum, p / 2 - 1);
  for (size_t j = 0; j < n; ++j)
    bounds[j] = weights[j] > 0 ? weights[j] * std::pow(bounds[j] / weights[j], p / 2) * factor : 0;
}

float CenteringConstant(std::span<const float> key) {
  return float(std::sqrt(SquaredNorm(key.data(), int64_t(key.size())) / double(key.size())));
}

}  // namespace croquis::attention::lev
