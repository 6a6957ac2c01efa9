#include "croquis/attention/lev/power.h"

#include <algorithm>
#include <cmath>

#include "croquis/attention/tiles.h"
#include "croquis/base/memory.h"
#include "croquis/linalg/gemm.h"

namespace croquis::attention::lev {
namespace {

constexpr int64_t kBlock = 256;  // keys in a product

// x^p for x >= 0, with products for whole p.
template <class T>
T Power(T x, double p) {
  const int whole = int(p);
  if (p != whole) return T(std::pow(double(x), p));
  T out = 1;
  for (int i = 0; i < whole; ++i) out *= x;
  return out;
}

}  // namespace

Status PowerReference(Executor& executor, const Problem& p, double power, const Output& output) {
  CROQUIS_CHECK_OK(CheckMemory(p.k.rows * 8 * executor.threads(), "the weights of a row of reference attention"));
  executor.ParallelFor(p.q.heads * p.q.rows, [&](int64_t task, int) {
    const int64_t h = task / p.q.rows, i = task % p.q.rows, d = p.q.dim;
    const RowsView q = p.q.Head(h), k = p.k.Head(h / p.Group()), v = p.v.Head(h / p.Group());
    const Range seen = p.Visible(i);
    std::vector<float> query(static_cast<size_t>(d)), row(size_t(std::max(d, p.v.dim)));
    std::vector<double> weights(static_cast<size_t>(seen.size())), sum(static_cast<size_t>(p.v.dim));
    q.Read(i, query.data());
    double top = 0, mass = 0;
    for (int64_t j = seen.first; j < seen.last; ++j) {
      k.Read(j, row.data());
      double x = 0;
      for (int64_t c = 0; c < d; ++c) x += double(query[size_t(c)]) * double(row[size_t(c)]);
      top = std::max(top, weights[size_t(j - seen.first)] = std::abs(double(p.scale) * x));
    }
    for (int64_t j = seen.first; top > 0 && j < seen.last; ++j) {
      const double w = std::pow(weights[size_t(j - seen.first)] / top, power);
      mass += w;
      v.Read(j, row.data());
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += w * double(row[c]);
    }
    float* out = output.Head(h, p.q.rows, p.v.dim).Row(i);
    for (size_t c = 0; c < sum.size(); ++c) out[c] = mass > 0 ? float(sum[c] / mass) : 0;
    if (output.lse != nullptr) output.lse[task] = mass > 0 ? float(power * std::log(top) + std::log(mass)) : kEmptyMax;
  });
  return {};
}

PowerTile::PowerTile(int64_t dim, int64_t value_dim, double p)
    : p_(p),
      queries_(kTileRows, dim),
      scores_(kTileRows, kBlock),
      sums_(kTileRows, value_dim),
      top_(kTileRows),
      mass_(kTileRows) {}

void PowerTile::Load(const RowsView& q, float scale) {
  rows_ = q.rows;
  scale_ = scale;
  for (int64_t r = 0; r < rows_; ++r) q.Read(r, queries_.Row(r));
  Clear();
}

void PowerTile::Clear() {
  std::fill(top_.begin(), top_.end(), 0.f);
  std::fill(mass_.begin(), mass_.end(), 0.f);
  std::fill_n(sums_.data(), rows_ * sums_.cols(), 0.f);
}

// scores become weights relative to the row's top, which first moves up to them.
void PowerTile::Weigh(int64_t row, float* scores, int64_t n, const float* weights) {
  float top = top_[size_t(row)], most = 0;
  for (int64_t j = 0; j < n; ++j) most = std::max(most, scores[j] = std::abs(scores[j]));
  if (most > top) {
    const float shrink = Power(top / most, p_);
    mass_[size_t(row)] *= shrink;
    for (int64_t c = 0; c < sums_.cols(); ++c) sums_.Row(row)[c] *= shrink;
    top = top_[size_t(row)] = most;
  }
  if (top == 0) return;  // all scores are zero, and so are the weights
  const float inverse = 1 / top;
  // Where 1 / top overflows the scores are denormal: then divide.
  const bool divide = !std::isfinite(inverse);
  float sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    scores[j] = Power(divide ? scores[j] / top : scores[j] * inverse, p_) * (weights == nullptr ? 1 : weights[j]);
    sum += scores[j];
  }
  mass_[size_t(row)] += sum;
}

void PowerTile::Attend(MatView<const float> k, MatView<const float> v, std::span<const float> weights,
                       std::span<const Range> visible, int64_t first) {
  for (int64_t begin = 0; begin < k.rows; begin += kBlock) {
    const int64_t n = std::min(kBlock, k.rows - begin);
    const MatView<float> scores = scores_.View().Rows(0, rows_).Cols(0, n);
    linalg::Gemm(false, true, scale_, queries(), k.Rows(begin, n), 0, scores);
    for (int64_t r = 0; r < rows_; ++r) {
      float* row = scores.Row(r);
      if (!visible.empty()) {
        const int64_t from = std::clamp<int64_t>(visible[size_t(r)].first - first - begin, 0, n),
                      to = std::clamp<int64_t>(visible[size_t(r)].last - first - begin, from, n);
        std::fill(row, row + from, 0.f);
        std::fill(row + to, row + n, 0.f);
      }
      Weigh(r, row, n, weights.empty() ? nullptr : weights.data() + begin);
    }
    linalg::Gemm(false, false, 1, scores, v.Rows(begin, n), 1, sums_.View().Rows(0, rows_));
  }
}

Partial PowerTile::State(int64_t row) {
  const float top = top_[size_t(row)], mass = mass_[size_t(row)];
  return {mass == 0 ? kEmptyMax : float(p_ * std::log(double(top))), mass, {sums_.Row(row), size_t(sums_.cols())}};
}

}  // namespace croquis::attention::lev
