#include "croquis/attention/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "croquis/attention/partial.h"
#include "croquis/attention/row_error.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"

namespace croquis::attention {
namespace {

// Rows of one head in double.
std::vector<double> Widen(const RowsView& x) {
  std::vector<double> out(size_t(x.rows * x.dim));
  std::vector<float> row(static_cast<size_t>(x.dim));
  for (int64_t r = 0; r < x.rows; ++r) {
    x.Read(r, row.data());
    std::copy(row.begin(), row.end(), out.begin() + r * x.dim);
  }
  return out;
}

double Dot(const double* a, const double* b, int64_t n) {
  double s[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) s[j] += a[i + j] * b[i + j];
  for (; i < n; ++i) s[0] += a[i] * b[i];
  return (s[0] + s[1]) + (s[2] + s[3]);
}

// One head's softmax, row by row.
class Head {
 public:
  Head(const Problem& p, int64_t h)
      : p_(p), q_(Widen(p.q.Head(h))), k_(Widen(p.k.Head(h / p.Group()))), v_(Widen(p.v.Head(h / p.Group()))) {}

  // weights[j - first] = P_ij over the keys that row i sees; returns those and the log-sum-exp.
  Range Weights(int64_t i, std::vector<double>& weights, double* lse) const {
    const Range range = p_.Visible(i);
    const int64_t d = p_.q.dim;
    double top = -std::numeric_limits<double>::infinity(), mass = 0;
    weights.resize(size_t(range.size()));
    for (int64_t j = range.first; j < range.last; ++j)
      top = std::max(
          top, weights[size_t(j - range.first)] = double(p_.scale) * Dot(&q_[size_t(i * d)], &k_[size_t(j * d)], d));
    for (double& w : weights) mass += w = std::exp(w - top);
    for (double& w : weights) w /= mass;
    *lse = range.size() == 0 ? double(kEmptyMax) : top + std::log(mass);
    return range;
  }
  const double* Value(int64_t j) const { return &v_[size_t(j * p_.v.dim)]; }
  const std::vector<double>& values() const { return v_; }

 private:
  const Problem& p_;
  std::vector<double> q_, k_, v_;
};

constexpr int kPowerIterations = 60;

double Norm(const std::vector<double>& x) { return std::sqrt(Dot(x.data(), x.data(), int64_t(x.size()))); }

// The largest singular value of a [rows, cols] map given by its two products.
template <class Times, class Transposed>
double SpectralNorm(int64_t cols, const Times& times, const Transposed& transposed) {
  std::vector<double> x(static_cast<size_t>(cols)), y;
  const Stream random{1, Purpose("attention.power_iteration")};
  for (size_t i = 0; i < x.size(); ++i) x[i] = double(random.Gaussian(i));
  double norm = 0;
  for (int it = 0; it < kPowerIterations; ++it) {
    const double length = Norm(x);
    if (length == 0) return 0;
    for (double& e : x) e /= length;
    y = times(x);
    norm = Norm(y);
    x = transposed(y);
  }
  return norm;
}

// A dense [rows, cols] matrix in double.
double SpectralNorm(const std::vector<double>& m, int64_t rows, int64_t cols) {
  return SpectralNorm(
      cols,
      [&](const std::vector<double>& x) {
        std::vector<double> y(static_cast<size_t>(rows));
        for (int64_t r = 0; r < rows; ++r) y[size_t(r)] = Dot(&m[size_t(r * cols)], x.data(), cols);
        return y;
      },
      [&](const std::vector<double>& y) {
        std::vector<double> x(static_cast<size_t>(cols));
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < cols; ++c) x[size_t(c)] += m[size_t(r * cols + c)] * y[size_t(r)];
        return x;
      });
}

// |P| of one head: P is formed once, in f32, because sixty products of it are taken.
double AttentionNorm(const Head& head, const Problem& p) {
  const int64_t nq = p.q.rows, nk = p.k.rows;
  std::vector<float> all(size_t(nq * nk));
  std::vector<double> weights;
  double lse = 0;
  for (int64_t i = 0; i < nq; ++i) {
    const Range range = head.Weights(i, weights, &lse);
    std::copy(weights.begin(), weights.end(), all.begin() + i * nk + range.first);
  }
  return SpectralNorm(
      nk,
      [&](const std::vector<double>& x) {
        std::vector<double> y(static_cast<size_t>(nq));
        for (int64_t r = 0; r < nq; ++r)
          for (int64_t c = 0; c < nk; ++c) y[size_t(r)] += double(all[size_t(r * nk + c)]) * x[size_t(c)];
        return y;
      },
      [&](const std::vector<double>& y) {
        std::vector<double> x(static_cast<size_t>(nk));
        for (int64_t r = 0; r < nq; ++r)
          for (int64_t c = 0; c < nk; ++c) x[size_t(c)] += double(all[size_t(r * nk + c)]) * y[size_t(r)];
        return x;
      });
}

}  // namespace

Status SoftmaxReference(Executor& executor, const Problem& p, const Output& output) {
  const int64_t numbers = p.q.rows * p.q.dim + p.k.rows * (p.q.dim + p.v.dim);
  CROQUIS_CHECK_OK(CheckMemory(numbers * 8, "attention in double precision"));
  constexpr int64_t kRows = 64;
  const int64_t pieces = (p.q.rows + kRows - 1) / kRows;
  for (int64_t h = 0; h < p.q.heads; ++h) {
    const Head head(p, h);
    executor.ParallelFor(pieces, [&](int64_t piece, int) {
      std::vector<double> weights, sum(static_cast<size_t>(p.v.dim));
      for (int64_t i = piece * kRows; i < std::min(p.q.rows, (piece + 1) * kRows); ++i) {
        double lse = 0;
        const Range range = head.Weights(i, weights, &lse);
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int64_t j = range.first; j < range.last; ++j)
          for (int64_t c = 0; c < p.v.dim; ++c) sum[size_t(c)] += weights[size_t(j - range.first)] * head.Value(j)[c];
        float* const out = output.Head(h, p.q.rows, p.v.dim).Row(i);
        for (int64_t c = 0; c < p.v.dim; ++c) out[c] = float(sum[size_t(c)]);
        if (output.lse != nullptr) output.lse[h * p.q.rows + i] = float(lse);
      }
    });
  }
  return {};
}

ErrorReport Compare(Executor& executor, const Problem& p, const Output& output, const Output& reference,
                    bool operator_norm) {
  ErrorReport report;
  const int64_t nq = p.q.rows, dv = p.v.dim;
  std::vector<double> rows, ops(static_cast<size_t>(p.q.heads));
  double difference = 0, size = 0, lse_sum = 0;
  int64_t lse_rows = 0;
  for (int64_t h = 0; h < p.q.heads; ++h) {
    const MatView<float> a = output.Head(h, nq, dv), b = reference.Head(h, nq, dv);
    const double largest = LargestNorm(executor, p.v.Head(h / p.Group()));
    for (int64_t i = 0; i < nq; ++i) {
      double e = 0, o = 0;
      for (int64_t c = 0; c < dv; ++c) {
        e += std::pow(double(a(i, c)) - double(b(i, c)), 2);
        o += std::pow(double(b(i, c)), 2);
      }
      difference += e, size += o;
      rows.push_back(RowError(a[i], b[i], largest));
      if (output.lse == nullptr || reference.lse == nullptr || reference.lse[h * nq + i] <= kEmptyMax / 2) continue;
      const double gap = std::abs(double(output.lse[h * nq + i]) - double(reference.lse[h * nq + i]));
      report.lse_max = std::max(report.lse_max, gap);
      lse_sum += gap, ++lse_rows;
    }
  }
  if (operator_norm)
    executor.ParallelFor(p.q.heads, [&](int64_t h, int) {
      const Head head(p, h);
      const MatView<float> a = output.Head(h, nq, dv), b = reference.Head(h, nq, dv);
      std::vector<double> error;
      for (int64_t i = 0; i < nq; ++i)
        for (int64_t c = 0; c < dv; ++c) error.push_back(double(a(i, c)) - double(b(i, c)));
      const double of = AttentionNorm(head, p) * SpectralNorm(head.values(), p.v.rows, dv);
      ops[size_t(h)] = of == 0 ? 0 : SpectralNorm(error, nq, dv) / of;
    });
  report.op = operator_norm ? 0 : -1;
  if (operator_norm)
    for (const double op : ops) report.op += op / double(p.q.heads);
  report.frobenius = size == 0 ? 0 : std::sqrt(difference / size);
  report.lse_mean = lse_rows == 0 ? 0 : lse_sum / double(lse_rows);
  if (rows.empty()) return report;
  for (const double r : rows) report.row_mean += r / double(rows.size());
  std::sort(rows.begin(), rows.end());
  const auto at = [&](double quantile) {
    return rows[std::min(rows.size() - 1, size_t(quantile * double(rows.size())))];
  };
  report.row_median = at(.5), report.row_p90 = at(.9), report.row_p99 = at(.99), report.row_max = rows.back();
  return report;
}

}  // namespace croquis::attention
