#include "croquis/attention/kdeformer/theory.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "croquis/attention/tiles.h"
#include "croquis/base/rng.h"

namespace croquis::attention::kdeformer {
namespace {

constexpr uint64_t kPurpose = Purpose("attention.kdeformer");

// Squared distances of the rows of a head from their mean: a shift of all points changes all logits of a row alike.
std::vector<double> Spreads(const RowsView& x) {
  std::vector<float> row(static_cast<size_t>(x.dim));
  std::vector<double> squares(static_cast<size_t>(x.rows)), mean(row.size());
  for (int64_t r = 0; r < x.rows; ++r) {
    x.Read(r, row.data());
    for (size_t i = 0; i < row.size(); ++i) mean[i] += double(row[i]) / double(x.rows);
  }
  for (int64_t r = 0; r < x.rows; ++r) {
    x.Read(r, row.data());
    for (size_t i = 0; i < row.size(); ++i) squares[size_t(r)] += std::pow(double(row[i]) - mean[i], 2);
  }
  return squares;
}

// Numbers given by their logarithms, divided by their sum; a uniform distribution where all are zero.
std::vector<double> Normalised(const std::vector<double>& logs) {
  const double top = *std::max_element(logs.begin(), logs.end());
  std::vector<double> p(logs.size(), 1 / double(logs.size()));
  if (!std::isfinite(top)) return p;
  double sum = 0;
  for (size_t i = 0; i < logs.size(); ++i) sum += p[i] = std::exp(logs[i] - top);
  for (double& x : p) x /= sum;
  return p;
}

// n draws with replacement by probabilities p.
std::vector<int32_t> Draw(const std::vector<double>& p, int64_t n, const Stream& random) {
  std::vector<double> below(p.size());
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) below[i] = sum += p[i];
  std::vector<int32_t> draws(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const double at = (double(random.U32(uint64_t(i))) + .5) * 0x1p-32 * sum;
    draws[size_t(i)] = int32_t(std::upper_bound(below.begin(), below.end() - 1, at) - below.begin());
  }
  return draws;
}

// Points of a weighted density: keys and log-weights of the terms in sum_j exp(w_j + scale <y, x_j>).
struct Points {
  KeySet set;
  int64_t half = 0;  // slots of the first half of the samples; all, where nothing is sampled
};

// All points with their weights, or `samples` of them, half drawn by the weight that the Gaussian kernel leaves on a
// point, exp(w_j + |scale| |x_j - mean|^2 / 2), half alike: <y, x> = (|y|^2 + |x|^2 - |y - x|^2) / 2.
Points MakePoints(simd::TileType type, const RowsView& x, const std::vector<double>& squares,
                  const std::vector<double>& weights, double scale, int64_t samples, const Stream& random,
                  Executor& executor) {
  const int64_t n = samples == 0 ? x.rows : samples;
  Points points{KeySet(type, n, x.dim, 1), samples == 0 ? n : n / 2};
  std::vector<int32_t> index(static_cast<size_t>(n));
  std::vector<double> logs(weights);
  for (size_t i = 0; i < logs.size(); ++i) logs[i] += std::abs(scale) * squares[i] / 2;
  std::vector<double> p = Normalised(logs);
  for (double& q : p) q = (q + 1 / double(x.rows)) / 2;
  if (samples > 0) index = Draw(p, n, random);
  for (int64_t i = 0; i < n; ++i) {
    if (samples == 0) index[size_t(i)] = int32_t(i);
    const auto at = size_t(index[size_t(i)]);
    points.set.SetLogWeight(i, float(weights[at] - (samples > 0 ? std::log(double(n) * p[at]) : 0.)));
  }
  const std::vector<float> nothing(static_cast<size_t>(x.rows));
  points.set.Pack(executor, x, RowsView(MatView<const float>(nothing.data(), x.rows, 1)), index);
  return points;
}

// ln of the density at each row of y, and the relative standard deviation that two halves of the samples show.
struct Density {
  std::vector<double> log, deviation;
};
Density Evaluate(Executor& executor, const Points& points, const RowsView& y, float scale,
                 std::vector<QueryTile>& workers) {
  Density density{std::vector<double>(size_t(y.rows)), std::vector<double>(size_t(y.rows))};
  executor.ParallelFor((y.rows + kTileRows - 1) / kTileRows, [&](int64_t task, int worker) {
    QueryTile& tile = workers[size_t(worker)];
    const int64_t first = task * kTileRows, rows = std::min(kTileRows, y.rows - first);
    tile.Load(y.Rows(first, rows), rows, scale);
    tile.Attend(points.set, 0, points.half);
    double half[kTileRows];
    const auto log_mass = [&tile](int64_t r) {
      const Partial now = tile.State(r);
      return double(now.m) + std::log(std::max(1e-300, double(now.l)));
    };
    for (int64_t r = 0; r < rows; ++r) half[r] = log_mass(r);
    tile.Attend(points.set, points.half, points.set.keys());
    for (int64_t r = 0; r < rows; ++r) {
      const double all = log_mass(r);
      density.log[size_t(first + r)] = all;
      if (points.half < points.set.keys())
        density.deviation[size_t(first + r)] = std::abs(2 * std::exp(std::min(0., half[r] - all)) - 1);
    }
  });
  return density;
}

// One head.
class Theory {
 public:
  Theory(const TheoryOptions& options, simd::TileType type, Executor& executor, const Problem& p, int64_t h)
      : options_(options),
        type_(type),
        executor_(executor),
        p_(p),
        h_(h),
        q_(p.q.Head(h)),
        k_(p.k.Head(h / p.Group())),
        v_(p.v.Head(h / p.Group())),
        random_(Stream{options.seed, kPurpose}.Sub(uint64_t(h))) {
    for (int i = 0; i < executor.threads(); ++i) kde_workers_.emplace_back(type, k_.dim, 1);
  }

  // ln |P e_j|^2 for each key: sum_i d_i^-2 exp(2 scale <q_i, k_j>).
  std::vector<double> ColumnNorms() {
    const std::vector<double> key_squares = Spreads(k_), query_squares = Spreads(q_);
    const int64_t from_keys = std::min(options_.kde_samples, k_.rows),
                  from_queries = std::min(options_.kde_samples, q_.rows);
    const Points keys = MakePoints(type_, k_, key_squares, std::vector<double>(key_squares.size()), double(p_.scale),
                                   from_keys, random_.Sub(0), executor_);
    denominators_ = Evaluate(executor_, keys, q_, p_.scale, kde_workers_);
    std::vector<double> weights(query_squares.size());
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = -2 * denominators_.log[i];
    // Weights may be any size; what float logits hold is their spread.
    const double top = *std::max_element(weights.begin(), weights.end());
    for (double& w : weights) w -= top;
    const Points queries =
        MakePoints(type_, q_, query_squares, weights, 2 * double(p_.scale), from_queries, random_.Sub(1), executor_);
    std::vector<double> logs = Evaluate(executor_, queries, k_, 2 * p_.scale, kde_workers_).log;
    for (double& x : logs) x += top;
    pairs_ += double(q_.rows) * double(keys.set.keys()) + double(k_.rows) * double(queries.set.keys());
    return logs;
  }

  void Run(const Output& output, RunReport* report) {
    const std::vector<double> columns = Normalised(ColumnNorms());
    const int64_t n = k_.rows, width = v_.dim;
    const int64_t m = options_.samples > 0 ? options_.samples : std::max<int64_t>(64, n / 4);
    // Rows of P sum to one, so the mean value can be taken out of the sample and put back.
    Matrix<float> values(n, width);
    std::vector<float> mean(static_cast<size_t>(width));
    for (int64_t j = 0; j < n; ++j) {
      v_.Read(j, values.Row(j));
      for (int64_t c = 0; c < width; ++c) mean[size_t(c)] += values.Row(j)[c] / float(n);
    }
    std::vector<double> probability(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < width; ++c) {
        const float x = values.Row(j)[c] -= mean[size_t(c)];
        probability[size_t(j)] += double(x) * double(x);
      }
    double all = 0, largest = 0;
    for (const double x : probability) all += x, largest = std::max(largest, x);
    for (size_t j = 0; j < probability.size(); ++j)
      probability[j] = all > 0 ? (probability[j] / all + columns[j]) / 2 : columns[j];
    const std::vector<int32_t> draws = Draw(probability, m, random_.Sub(2));
    KeySet sample(type_, m, k_.dim, width);
    for (int64_t i = 0; i < m; ++i)
      sample.SetLogWeight(i, float(-std::log(double(m) * probability[size_t(draws[size_t(i)])])));
    sample.Pack(executor_, k_, RowsView(values.View()), draws);
    pairs_ += double(q_.rows) * double(m);
    Product(sample, mean, 1e-3 * std::sqrt(largest), output, report);
    report->pairs += pairs_;
  }

 private:
  // D~^-1 (A S^T) (S V): sums over the sample, divided by the estimated denominators.
  void Product(const KeySet& sample, const std::vector<float>& mean, double floor, const Output& output,
               RunReport* report) {
    const int64_t width = v_.dim, half = sample.keys() / 2;
    std::vector<QueryTile> workers;
    for (int i = 0; i < executor_.threads(); ++i) workers.emplace_back(type_, k_.dim, width);
    std::vector<double> errors(static_cast<size_t>(q_.rows));
    executor_.ParallelFor((q_.rows + kTileRows - 1) / kTileRows, [&](int64_t task, int worker) {
      QueryTile& tile = workers[size_t(worker)];
      const int64_t first = task * kTileRows, rows = std::min(kTileRows, q_.rows - first);
      tile.Load(q_.Rows(first, rows), rows, p_.scale);
      tile.Attend(sample, 0, half);
      std::vector<double> part(size_t(rows * width));
      const auto number = [&](int64_t r, int64_t c) {
        const Partial now = tile.State(r);
        return now.l == 0 ? 0.
                          : double(now.a[size_t(c)]) * std::exp(double(now.m) - denominators_.log[size_t(first + r)]);
      };
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) part[size_t(r * width + c)] = number(r, c);
      tile.Attend(sample, half, sample.keys());
      for (int64_t r = 0; r < rows; ++r) {
        const auto row = size_t(first + r);
        float* const out = output.Head(h_, q_.rows, width).Row(first + r);
        double differences = 0, size = 0, centred = 0;
        for (int64_t c = 0; c < width; ++c) {
          const double x = number(r, c), o = x + double(mean[size_t(c)]);
          out[c] = float(o);
          differences += std::pow(2 * part[size_t(r * width + c)] - x, 2);
          size += o * o, centred += x * x;
        }
        const double from_denominator = denominators_.deviation[row] * std::sqrt(centred);
        errors[row] = std::sqrt(differences + from_denominator * from_denominator) / (std::sqrt(size) + floor);
        if (output.lse != nullptr) output.lse[h_ * q_.rows + first + r] = float(denominators_.log[row]);
      }
    });
    for (size_t r = 0; r < errors.size(); ++r) {
      report->est_error += errors[r] / double(report->rows);
      report->lse_std += denominators_.deviation[r] / double(report->rows);
    }
  }

  const TheoryOptions& options_;
  simd::TileType type_;
  Executor& executor_;
  const Problem& p_;
  int64_t h_;
  RowsView q_, k_, v_;
  Stream random_;
  std::vector<QueryTile> kde_workers_;
  Density denominators_;
  double pairs_ = 0;
};

Status Check(const Problem& p, simd::TileType type) {
  if (p.mask.causal)
    return Unsupported(
        "kdeformer: variant=theory has no causal form, a density has no order; take variant=practical, which halves");
  const int64_t rows = std::max(p.q.rows, p.k.rows);
  return CheckMemory(
      int64_t(KeySet::Bytes(type, rows, p.q.dim, std::max<int64_t>(1, p.v.dim))) + rows * (4 * p.v.dim + 64),
      "the points of a head's densities");
}

}  // namespace

Status RunTheory(const TheoryOptions& options, simd::TileType type, Executor& executor, const Problem& p,
                 const Output& output, RunReport* report) {
  CROQUIS_CHECK_OK(Check(p, type));
  for (int64_t h = 0; h < p.q.heads; ++h) Theory(options, type, executor, p, h).Run(output, report);
  report->kernel = simd::Tiles(type).name;
  return {};
}

Result<std::vector<double>> LogColumnNorms(const TheoryOptions& options, simd::TileType type, Executor& executor,
                                           const Problem& p, int64_t h) {
  CROQUIS_CHECK_OK(Check(p, type));
  return Theory(options, type, executor, p, h).ColumnNorms();
}

}  // namespace croquis::attention::kdeformer
