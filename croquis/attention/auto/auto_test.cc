// The chooser: what it keeps stays within the target, what it does not is exact.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "croquis/attention/test_run.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::RandomProblem;

struct Outcome {
  ErrorReport error;
  RunReport report;
};

Outcome RunAuto(const Problem& p, const std::string& method, uint64_t seed = 0) {
  Answer got(p), want = testing::Reference(p);
  Outcome outcome;
  outcome.report = testing::RunOn(method, p, got, seed);
  outcome.error = testing::ErrorOf(p, got, want);
  return outcome;
}

constexpr Case kLong = {.heads = 2, .kv_heads = 1, .nq = 300, .nk = 8192, .dim = 16, .value_dim = 16};

TEST(Auto, NoErrorAllowedIsExact) {
  const RandomProblem r(kLong);
  const Outcome o = RunAuto(r.problem, "auto:eps=0");
  EXPECT_LT(o.error.row_max, 2e-5);
  EXPECT_EQ(o.report.est_error, 0);
  EXPECT_EQ(o.report.chosen, std::vector<std::string>(2, "exact"));
}

TEST(Auto, FewKeysAreExact) {
  Case c = kLong;
  c.nq = c.nk = 300;
  const RandomProblem r(c);
  const Outcome o = RunAuto(r.problem, "auto:eps=0.5");
  EXPECT_LT(o.error.row_max, 2e-5);
  EXPECT_EQ(o.report.pairs, o.report.exact_pairs);
}

// Values that are nearly the same for all keys: any weights give the answer. Values of zero mean under flat weights:
// the answer is a small difference of large sums and no sample has it.
TEST(Auto, KeepsTheMethodWhereItIsGoodAndGoesExactWhereItIsNot) {
  RandomProblem r(kLong);
  const Outcome noise = RunAuto(r.problem, "auto:eps=0.02");
  EXPECT_EQ(noise.report.chosen, std::vector<std::string>(2, "exact"));
  EXPECT_LT(noise.error.row_max, 2e-5);
  EXPECT_EQ(noise.report.fallback_rows, noise.report.rows);
  float* const v = r.v.f32();
  for (int64_t i = 0; i < 8192 * 16; ++i) v[i] = 1 + .05f * v[i];
  const Outcome smooth = RunAuto(r.problem, "auto:eps=0.05");
  EXPECT_EQ(smooth.report.chosen, std::vector<std::string>(2, "hyper"));
  EXPECT_LT(smooth.report.pairs, smooth.report.exact_pairs);
  EXPECT_GT(smooth.report.est_error, 0);
  EXPECT_LE(smooth.report.est_error, .05);
}

// The estimate is an upper limit with 90 % confidence for each head. More than 9 of 30 heads exceed
// theirs with probability 5e-4 (binomial) if the limit is right.
TEST(Auto, TheEstimateBoundsTheErrorAsOftenAsItSays) {
  int exceeded = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    RandomProblem r({.nq = 512, .nk = 6000, .dim = 16, .value_dim = 16}, seed + 1);
    float* const v = r.v.f32();
    for (int64_t i = 0; i < 6000 * 16; ++i) v[i] += .5f;
    const Outcome o = RunAuto(r.problem, "auto:eps=10", seed);
    ASSERT_EQ(o.report.chosen[0], "hyper");
    exceeded += o.error.row_mean > o.report.est_error;
  }
  EXPECT_LE(exceeded, 9);
}

}  // namespace
}  // namespace croquis::attention
