// Every reachable target against sums in double, at odd sizes, with guarded buffers.
#include "croquis/simd/feature_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "croquis/base/rng.h"

namespace croquis::simd {
namespace {

constexpr float kGuard = 12345.f;
// Sums of n <= 100 products of numbers of size 1, each with an error below 2^-22 of its size, in at most n roundings.
constexpr double kSum = 2e-5;

std::vector<float> Gaussians(int64_t n, uint64_t seed) {
  const Stream random{seed, Purpose("feature.numbers")};
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = random.Gaussian(i);
  return x;
}

class FeatureKernelsTest : public ::testing::TestWithParam<Target> {
 protected:
  const FeatureKernels& kernels() const { return FeatureLoops(GetParam()); }
};

TEST_P(FeatureKernelsTest, SquaresOfRowsAndColumns) {
  for (const int64_t n : {1, 5, 16, 17, 33}) {
    const int64_t rows = 7, columns = 16, ldx = n + 3;
    std::vector<float> x = Gaussians(rows * ldx + kFeatureSlack, uint64_t(n)), xt(size_t(n * columns));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < n; ++i) xt[size_t(i * columns + r)] = x[size_t(r * ldx + i)];
    for (const int64_t begin : {int64_t{0}, n / 2}) {
      const int64_t end = n;
      int64_t features = 0;
      for (int64_t u = begin; u < end; ++u) features += n - u;
      std::vector<float> out(size_t(rows * features + kFeatureSlack)), outt(size_t(features * columns)),
          sums(size_t(features), 1.f);
      kernels().square_rows(x.data(), ldx, rows, n, begin, end, out.data(), features);
      kernels().square_columns(xt.data(), columns, columns, n, begin, end, .5f, 2.f, outt.data(), columns, sums.data());
      int64_t f = 0;
      for (int64_t u = begin; u < end; ++u)
        for (int64_t v = u; v < n; ++v, ++f) {
          double sum = 1;
          for (int64_t r = 0; r < rows; ++r) {
            const float want = x[size_t(r * ldx + u)] * x[size_t(r * ldx + v)];
            ASSERT_EQ(out[size_t(r * features + f)], want) << n << " " << u << " " << v;
            ASSERT_EQ(outt[size_t(f * columns + r)], want * (u == v ? .5f : 2.f));
            sum += double(want) * (u == v ? .5 : 2);
          }
          ASSERT_NEAR(sums[size_t(f)], sum, kSum);
        }
    }
  }
}

TEST_P(FeatureKernelsTest, EvenPowersStopAtTheirLimits) {
  for (const int power : {2, 4, 6, 8, 16})
    for (const int64_t cols : {1, 15, 16, 40}) {
      const int64_t rows = 9, ld = cols + 2;
      const std::vector<float> before = Gaussians(rows * ld, 3);
      std::vector<float> t = before, mass(size_t(rows), 1.f);
      for (int64_t r = 0; r < rows; ++r) t[size_t(r * ld + cols)] = kGuard;
      std::vector<int32_t> last;
      for (int64_t r = 0; r < rows; ++r) last.push_back(int32_t(r == 0 ? 0 : r == 1 ? cols : cols * r / rows));
      kernels().even_powers(t.data(), ld, rows, cols, power, last.data(), mass.data());
      for (int64_t r = 0; r < rows; ++r) {
        double sum = 1;
        for (int64_t c = 0; c < cols; ++c) {
          const double want = c < last[size_t(r)] ? std::pow(double(before[size_t(r * ld + c)]), power) : 0;
          ASSERT_NEAR(t[size_t(r * ld + c)], want, 2e-6 * want + 1e-38) << power << " " << r << " " << c;
          sum += want;
        }
        ASSERT_NEAR(mass[size_t(r)], sum, kSum * sum);
        ASSERT_EQ(t[size_t(r * ld + cols)], kGuard);
      }
    }
}

TEST_P(FeatureKernelsTest, ProductsSumsAndScans) {
  for (const int64_t n : {1, 15, 16, 31, 70}) {
    const std::vector<float> a = Gaussians(3 * n, 1), b = Gaussians(n, 2);
    std::vector<float> out(size_t(n + 1), kGuard), sums(3, 1.f), dots(3, 1.f), x = b, carry(a.begin(), a.begin() + n);
    kernels().product(a.data(), b.data(), .5f, n, out.data());
    kernels().row_sums(a.data(), n, 3, n, sums.data());
    kernels().row_dots(a.data(), n, 3, n, b.data(), dots.data());
    kernels().scan_step(x.data(), carry.data(), n);
    EXPECT_EQ(out[size_t(n)], kGuard);
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(out[size_t(i)], .5f * a[size_t(i)] * b[size_t(i)]);
      EXPECT_EQ(x[size_t(i)], a[size_t(i)]);
      EXPECT_EQ(carry[size_t(i)], a[size_t(i)] + b[size_t(i)]);
    }
    for (int64_t r = 0; r < 3; ++r) {
      double sum = 1, dot = 1;
      for (int64_t i = 0; i < n; ++i)
        sum += double(a[size_t(r * n + i)]), dot += double(a[size_t(r * n + i)]) * double(b[size_t(i)]);
      EXPECT_NEAR(sums[size_t(r)], sum, kSum);
      EXPECT_NEAR(dots[size_t(r)], dot, kSum);
    }
  }
}

TEST_P(FeatureKernelsTest, Exponentials) {
  std::vector<float> x;
  for (int i = 0; i < 1999; ++i) x.push_back(float(i - 999) * .09f);
  x.push_back(1e30f);
  x.push_back(-1e30f);
  std::vector<float> y = x;
  kernels().exp(y.data(), int64_t(y.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = x[i] < -87 ? 0 : std::exp(std::min(double(x[i]), 88.));
    EXPECT_NEAR(y[i], want, 3e-7 * want) << x[i];
  }
}

TEST_P(FeatureKernelsTest, LayerNorm) {
  for (const int64_t n : {1, 7, 16, 33, 128}) {
    const int64_t rows = 3;
    std::vector<float> x = Gaussians(rows * n + 1, uint64_t(n));
    for (int64_t i = 0; i < rows * n; ++i) x[size_t(i)] = 5 + 2 * x[size_t(i)];
    x.back() = kGuard;
    const std::vector<float> before = x;
    kernels().layer_norm(x.data(), rows, n, 1e-5f, .5f);
    EXPECT_EQ(x.back(), kGuard);
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < n; ++i) mean += double(before[size_t(r * n + i)]) / double(n);
      for (int64_t i = 0; i < n; ++i) variance += std::pow(double(before[size_t(r * n + i)]) - mean, 2) / double(n);
      for (int64_t i = 0; i < n; ++i)
        EXPECT_NEAR(x[size_t(r * n + i)], .5 * (double(before[size_t(r * n + i)]) - mean) / std::sqrt(variance + 1e-5),
                    n == 1 ? 0 : 1e-5);
    }
  }
}

TEST_P(FeatureKernelsTest, RankOneAndTripleSums) {
  for (const int64_t n : {1, 16, 33, 64, 130}) {
    const int64_t features = 11;
    const std::vector<float> u = Gaussians(features, 1), v = Gaussians(n, 2), a = Gaussians(features * n, 3);
    std::vector<float> b = a, out(size_t(n), 1.f);
    kernels().rank_one(u.data(), features, v.data(), n, b.data());
    kernels().triple_sums(u.data(), features, a.data(), b.data(), n, out.data());
    for (int64_t i = 0; i < n; ++i) {
      double sum = 1;
      for (int64_t f = 0; f < features; ++f) {
        const double x = double(a[size_t(f * n + i)]);
        EXPECT_NEAR(b[size_t(f * n + i)], x + double(u[size_t(f)]) * double(v[size_t(i)]), 2e-6);
        sum += double(u[size_t(f)]) * x * double(b[size_t(f * n + i)]);
      }
      EXPECT_NEAR(out[size_t(i)], sum, 5 * kSum);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, FeatureKernelsTest, ::testing::ValuesIn(Reachable().begin(), Reachable().end()),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace croquis::simd
