#include "croquis/codecs/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace croquis::codecs {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

double Density(double x) { return std::isinf(x) ? 0 : std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
// Mass of [a, b], exact in the upper tail (a >= 0), where the cells of a half codebook lie.
double Mass(double a, double b) {
  return 0.5 * (std::erfc(a / std::numbers::sqrt2) - std::erfc(b / std::numbers::sqrt2));
}
// Integral of (z - v)^2 over the cell [a, b] of N(0, 1).
double CellError(double v, double a, double b) {
  const double fa = Density(a), fb = Density(b);
  const double edges = a * fa - (std::isinf(b) ? 0 : b * fb);
  return (1 + v * v) * Mass(a, b) - 2 * v * (fa - fb) + edges;
}

// Upper quantile: x with P(Z > x) = p, 0 < p < 1. Bisection: used for starting points only.
double UpperQuantile(double p) {
  double lo = -10, hi = 10;
  for (int i = 0; i < 80; ++i) {
    const double mid = (lo + hi) / 2;
    (Mass(mid, kInf) > p ? lo : hi) = mid;
  }
  return (lo + hi) / 2;
}

// The positive half of a symmetric codebook, ascending; cells start at 0 and end at midpoints.
using Half = std::vector<double>;
double Edge(const Half& c, size_t i) { return i == 0 ? 0 : i == c.size() ? kInf : (c[i - 1] + c[i]) / 2; }

double HalfError(const Half& c) {
  double e = 0;
  for (size_t i = 0; i < c.size(); ++i) e += CellError(c[i], Edge(c, i), Edge(c, i + 1));
  return 2 * e;
}

// One Newton step of c_i = E[z | cell i]; the Jacobian is tridiagonal. Returns the largest residual before it.
// Plain Lloyd iteration needs some n^2 rounds at n cells, Newton about five.
double NewtonStep(Half& c) {
  const size_t n = c.size();
  std::vector<double> lower(n), diag(n), upper(n), rhs(n);
  double worst = 0;
  for (size_t i = 0; i < n; ++i) {
    const double a = Edge(c, i), b = Edge(c, i + 1), mass = Mass(a, b);
    const double mean = (Density(a) - Density(b)) / mass;
    const double da = i == 0 ? 0 : Density(a) * (mean - a) / mass / 2;  // half: edges are midpoints
    const double db = i + 1 == n ? 0 : Density(b) * (b - mean) / mass / 2;
    lower[i] = -da, upper[i] = -db, diag[i] = 1 - da - db, rhs[i] = mean - c[i];
    worst = std::max(worst, std::fabs(rhs[i]));
  }
  for (size_t i = 1; i < n; ++i) {
    const double f = lower[i] / diag[i - 1];
    diag[i] -= f * upper[i - 1], rhs[i] -= f * rhs[i - 1];
  }
  for (size_t i = n; i-- > 0;) rhs[i] = (rhs[i] - (i + 1 < n ? upper[i] * rhs[i + 1] : 0)) / diag[i];
  double damp = 1;  // keep the order of the centroids
  for (size_t i = 0; i < n; ++i) {
    const double gap = c[i] - (i ? c[i - 1] : 0), change = rhs[i] - (i ? rhs[i - 1] : 0);
    if (change < -gap / 2) damp = std::min(damp, -gap / 2 / change);
  }
  for (size_t i = 0; i < n; ++i) c[i] += damp * rhs[i];
  return worst;
}

Half LloydMaxHalf(int bits) {
  const size_t n = size_t(1) << (bits - 1);
  Half c(n);
  // Start at quantiles of N(0, 3), whose density is proportional to phi^(1/3): optimal for many cells (Panter, Dite).
  for (size_t i = 0; i < n; ++i) c[i] = std::sqrt(3.0) * UpperQuantile(0.5 - (double(i) + 0.5) / double(2 * n));
  for (int i = 0; i < 100; ++i)
    if (NewtonStep(c) < 1e-14) break;
  return c;
}

// Integer levels step * L for the half codebook c, |L| <= limit: the rounding of c for the best of several steps, then
// single levels are moved by one and the step refitted as long as the error falls.
struct IntegerHalf {
  std::vector<int> level;
  double step = 0, mse = kInf;
};

Half Values(const IntegerHalf& h) {
  Half v;
  for (int l : h.level) v.push_back(h.step * l);
  return v;
}

// Least squares step for the present cells, until they stop moving.
void RefitStep(IntegerHalf& h) {
  for (int round = 0; round < 20; ++round) {
    const Half v = Values(h);
    double num = 0, den = 0;
    for (size_t i = 0; i < v.size(); ++i) {
      const double a = Edge(v, i), b = Edge(v, i + 1);
      num += h.level[i] * (Density(a) - Density(b));
      den += double(h.level[i]) * h.level[i] * Mass(a, b);
    }
    const double step = num / den;
    if (std::fabs(step - h.step) < 1e-13 * step) break;
    h.step = step;
  }
  h.mse = HalfError(Values(h));
}

bool Improve(IntegerHalf& h, int limit) {
  bool better = false;
  for (size_t i = 0; i < h.level.size(); ++i)
    for (int move : {-1, 1}) {
      IntegerHalf t = h;
      t.level[i] += move;
      const int below = i ? t.level[i - 1] : 0;
      if (t.level[i] <= below || t.level[i] > limit) continue;
      if (i + 1 < t.level.size() && t.level[i] >= t.level[i + 1]) continue;
      t.mse = HalfError(Values(t));
      if (t.mse < h.mse * (1 - 1e-12)) h = t, better = true;
    }
  return better;
}

IntegerHalf RoundToIntegers(const Half& c, int limit) {
  IntegerHalf best;
  for (int top = limit * 3 / 5; top <= limit; ++top) {
    IntegerHalf h;
    h.step = c.back() / top;
    for (double v : c) h.level.push_back(int(std::lround(v / h.step)));
    bool distinct = h.level[0] > 0;
    for (size_t i = 1; i < c.size(); ++i) distinct &= h.level[i] > h.level[i - 1];
    if (!distinct) continue;
    RefitStep(h);
    if (h.mse < best.mse) best = h;
  }
  while (Improve(best, limit)) RefitStep(best);
  return best;
}

// Two planes have 128 times the resolution: rounding is enough.
IntegerHalf RoundToTwoPlanes(const Half& c) {
  IntegerHalf h;
  h.step = c.back() / (127 * 128);
  for (double v : c) h.level.push_back(int(std::lround(v / h.step)));
  h.mse = HalfError(Values(h));
  return h;
}

Codebook MakeCodebook(int bits) {
  const Half c = LloydMaxHalf(bits);
  const int planes = bits <= kOnePlaneBits ? 1 : 2;
  const IntegerHalf h = planes == 1 ? RoundToIntegers(c, 127) : RoundToTwoPlanes(c);
  Codebook book;
  book.bits = bits;
  book.mse = h.mse;
  book.levels.planes = planes;
  book.levels.step = float(h.step);
  const int n = int(h.level.size());
  for (int i = 0; i < 2 * n; ++i) {
    const int level = i < n ? -h.level[size_t(n - 1 - i)] : h.level[size_t(i - n)];
    // Nearest multiple of 128, halves away from zero, so that both planes are symmetric.
    const int hi = planes == 1 ? level : (level < 0 ? -1 : 1) * ((std::abs(level) + 64) / 128);
    book.levels.level[0][size_t(i)] = int8_t(hi);
    if (planes == 2) book.levels.level[1][size_t(i)] = int8_t(level - 128 * hi);
    book.value[size_t(i)] = book.levels.step * float(level);
  }
  for (size_t i = 0; i + 1 < 2 * size_t(n); ++i) book.threshold[i] = 0.5f * (book.value[i] + book.value[i + 1]);
  return book;
}

// Density of one coordinate of a uniform point of the sphere of radius sqrt(n) in R^n, n >= 4.
struct SphereDensity {
  double n, scale;
  explicit SphereDensity(double dims)
      : n(dims),
        scale(std::exp(std::lgamma(dims / 2) - std::lgamma((dims - 1) / 2)) / std::sqrt(std::numbers::pi * dims)) {}
  double operator()(double z) const {
    const double t = 1 - z * z / n;
    return t <= 0 ? 0 : scale * std::pow(t, (n - 3) / 2);
  }
};

}  // namespace

std::vector<double> LloydMax(int bits) {
  const Half half = LloydMaxHalf(bits);
  std::vector<double> all;
  for (size_t i = half.size(); i-- > 0;) all.push_back(-half[i]);
  all.insert(all.end(), half.begin(), half.end());
  return all;
}

const Codebook& GaussianCodebook(int bits) {
  switch (bits) {  // one magic static each: a caller of 4 bits does not pay for 8
    case 1:
      static const Codebook b1 = MakeCodebook(1);
      return b1;
    case 2:
      static const Codebook b2 = MakeCodebook(2);
      return b2;
    case 3:
      static const Codebook b3 = MakeCodebook(3);
      return b3;
    case 4:
      static const Codebook b4 = MakeCodebook(4);
      return b4;
    case 5:
      static const Codebook b5 = MakeCodebook(5);
      return b5;
    case 6:
      static const Codebook b6 = MakeCodebook(6);
      return b6;
    case 7:
      static const Codebook b7 = MakeCodebook(7);
      return b7;
    default:
      static const Codebook b8 = MakeCodebook(8);
      return b8;
  }
}

double GaussianMse(const std::vector<double>& values) {
  double mse = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    double a = i == 0 ? -kInf : (values[i - 1] + values[i]) / 2;
    double b = i + 1 == values.size() ? kInf : (values[i] + values[i + 1]) / 2, v = values[i];
    if (a < 0 && b > 0) {  // split at 0: Mass and CellError want a >= 0
      mse += CellError(-v, 0, -a);
      a = 0;
    } else if (b <= 0) {
      std::swap(a, b), a = -a, b = -b, v = -v;
    }
    mse += CellError(v, a, b);
  }
  return mse;
}

RotatedMoments MomentsOnSphere(const Codebook& book, int64_t dim) {
  // Per coordinate, by the midpoint rule inside each cell: exact marginals for the means, Gaussian ones for the
  // second-order terms.
  const SphereDensity sphere{double(dim)};
  constexpr int kSteps = 400;
  const int half = 1 << (book.bits - 1);
  double a = 0, c = 0, mass = 0;                                     // E[z c], E[c^2], E[1] on the sphere
  double g = 0, ga = 0, gc = 0, gaa = 0, gac = 0, gaw = 0, gcw = 0;  // Gaussian moments of zc, c^2 and z^2 - 1
  for (int i = half; i < 2 * half; ++i) {
    const double v = double(book.value[size_t(i)]), lo = double(book.threshold[size_t(i - 1)]);
    const double hi = i + 1 < 2 * half ? double(book.threshold[size_t(i)]) : lo + 8;
    const double dz = (hi - lo) / kSteps;
    for (int s = 0; s < kSteps; ++s) {
      const double z = lo + (s + 0.5) * dz, f = 2 * dz * sphere(z), n = 2 * dz * Density(z), w = z * z - 1;
      mass += f, a += f * z * v, c += f * v * v;
      g += n, ga += n * z * v, gc += n * v * v;
      gaa += n * z * v * z * v, gac += n * z * v * v * v, gaw += n * z * v * w, gcw += n * v * v * w;
    }
  }
  a /= mass, c /= mass;
  ga /= g, gc /= g, gaa /= g, gac /= g, gaw /= g, gcw /= g;
  RotatedMoments m;
  m.zc = a, m.cc = c;
  // On the sphere sum z^2 is fixed: what regresses on z^2 (variance 2) does not vary.
  const double var_a = (gaa - ga * ga - gaw * gaw / 2) / double(dim);
  const double cov_ac = (gac - ga * gc - gaw * gcw / 2) / double(dim);
  m.unbiased_mse = c / (a * a) * (1 + 3 * var_a / (a * a) - 2 * cov_ac / (a * c)) - 1;
  m.raw_mse = 1 - 2 * a + c;
  return m;
}

}  // namespace croquis::codecs
