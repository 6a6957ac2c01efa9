// The chooser: what it keeps stays within the target, what it does not is exact.
#include <gtest/gtest.h>

#include <algorithm>
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

// Queries of zero weigh all keys alike, which means of cells give exactly; the other heads' values of zero mean no
// cells give. Heads are chosen one by one, within a group too.
struct Mixed {
  int64_t n, head;  // rows; numbers of a head
  RandomProblem r;
  const char* const method = "auto:min_length=512,leaf=256,eps=0.05";
  // Of as many keys as a pilot needs to be no small problem, which methods answer exactly.
  explicit Mixed(bool causal)
      : n(causal ? 8192 : 4096),
        head(n * 16),
        r({.heads = 4, .kv_heads = 2, .nq = n, .nk = n, .dim = 16, .value_dim = 16, .causal = causal}) {
    for (const int64_t h : {0, 3}) std::fill_n(r.q.f32() + h * head, head, 0.f);
  }
};

TEST(Auto, APilotSparesHeadsTheTrial) {
  for (const bool causal : {false, true}) {
    const Mixed mixed(causal);
    const Problem& p = mixed.r.problem;
    Answer got(p), exact(p);
    const RunReport report = testing::RunOn(mixed.method, p, got);
    testing::RunOn("exact", p, exact);
    EXPECT_EQ(report.chosen, (std::vector<std::string>{"hyper", "exact", "exact", "hyper"})) << causal;
    EXPECT_EQ(report.fallback_rows, 0) << "a head was computed twice, causal " << causal;
    EXPECT_LT(report.pairs, .95 * report.exact_pairs) << causal;
    double most = 0;
    for (int64_t i = 0; i < 4 * mixed.head; ++i) {
      const double error = std::abs(double(got.out[size_t(i)]) - double(exact.out[size_t(i)]));
      if (i / mixed.head == 1 || i / mixed.head == 2) {
        ASSERT_LT(error, 1e-6) << i << ", causal " << causal;
      }
      most = std::max(most, error);
    }
    EXPECT_LT(most, 1e-3) << causal;
    for (size_t i = 0; i < got.lse.size(); ++i) ASSERT_NEAR(got.lse[i], exact.lse[i], 1e-3) << causal;
  }
}

TEST(Auto, ChoicesDoNotDependOnThreads) {
  for (const bool causal : {false, true}) {
    const Mixed mixed(causal);
    const Problem& p = mixed.r.problem;
    Answer one(p);
    const RunReport report = testing::RunOn(mixed.method, p, one, 1, 1);
    for (const int threads : {2, 3}) {
      Answer other(p);
      const RunReport again = testing::RunOn(mixed.method, p, other, 1, threads);
      EXPECT_EQ(one.out, other.out) << threads << " threads, causal " << causal;
      EXPECT_EQ(one.lse, other.lse) << threads << " threads, causal " << causal;
      EXPECT_EQ(report.chosen, again.chosen);
      EXPECT_EQ(report.pairs, again.pairs);
      EXPECT_EQ(report.est_error, again.est_error);
    }
  }
}

// A pilot that passes promises nothing: what stands in the output is measured, and a head that fails is exact. Rows up
// to a quarter, where a pilot looks, are easy here, later ones hard.
TEST(Auto, TheCertificateHasTheLastWord) {
  Mixed mixed(true);
  for (int64_t i = 0; i < 4 * mixed.head; ++i) {
    const int64_t row = i % mixed.head / 16;
    mixed.r.q.f32()[i] = row < mixed.n / 4 ? 0.f : float(i * 7 % 11 - 5) * .3f;
  }
  const Problem& p = mixed.r.problem;
  Answer got(p), exact(p);
  const RunReport report = testing::RunOn(mixed.method, p, got);
  testing::RunOn("exact", p, exact);
  EXPECT_EQ(report.chosen, std::vector<std::string>(4, "exact"));
  EXPECT_EQ(report.fallback_rows, 4 * mixed.n);
  for (size_t i = 0; i < got.out.size(); ++i) ASSERT_NEAR(got.out[i], exact.out[i], 1e-6);
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
