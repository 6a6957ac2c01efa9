#include "croquis/codecs/kivi/minmax.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <numbers>

namespace croquis::codecs {
namespace {

constexpr float kMaxHalf = 65504;

double Density(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }
double Below(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

// Integral of (x - centre)^2 under the normal density from a to b.
double CellError(double centre, double a, double b) {
  const double fa = Density(a), fb = Density(b), mass = Below(b) - Below(a);
  const double second = mass + a * fa - b * fb, first = fa - fb;
  return second - 2 * centre * first + centre * centre * mass;
}

// The error of one number known to lie in [lo, hi], times the chance of that.
double InnerError(double lo, double hi, int top) {
  const double step = (hi - lo) / top;
  double sum = 0;
  for (int c = 0; c <= top; ++c) {
    const double centre = lo + step * c;
    sum += CellError(centre, std::max(lo, centre - step / 2), std::min(hi, centre + step / 2));
  }
  return sum;
}

// The trapezoid rule converges faster than any power of its step here: the integrand and all its derivatives vanish
// at the ends.
double Integrate(int top, int64_t n) {
  constexpr double kEnd = 6.5, kStep = 0.13;
  double sum = 0;
  for (double lo = -kEnd; lo < kEnd; lo += kStep) {
    for (double hi = lo + kStep; hi < kEnd; hi += kStep) {
      const double mass = Below(hi) - Below(lo);
      const double weight = double(n) * double(n - 1) * std::pow(mass, double(n - 3)) * Density(lo) * Density(hi);
      if (weight < 1e-13) continue;
      sum += weight * InnerError(lo, hi, top) * double(n - 2) / double(n);
    }
  }
  return sum * kStep * kStep;
}

}  // namespace

MinMax MinMaxOf(float lo, float hi, int top) {
  const float zero = std::clamp(lo, -kMaxHalf, kMaxHalf);
  const float scale = std::clamp((hi - lo) / float(top), 0.f, kMaxHalf);
  return {FloatToF16(scale == scale ? scale : 0.f), FloatToF16(zero == zero ? zero : 0.f)};
}

void MinMaxCodes(const MinMax& m, int top, const float* x, int64_t n, int64_t stride, uint8_t* code) {
  const float scale = F16ToFloat(m.scale), zero = F16ToFloat(m.zero), inverse = scale > 0 ? 1 / scale : 0.f;
  for (int64_t i = 0; i < n; ++i) {
    const float v = (x[i * stride] - zero) * inverse + 0.5f;
    code[i * stride] = uint8_t(std::min(std::max(0.f, v), float(top)));  // NaN gives 0
  }
}

double MinMaxGaussianMse(int top, int64_t n) {
  constexpr int kTops = 32, kGroups = 129;
  static std::array<std::atomic<double>, kTops * kGroups> known{};
  if (n <= 2) return 0;
  std::atomic<double>& slot = known[size_t(top * kGroups + n)];
  double value = slot.load(std::memory_order_relaxed);
  if (value == 0) slot.store(value = Integrate(top, n), std::memory_order_relaxed);
  return value;
}

}  // namespace croquis::codecs
