#include "croquis/codecs/polarquant/angles.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numbers>
#include <vector>

namespace croquis::codecs {
namespace {

constexpr double kQuarter = std::numbers::pi / 2;

// sin^n(u) for odd n = sum over k of weight[k] sin((n - 2k) u), so that its integrals are elementary.
struct SineSum {
  int n = 1;
  std::array<double, 4> weight{};  // n <= 7
  double norm = 1;                 // 1 / integral of sin^n(2 psi) over [0, pi/2]

  explicit SineSum(int level) : n((1 << (level - 1)) - 1) {
    double binomial = 1;
    const int last = (n - 1) / 2;
    for (int k = 0; k <= last; ++k) {
      weight[size_t(k)] = ((last - k) % 2 == 0 ? 1 : -1) * binomial / std::exp2(n - 1);
      binomial *= double(n - k) / double(k + 1);
    }
    norm = 1 / Mass(kQuarter);
  }
  int Terms() const { return (n + 1) / 2; }
  // norm * integral of sin^n(2 t) over [0, psi], and of t sin^n(2 t).
  double Mass(double psi) const {
    double sum = 0;
    for (int k = 0; k < Terms(); ++k) {
      const double c = 2 * (n - 2 * k);
      sum += weight[size_t(k)] * (1 - std::cos(c * psi)) / c;
    }
    return norm * sum;
  }
  double Moment(double psi) const {
    double sum = 0;
    for (int k = 0; k < Terms(); ++k) {
      const double c = 2 * (n - 2 * k);
      sum += weight[size_t(k)] * (std::sin(c * psi) / c - psi * std::cos(c * psi)) / c;
    }
    return norm * sum;
  }
};

const SineSum& Sines(int level) {
  static const std::array<SineSum, 3> sums = {SineSum(2), SineSum(3), SineSum(4)};
  return sums[size_t(level - 2)];
}

AngleBook LloydMaxAngles(int level, int bits) {
  const SineSum& sines = Sines(level);
  const int n = 1 << bits;
  std::vector<double> c(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) {  // quantiles, so that no cell is empty
    double lo = 0, hi = kQuarter;
    for (int step = 0; step < 50; ++step) {
      const double mid = (lo + hi) / 2;
      (sines.Mass(mid) < (i + 0.5) / n ? lo : hi) = mid;
    }
    c[size_t(i)] = lo;
  }
  for (int sweep = 0; sweep < 20000; ++sweep) {
    double moved = 0, begin = 0;
    for (int i = 0; i < n; ++i) {
      const double end = i + 1 < n ? (c[size_t(i)] + c[size_t(i) + 1]) / 2 : kQuarter;
      const double mean = (sines.Moment(end) - sines.Moment(begin)) / (sines.Mass(end) - sines.Mass(begin));
      moved = std::max(moved, std::abs(mean - c[size_t(i)]));
      c[size_t(i)] = mean;
      begin = end;
    }
    if (moved < 1e-13) break;
  }
  return AngleBook::FromCentroids(std::vector<float>(c.begin(), c.end()));
}

// Simpson's rule on 400 intervals.
template <class F>
double Integral(double a, double b, const F& f) {
  constexpr int kHalf = 200;
  const double h = (b - a) / (2 * kHalf);
  double sum = f(a) + f(b);
  for (int i = 1; i < 2 * kHalf; ++i) sum += (i % 2 == 1 ? 4 : 2) * f(a + i * h);
  return sum * h / 3;
}

// Lloyd's algorithm on sorted angles; returns the sum of squared distances.
double LloydSweeps(std::span<const float> angles, std::span<float> centroids) {
  constexpr int kSweeps = 30;
  double loss = 0;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    float moved = 0;
    loss = 0;
    auto begin = angles.begin();
    for (size_t i = 0; i < centroids.size(); ++i) {
      const auto end = i + 1 < centroids.size()
                           ? std::upper_bound(begin, angles.end(), (centroids[i] + centroids[i + 1]) / 2)
                           : angles.end();
      if (end == begin) continue;  // keeps its place; order is kept too, since means lie in their cells
      double sum = 0, squares = 0;
      for (auto a = begin; a != end; ++a) sum += double(*a), squares += double(*a) * double(*a);
      const double mean = sum / double(end - begin);
      loss += squares - mean * sum;
      moved = std::max(moved, std::abs(float(mean) - centroids[i]));
      centroids[i] = float(mean);
      begin = end;
    }
    if (moved < 1e-5f) break;
  }
  return loss;
}

}  // namespace

double AngleDensity(int level, double psi) {
  const SineSum& s = Sines(level);
  return s.norm * std::pow(std::sin(2 * psi), s.n);
}
double AngleDistribution(int level, double psi) { return Sines(level).Mass(std::clamp(psi, 0., kQuarter)); }

AngleBook AngleBook::Uniform(int bits) {
  AngleBook book;
  book.bits = bits;
  const int n = 1 << bits;
  for (int i = 0; i < n; ++i) {
    const double a = (i + 0.5) * 2 * std::numbers::pi / n;
    book.angle[size_t(i)] = float(a);
    book.cos[size_t(i)] = float(std::cos(a));
    book.sin[size_t(i)] = float(std::sin(a));
  }
  for (int k = 1; k < n / 4; ++k) book.tangent[size_t(k) - 1] = float(std::tan(k * 2 * std::numbers::pi / n));
  return book;
}

AngleBook AngleBook::FromCentroids(std::span<const float> angle) {
  AngleBook book;
  while (size_t{1} << book.bits < angle.size()) ++book.bits;
  for (size_t i = 0; i < angle.size(); ++i) {
    book.angle[i] = angle[i];
    book.cos[i] = std::cos(angle[i]);
    book.sin[i] = std::sin(angle[i]);
    if (i + 1 < angle.size()) book.tangent[i] = float(std::tan((double(angle[i]) + double(angle[i + 1])) / 2));
  }
  return book;
}

int AngleBook::QuadrantCode(float x, float y) const noexcept {
  const int last = (1 << bits) - 1;
  int code = 0;
  for (int k = 0; k < last; ++k) code += y > tangent[size_t(k)] * x;
  return code;
}

int AngleBook::CircleCode(float x, float y) const noexcept {
  int quadrant;
  float u, v;  // turned into the first quadrant
  if (y >= 0 && x > 0) {
    quadrant = 0, u = x, v = y;
  } else if (y >= 0) {
    quadrant = 1, u = y, v = -x;
  } else if (x <= 0) {
    quadrant = 2, u = -x, v = -y;
  } else {
    quadrant = 3, u = -y, v = x;
  }
  const int each = 1 << (bits - 2);
  int code = 0;
  for (int k = 0; k + 1 < each; ++k) code += v > tangent[size_t(k)] * u;
  return quadrant * each + code;
}

const AngleBook& AnalyticBook(int level, int bits) {
  constexpr size_t kLeast = 2, kMost = 5, kEach = kMost - kLeast + 1;
  static std::array<AngleBook, kPolarLevels * kEach> books;
  static std::array<std::once_flag, kPolarLevels * kEach> made;
  const size_t slot = (size_t(level) - 1) * kEach + size_t(bits) - kLeast;
  std::call_once(made[slot],
                 [&] { books[slot] = level == 1 ? AngleBook::Uniform(bits) : LloydMaxAngles(level, bits); });
  return books[slot];
}

double MeanCosine(int level, const AngleBook& book) {
  const int n = 1 << book.bits;
  if (level == 1) {
    const double half = std::numbers::pi / n;
    return std::sin(half) / half;
  }
  double sum = 0, begin = 0;
  for (int i = 0; i < n; ++i) {
    const double centre = double(book.angle[size_t(i)]);
    const double end = i + 1 < n ? (centre + double(book.angle[size_t(i) + 1])) / 2 : kQuarter;
    sum += Integral(begin, end, [&](double psi) { return AngleDensity(level, psi) * std::cos(psi - centre); });
    begin = end;
  }
  return sum;
}

void FitAngles(std::span<float> angles, std::span<float> centroids) {
  if (angles.empty()) return;
  std::sort(angles.begin(), angles.end());
  std::array<float, 32> quantiles{};
  const std::span<float> other(quantiles.data(), centroids.size());
  for (size_t i = 0; i < other.size(); ++i) other[i] = angles[(2 * i + 1) * angles.size() / (2 * other.size())];
  const double given = LloydSweeps(angles, centroids);
  if (LloydSweeps(angles, other) < given) std::copy(other.begin(), other.end(), centroids.begin());
}

}  // namespace croquis::codecs
