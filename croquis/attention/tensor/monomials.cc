#include "croquis/attention/tensor/monomials.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace croquis::attention::tensor {
namespace {

// max over |s| <= x of |1 - T_g(s) e^-s| lies at s = -x: (1 / g!) int_0^x s^g e^s ds, a sum of positive terms.
double TaylorError(int degree, double x) {
  double term = 1, sum = 0;
  for (int i = 1; i <= degree; ++i) term *= x / i;
  term *= x;
  for (int m = 0; m < 400; ++m) {
    const double add = term / (degree + 1 + m);
    sum += add;
    if (add < 1e-17 * sum || !std::isfinite(sum)) break;
    term *= x / (m + 1);
  }
  return sum;
}

Polynomial Taylor(int degree, double largest) {
  Polynomial p;
  double c = 1;
  for (int t = 0; t <= degree; ++t, c /= t) p.coefficients.push_back(c);
  p.relative_error = TaylorError(degree, largest);
  return p;
}

// e^(x u) = I_0(x) + 2 sum_k I_k(x) T_k(u) on [-1, 1].
Polynomial Chebyshev(int degree, double x) {
  const size_t n = size_t(degree) + 1;
  std::vector<double> before(n), now(n), sum(n);
  before[0] = 1;  // T_0
  now[1] = 1;     // T_1
  sum[0] = std::cyl_bessel_i(0, x);
  for (int k = 1; k <= degree; ++k) {
    const double c = 2 * std::cyl_bessel_i(k, x);
    for (size_t t = 0; t < n; ++t) sum[t] += c * now[t];
    std::vector<double> next(n);
    for (size_t t = 0; t < n; ++t) next[t] = (t > 0 ? 2 * now[t - 1] : 0) - before[t];
    before = std::move(now);
    now = std::move(next);
  }
  Polynomial p;
  for (size_t t = 0; t < n; ++t) p.coefficients.push_back(sum[t] / std::pow(x, double(t)));
  constexpr int kGrid = 2000;
  for (int i = -kGrid; i <= kGrid; ++i) {
    const double s = x * i / kGrid;
    double value = 0;
    for (size_t t = n; t-- > 0;) value = value * s + p.coefficients[t];
    p.relative_error = std::max(p.relative_error, std::abs(value * std::exp(-s) - 1));
  }
  return p;
}

}  // namespace

double Polynomial::OutputError() const {
  return relative_error < 1 ? 2 * relative_error / (1 - relative_error) : std::numeric_limits<double>::infinity();
}

Polynomial ExpPolynomial(Series series, int degree, double largest) {
  // Within so small a range the two agree, and the Chebyshev form would divide by powers of it. Beyond 80 both are
  // useless, and Bessel functions leave double.
  if (series == Series::kTaylor || largest < 1e-3 || largest > 80) return Taylor(degree, largest);
  return Chebyshev(degree, largest);
}

int64_t Monomials::Count(int64_t dim, int degree, int64_t limit) {
  double count = 1;
  for (int i = 1; i <= degree; ++i) count *= double(dim + i) / i;
  return count >= double(limit) ? limit : int64_t(std::llround(count));
}

Monomials::Monomials(int64_t dim, int degree) : dim_(dim) {
  std::vector<int32_t> last = {0};     // variable from which on each monomial of the degree before may be extended
  std::vector<int64_t> repeats = {0};  // how often it holds that variable
  int64_t begin = 0;
  for (int t = 1; t <= degree; ++t) {
    const int64_t end = count_;
    std::vector<int32_t> next_last;
    std::vector<int64_t> next_repeats;
    for (int64_t parent = begin; parent < end; ++parent) {
      const int32_t from = last[size_t(parent - begin)];
      const int64_t held = repeats[size_t(parent - begin)];
      runs_.push_back({parent, count_, from, t, held});
      for (int32_t v = from; v < dim; ++v) {
        next_last.push_back(v);
        next_repeats.push_back(v == from ? held + 1 : 1);
      }
      count_ += dim - from;
    }
    last = std::move(next_last);
    repeats = std::move(next_repeats);
    begin = end;
  }
}

void Monomials::Evaluate(const float* x, float* out) const {
  out[0] = 1;
  for (const Run& run : runs_) {
    const float a = out[run.parent];
    const float* from = x + run.variable;
    float* to = out + run.first;
    const int64_t n = dim_ - run.variable;
    for (int64_t i = 0; i < n; ++i) to[i] = a * from[i];
  }
}

std::vector<float> Monomials::Coefficients(const Polynomial& p, double scale) const {
  // t! / alpha! of a monomial is its parent's times t / (exponent of the variable it was extended by).
  std::vector<double> multinomial(size_t(count_), 1.0), power(p.coefficients.size(), 1.0);
  std::vector<int> degree(static_cast<size_t>(count_));
  for (const Run& run : runs_)
    for (int64_t i = 0; i < dim_ - run.variable; ++i) {
      const double exponent = i == 0 ? double(run.exponent + 1) : 1;
      multinomial[size_t(run.first + i)] = multinomial[size_t(run.parent)] * run.degree / exponent;
      degree[size_t(run.first + i)] = run.degree;
    }
  for (size_t t = 1; t < power.size(); ++t) power[t] = power[t - 1] * scale;
  std::vector<float> out(static_cast<size_t>(count_));
  for (size_t f = 0; f < out.size(); ++f)
    out[f] = float(p.coefficients[size_t(degree[f])] * multinomial[f] * power[size_t(degree[f])]);
  return out;
}

}  // namespace croquis::attention::tensor
