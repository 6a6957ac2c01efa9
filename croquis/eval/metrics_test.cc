#include "croquis/eval/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace croquis::eval {
namespace {

TEST(Metrics, KlOfTwoKnownDistributions) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL(p || q) = 1/2 ln 2 - 1/4 ln 2 = ln(2) / 4. Logits carry shifts, which
  // must not matter.
  const std::vector<float> p = {float(std::log(2.0) + 7), 7, 7};
  const std::vector<float> q = {-3, float(std::log(2.0) - 3), -3};
  ReferenceRow ref;
  ref.Set(p);
  const RowDivergence row = ref.Compare(q, 1);
  EXPECT_NEAR(row.kl, std::log(2.0) / 4, 1e-6);  // logits are rounded to float: 7 has an ulp of 5e-7
  EXPECT_NEAR(row.nll, std::log(2.0), 1e-6);
  EXPECT_NEAR(ref.Nll(0), std::log(2.0), 1e-6);
  EXPECT_FALSE(row.same_top);
  const RowDivergence self = ref.Compare(p, -1);
  EXPECT_EQ(self.kl, 0);
  EXPECT_EQ(self.nll, 0);
  EXPECT_TRUE(self.same_top);
}

TEST(Metrics, KlSurvivesLargeLogits) {
  // exp(1e4) overflows a double; the log-sum-exp form must not.
  const std::vector<float> p = {1e4f, 1e4f - 1, -1e4f}, q = {1e4f - 1, 1e4f, -1e4f};
  ReferenceRow ref;
  ref.Set(p);
  const double a = 1 / (1 + std::exp(-1.0));  // p = (a, 1 - a, 0), and q swaps the two: KL = 2a - 1
  EXPECT_NEAR(ref.Compare(q, 0).kl, 2 * a - 1, 1e-12);
}

TEST(Metrics, ArgMaxTakesTheLowestOfEquals) {
  EXPECT_EQ(ArgMax(std::vector<float>{1, 3, 3}), 1);
  EXPECT_EQ(ArgMax({}), -1);
}

TEST(Metrics, QuantilesAreThoseOfNumPy) {
  std::vector<double> v(1000);
  for (size_t i = 0; i < v.size(); i++) v[i] = double((i * 7919) % 1000);  // a permutation of 0..999
  EXPECT_DOUBLE_EQ(Median(v), 499.5);
  EXPECT_NEAR(Quantile(v, 0.99), 989.01, 1e-9);
  EXPECT_NEAR(Quantile(v, 0.999), 998.001, 1e-9);
  EXPECT_EQ(Quantile(v, 0), 0);
  EXPECT_EQ(Quantile(v, 1), 999);
  std::vector<double> one = {4};
  EXPECT_EQ(Quantile(one, 0.3), 4);
  EXPECT_TRUE(std::isnan(Quantile({}, 0.5)));
}

TEST(Metrics, SummaryCountsTargetsApart) {
  DivergenceCollector c;
  c.Add({.kl = 1, .nll = std::log(4.0), .same_top = true}, true);
  c.Add({.kl = 3, .nll = 99, .same_top = false}, false);  // no target: its nll must not count
  const DivergenceSummary s = c.Summary();
  EXPECT_EQ(s.positions, 2);
  EXPECT_DOUBLE_EQ(s.kl_mean, 2);
  EXPECT_DOUBLE_EQ(s.kl_median, 2);
  EXPECT_DOUBLE_EQ(s.same_top, 0.5);
  EXPECT_NEAR(s.ppl, 4, 1e-12);
  EXPECT_TRUE(std::isnan(DivergenceCollector().Summary().kl_mean));
}

}  // namespace
}  // namespace croquis::eval
