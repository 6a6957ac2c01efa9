// The growing factor: its bounds are bounds, tight where it matters, however badly keys are scaled.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/attention/lev/leverage_factor.h"
#include "croquis/attention/lev/test_keys.h"

namespace croquis::attention::lev {
namespace {

using testing::Gaussian;

void Check(const Matrix<float>& keys, double tightness, Executor* parallel = nullptr) {
  const int64_t n = keys.rows(), d = keys.cols();
  Executor executor;
  LeverageFactor factor(d, kDefaultRidge);
  if (parallel != nullptr) factor.Add(keys.View(), parallel);
  for (int64_t first = 0; parallel == nullptr && first < n; first += 64)
    factor.Add(keys.View().Rows(first, std::min<int64_t>(64, n - first)));
  factor.RaiseRidge();
  std::vector<double> want(size_t(n), 0.), bounds(size_t(n), 0.);
  LeverageScores(executor, keys.View(), kDefaultRidge, want);
  EXPECT_LT(factor.Error(), 1e-3);
  for (const double care : {0., .05, std::numeric_limits<double>::infinity()}) {
    factor.UpperBounds(keys.View(), care, bounds);
    for (size_t j = 0; j < size_t(n); ++j) {
      ASSERT_GE(bounds[j], want[j] * (1 - factor.Error() - 1e-10)) << j;
      if (bounds[j] >= care) {
        ASSERT_LE(bounds[j], want[j] * (1 + tightness) + 1e-12) << j << " care " << care;
      }
    }
  }
}

TEST(LeverageFactor, BoundsAreBoundsAndTight) {
  Executor executor(2);
  for (const int64_t d : {1, 16, 65}) {
    Check(Gaussian(700, d, 1), 1e-5);
    Check(Gaussian(5000, d, 1), 1e-5, &executor);
    for (const double spread : {1e2, 1e4, 1e6}) {
      // Sizes of keys that grow, fall, or jump; directions of very different sizes.
      for (const int kind : {0, 1, 2, 3}) {
        SCOPED_TRACE(std::to_string(d) + " spread " + std::to_string(spread) + " kind " + std::to_string(kind));
        Matrix<float> keys = Gaussian(1100, d, 2);
        for (int64_t j = 0; j < 1100; ++j)
          for (int64_t i = 0; i < d; ++i) {
            const double at = kind == 0   ? double(j) / 1100
                              : kind == 1 ? -double(j) / 1100
                              : kind == 2 ? (j % 5 == 0 ? 1 : 0)
                                          : -double(i) / double(d);
            keys.Row(j)[i] = float(double(keys.Row(j)[i]) * std::pow(spread, at));
          }
        // A weak direction is measured to what its ridge allows in either way.
        Check(keys, kind == 3 ? 2e-2 : 1e-3);
        Check(keys, kind == 3 ? 2e-2 : 1e-3, &executor);
      }
    }
  }
}

TEST(LeverageFactor, EmptyAndZero) {
  LeverageFactor factor(4, kDefaultRidge);
  Matrix<float> keys(3, 4);
  keys.Row(1)[2] = 2;
  std::vector<double> bounds(3);
  factor.UpperBounds(keys.View(), .1, bounds);
  EXPECT_EQ(bounds[0], 0);
  EXPECT_TRUE(std::isinf(bounds[1]));
  factor.Add(Matrix<float>(10, 4).View());
  EXPECT_TRUE(factor.empty());
  factor.Add(keys.View());
  EXPECT_FALSE(factor.empty());
  factor.UpperBounds(keys.View(), .1, bounds);
  EXPECT_EQ(bounds[2], 0);
  EXPECT_NEAR(bounds[1], 1, 1e-6);
}

}  // namespace
}  // namespace croquis::attention::lev
