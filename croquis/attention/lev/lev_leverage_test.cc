// Leverage scores, Lewis weights and sensitivity bounds against their definitions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/attention/lev/test_keys.h"

namespace croquis::attention::lev {
namespace {

using testing::Gaussian;
using testing::Score;

std::vector<double> Leverage(const Matrix<float>& keys, double ridge = kDefaultRidge) {
  Executor executor(2);
  std::vector<double> scores(size_t(keys.rows()));
  LeverageScores(executor, keys.View(), ridge, scores);
  return scores;
}

double Sum(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return sum;
}

// The theorem for p = 2, on 10,000 queries: no query gives a key more than its leverage, and one query gives it just
// that.
TEST(Leverage, BoundsEveryQueryAndIsReached) {
  const int64_t n = 1500, d = 24;
  Matrix<float> keys = Gaussian(n, d, 1);
  for (int64_t j = 0; j < n; j += 100)
    for (int64_t i = 0; i < d; ++i) keys.Row(j)[i] *= 6;
  const std::vector<double> scores = Leverage(keys);
  EXPECT_NEAR(Sum(scores), double(d), 1e-8);
  const Stream random{7, Purpose("test.lev.queries")};
  std::vector<double> y(d), weights(static_cast<size_t>(n));
  for (uint64_t r = 0; r < 8500; ++r) {
    for (int64_t i = 0; i < d; ++i) y[size_t(i)] = double(random.Sub(r).Gaussian(uint64_t(i)));
    Score(keys, y, 2, weights);
    for (size_t j = 0; j < size_t(n); ++j) ASSERT_LE(weights[j], scores[j] * (1 + 1e-9));
  }
  Executor executor;
  const linalg::Cholesky gram = RidgeFactor(executor, keys.View(), {}, kDefaultRidge);
  for (int64_t j = 0; j < n; ++j) {
    Matrix<double> worst(1, d);
    for (int64_t i = 0; i < d; ++i) worst.Row(0)[i] = double(keys.Row(j)[i]);
    gram.Solve(worst.View());
    y.assign(worst.data(), worst.data() + d);
    Score(keys, y, 2, weights);
    for (size_t l = 0; l < size_t(n); ++l) ASSERT_LE(weights[l], scores[l] * (1 + 1e-9));
    ASSERT_NEAR(weights[size_t(j)], scores[size_t(j)], 1e-9 * scores[size_t(j)]) << j;
  }
}

TEST(Leverage, AtMostRankOverEpsAreAbove) {
  for (const int64_t rank : {1, 7, 32}) {
    const Matrix<float> keys = testing::LowRank(900, 32, rank, 3);
    const std::vector<double> scores = Leverage(keys);
    for (const double eps : {.01, .05, .1, .3, .9}) {
      const auto above = std::count_if(scores.begin(), scores.end(), [&](double s) { return s >= eps; });
      EXPECT_LE(double(above), 32 / eps);
    }
  }
}

TEST(Leverage, DoesNotChangeUnderAnInvertibleMap) {
  const int64_t n = 400, d = 16;
  const Matrix<float> keys = Gaussian(n, d, 4), map = Gaussian(d, d, 5);
  // In powers of two, so that the mapped keys hold the sums exactly enough: sums of rounded products in f32 would
  // differ.
  Matrix<float> small(n, d), mapped(n, d);
  for (int64_t i = 0; i < n * d; ++i) small.data()[i] = std::round(keys.data()[i] * 64) / 64;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t c = 0; c < d; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < d; ++i) sum += double(small.Row(j)[i]) * double(std::round(map.Row(i)[c] * 16) / 16);
      mapped.Row(j)[c] = float(sum);
      ASSERT_EQ(double(mapped.Row(j)[c]), sum);
    }
  const std::vector<double> a = Leverage(small), b = Leverage(mapped);
  for (size_t j = 0; j < a.size(); ++j) EXPECT_NEAR(a[j], b[j], 1e-8);
}

TEST(Leverage, DegenerateKeys) {
  // Fewer keys than dimensions: every key stands alone.
  for (const double s : Leverage(Gaussian(10, 64, 1))) EXPECT_NEAR(s, 1, 1e-8);
  // Copies share.
  Matrix<float> copies(30, 8);
  for (int64_t j = 0; j < 30; ++j)
    for (int64_t i = 0; i < 8; ++i) copies.Row(j)[i] = float(1 + i);
  for (const double s : Leverage(copies)) EXPECT_NEAR(s, 1. / 30, 1e-10);
  // Zero keys have none, and take nothing from the others.
  Matrix<float> some = Gaussian(200, 8, 2);
  for (int64_t j = 100; j < 200; ++j)
    for (int64_t i = 0; i < 8; ++i) some.Row(j)[i] = 0;
  const std::vector<double> with = Leverage(some), without = Leverage(Gaussian(200, 8, 2));
  EXPECT_NEAR(Sum(with), 8, 1e-8);
  for (size_t j = 100; j < 200; ++j) EXPECT_EQ(with[j], 0);
  for (const double s : Leverage(Matrix<float>(5, 4))) EXPECT_EQ(s, 0);
  EXPECT_EQ(Leverage(Matrix<float>(0, 4)).size(), 0u);
  // The scale does not matter, up to the ends of f32.
  const std::vector<double> plain = Leverage(Gaussian(50, 4, 3));
  for (const float scale : {1e-30f, 1e-15f, 1e15f, 1e30f}) {
    Matrix<float> keys = Gaussian(50, 4, 3);
    for (int64_t i = 0; i < 200; ++i) keys.data()[i] *= scale;
    const std::vector<double> scaled = Leverage(keys);
    for (size_t j = 0; j < 50; ++j) EXPECT_NEAR(scaled[j], plain[j], 1e-5);
  }
}

TEST(Leverage, DoesNotDependOnThreads) {
  const Matrix<float> keys = Gaussian(5000, 20, 9);
  std::vector<double> one(5000), four(5000);
  Executor e1(1), e4(4);
  LeverageScores(e1, keys.View(), kDefaultRidge, one);
  LeverageScores(e4, keys.View(), kDefaultRidge, four);
  EXPECT_EQ(one, four);
}

TEST(Lewis, ConvergesToTheFixedPoint) {
  Executor executor(2);
  const int64_t n = 600, d = 12;
  Matrix<float> keys = Gaussian(n, d, 11);
  for (int64_t j = 0; j < n; j += 60)
    for (int64_t i = 0; i < d; ++i) keys.Row(j)[i] *= 5;
  keys.Row(7)[0] = 0;
  std::vector<double> weights(n), scales(n), forms(n);
  for (const double p : {1., 1.5, 2., 3., 4., 5., 6.}) {
    SCOPED_TRACE(p);
    const LewisReport report = LewisWeights(executor, keys.View(), p, kDefaultRidge, weights, 200, 1e-10);
    EXPECT_LE(report.residual, 1e-10) << report.iterations;
    EXPECT_NEAR(Sum(weights), double(d), 1e-6);
    for (size_t j = 0; j < n; ++j) scales[j] = std::pow(weights[j], 0.5 - 1 / p);
    RidgeFactor(executor, keys.View(), scales, kDefaultRidge).QuadraticForms(keys.View(), forms);
    for (size_t j = 0; j < n; ++j) ASSERT_NEAR(scales[j] * scales[j] * forms[j] / weights[j], 1, 1e-7);
  }
  const std::vector<double> leverage = Leverage(keys);
  LewisWeights(executor, keys.View(), 2, kDefaultRidge, weights);
  for (size_t j = 0; j < n; ++j) EXPECT_NEAR(weights[j], leverage[j], 1e-12);
}

// Bounds hold whatever the weights: converged, after one iteration, or arbitrary.
TEST(Lewis, BoundsHoldForAnyWeights) {
  Executor executor(2);
  const int64_t n = 300, d = 8;
  Matrix<float> keys = Gaussian(n, d, 13);
  for (int64_t j = 0; j < n; j += 40)
    for (int64_t i = 0; i < d; ++i) keys.Row(j)[i] *= float(2 + j % 3);
  for (int64_t i = 0; i < d; ++i) keys.Row(5)[i] = 0;
  const Stream random{17, Purpose("test.lev.weights")};
  for (const double p : {1., 1.3, 2., 3., 4., 6., 8.}) {
    std::vector<double> reached(n);
    testing::ForHardQueries(keys, p, 2000, [&](const std::vector<double>& y) {
      std::vector<double> scores(n);
      Score(keys, y, p, scores);
      for (size_t j = 0; j < n; ++j) reached[j] = std::max(reached[j], scores[j]);
    });
    for (const int kind : {0, 1, 2}) {
      SCOPED_TRACE(std::to_string(p) + " weights " + std::to_string(kind));
      std::vector<double> weights(n), bounds(n);
      LewisWeights(executor, keys.View(), p, kDefaultRidge, weights, kind == 1 ? 1 : 60);
      if (kind == 2)
        for (size_t j = 0; j < n; ++j) weights[j] *= double(0.1f + random.Uniform(j));
      SensitivityBounds(executor, keys.View(), p, kDefaultRidge, weights, bounds);
      for (size_t j = 0; j < n; ++j) ASSERT_LE(reached[j], bounds[j] * (1 + 1e-9)) << j;
      EXPECT_EQ(bounds[5], 0);
      if (kind == 0) {
        EXPECT_NEAR(Sum(bounds), std::pow(double(d), std::max(1., p / 2)), 1e-3 * std::pow(d, p / 2));
      }
    }
  }
}

}  // namespace
}  // namespace croquis::attention::lev
