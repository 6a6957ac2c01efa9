#include "croquis/codecs/qjl/projection.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <numbers>
#include <tuple>
#include <vector>

#include "croquis/base/rng.h"

namespace croquis::codecs {
namespace {

double Dot(const double* a, const double* b, int64_t n) {
  double part[8] = {};  // independent sums, so that the loop vectorises
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t k = 0; k < 8; ++k) part[k] += a[i + k] * b[i + k];
  }
  for (; i < n; ++i) part[0] += a[i] * b[i];
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Rows of `run` orthonormalised in order; twice, so that rounding does not show.
void Orthonormalise(std::vector<double>& run, int64_t rows, int64_t d) {
  for (int64_t r = 0; r < rows; ++r) {
    double* row = &run[size_t(r * d)];
    for (int pass = 0; pass < 2; ++pass) {
      for (int64_t p = 0; p < r; ++p) {
        const double* earlier = &run[size_t(p * d)];
        const double part = Dot(row, earlier, d);
        for (int64_t i = 0; i < d; ++i) row[i] -= part * earlier[i];
      }
      const double inverse = 1 / std::sqrt(Dot(row, row, d));
      for (int64_t i = 0; i < d; ++i) row[i] *= inverse;
    }
  }
}

std::shared_ptr<const Projection> Draw(int64_t d, int64_t m, bool orthogonal, uint64_t seed) {
  auto p = std::make_shared<Projection>();
  p->head_dim = d;
  p->m = m;
  p->orthogonal = orthogonal;
  p->channels = Matrix<float>(d, m);
  const Stream stream{seed, Purpose("qjl.projection")};
  std::vector<double> run(size_t(d * d));
  for (int64_t first = 0; first < m; first += d) {
    const int64_t rows = std::min(d, m - first);
    for (int64_t e = 0; e < rows * d; ++e) run[size_t(e)] = double(stream.Gaussian(uint64_t(first * d + e)));
    if (orthogonal) Orthonormalise(run, rows, d);
    const double norm = orthogonal ? std::sqrt(double(d)) : 1;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < d; ++i) p->channels.Row(i)[first + r] = float(norm * run[size_t(r * d + i)]);
    }
  }
  return p;
}

// E|u_1| on the unit sphere of R^d.
double MeanAbsolute(double d) {
  return std::exp(std::lgamma(d / 2) - std::lgamma((d + 1) / 2)) / std::sqrt(std::numbers::pi);
}

}  // namespace

std::shared_ptr<const Projection> Projection::Get(int64_t head_dim, int64_t m, bool orthogonal, uint64_t seed) {
  using Key = std::tuple<int64_t, int64_t, bool, uint64_t>;
  static std::mutex mutex;
  static std::map<Key, std::weak_ptr<const Projection>> known;
  const std::lock_guard lock(mutex);
  std::weak_ptr<const Projection>& slot = known[{head_dim, m, orthogonal, seed}];
  std::shared_ptr<const Projection> p = slot.lock();
  if (!p) {
    p = Draw(head_dim, m, orthogonal, seed);
    slot = p;
    std::erase_if(known, [](const auto& entry) { return entry.second.expired(); });
  }
  return p;
}

double SignScale(int64_t head_dim, int64_t m, bool orthogonal) {
  const double d = double(head_dim);
  if (!orthogonal) return std::sqrt(std::numbers::pi / 2) / double(m);
  return 1 / (double(m) * std::sqrt(d) * MeanAbsolute(d));
}

double SignMse(int64_t head_dim, int64_t m, bool orthogonal, int64_t kept) {
  const double d = double(head_dim), n = double(m);
  if (!orthogonal) return (double(kept) * std::numbers::pi / 2 - 1) / n;
  // Row j of a run is sqrt(d) u_j with u_j orthonormal and x = (1, 0, ..): x^ = sum_j |u_j1| / u_j1 u_j / (m a). Within
  // a run the rows are orthogonal; different runs are independent with mean a (1, 0, ..).
  const double a = MeanAbsolute(d);
  double squares = 0, along = 0;  // sum of squared run lengths; variance of sum |u_j1|
  for (int64_t first = 0; first < m; first += head_dim) {
    const double rows = double(std::min(head_dim, m - first));
    squares += rows * rows;
    // The u_j1 of a run are coordinates of one point of the sphere: E|u_1 u_2| = 2 / (pi d).
    along += rows / d + rows * (rows - 1) * 2 / (std::numbers::pi * d) - rows * rows * a * a;
  }
  const double total = 1 / (n * a * a) - squares / (n * n), parallel = along / (n * n * a * a);
  return parallel + (total - parallel) * double(kept - 1) / (d - 1);
}

double TopEnergy(int64_t channels, int64_t top) {
  if (top <= 0) return 0;
  // Chi-squared with 32 degrees of freedom, integrated from the right until its mass is the part that is taken.
  constexpr double kDegrees = 32, kStep = 0.01;
  const double want = double(top) / double(channels),
               log_norm = kDegrees / 2 * std::numbers::ln2 + std::lgamma(kDegrees / 2);
  double mass = 0, energy = 0;
  for (double x = 250; x > 0 && mass < want; x -= kStep) {
    const double p = std::min(kStep * std::exp((kDegrees / 2 - 1) * std::log(x) - x / 2 - log_norm), want - mass);
    mass += p;
    energy += p * x;
  }
  return energy / kDegrees;
}

}  // namespace croquis::codecs
