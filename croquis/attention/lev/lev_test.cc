// The method: exact when its set is everything, causal in the strict sense, unbiased in what it samples.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "croquis/attention/lev/key_plan.h"
#include "croquis/attention/lev/power.h"
#include "croquis/attention/test_run.h"

namespace croquis::attention::lev {
namespace {

using attention::testing::Answer;
using attention::testing::Case;
using attention::testing::Describe;
using attention::testing::ErrorOf;
using attention::testing::RandomProblem;

RunReport RunLev(const std::string& spec, const Problem& p, Answer& answer, int threads = 2, uint64_t seed = 0) {
  return testing::RunOn(spec, p, answer, seed, threads);
}

void Reference(const std::string& spec, const Problem& p, Answer& answer) {
  Executor executor(2);
  ASSERT_TRUE((*Make(spec))->RunReference(executor, p, answer.View()));
}

// Odd sizes, grouped heads, fewer and more queries than keys.
const Case kCases[] = {
    {.nq = 300, .nk = 300, .causal = true},
    {.heads = 4, .kv_heads = 2, .nq = 131, .nk = 517, .dim = 40, .value_dim = 24, .causal = true},
    {.heads = 3, .kv_heads = 1, .nq = 67, .nk = 509, .dim = 17, .value_dim = 33},
    {.heads = 2, .kv_heads = 1, .nq = 400, .nk = 100, .dim = 16, .value_dim = 16, .causal = true},  // rows see nothing
    {.nq = 1, .nk = 700, .dim = 8, .value_dim = 8, .causal = true},
    {.nq = 1, .nk = 1, .dim = 1, .value_dim = 1},
    {.nq = 200, .nk = 3, .dim = 64, .value_dim = 5},
};

TEST(Lev, IsExactWhenTheSetIsEverything) {
  for (Case c : kCases)
    for (const simd::RowType type : {simd::RowType::kF32, simd::RowType::kF16, simd::RowType::kBf16}) {
      c.type = type;
      const RandomProblem r(c);
      // By eps; by a sample that takes all of the rest; by the window.
      for (const std::string spec :
           {"lev:eps=1e-6,residual=none,window=0,sinks=0,precision=f32", "lev:samples=1000,window=0,precision=f32",
            "lev:residual=none,window=2000,precision=f32", "lev:score=power,eps=1e-6,residual=none,window=0,sinks=0",
            "lev:score=power,p=3,eps=1e-6,residual=none", "lev:score=power,p=1.5,samples=1000,window=0",
            "lev:score=power,p=4,window=2000,residual=none"}) {
        SCOPED_TRACE(Describe(c) + " " + spec);
        Answer got(r.problem), want(r.problem);
        const RunReport report = RunLev(spec, r.problem, got);
        Reference(spec, r.problem, want);
        const ErrorReport e = ErrorOf(r.problem, got, want);
        // f32 sums; powers multiply the relative error of a small <q, k> by p.
        EXPECT_LT(e.row_max, spec.find("power") == std::string::npos ? 2e-5 : 1e-4);
        EXPECT_LT(e.lse_max, 2e-4);
        EXPECT_LT(report.est_error, 1e-4);
        EXPECT_GE(report.pairs, report.exact_pairs);
        EXPECT_EQ(report.rows, c.heads * c.nq);
      }
    }
}

// A token changes no earlier row, not even by rounding.
TEST(Lev, IsStrictlyCausal) {
  for (const std::string spec :
       {"lev:window=64,samples=32", "lev:window=0,top=30,residual=none", "lev:p=1.5,window=0,eps=.2,samples=16",
        "lev:p=4,window=0,top=40", "lev:score=power,window=0,samples=16,eps=.3",
        "lev:score=power,p=3,top=50,window=0,residual=none"}) {
    SCOPED_TRACE(spec);
    const Case c{.heads = 2, .kv_heads = 1, .nq = 700, .nk = 700, .dim = 12, .value_dim = 12, .causal = true};
    RandomProblem r(c);
    Answer before(r.problem), after(r.problem);
    RunLev(spec, r.problem, before);
    for (const int64_t changed : {699, 640, 639, 333, 65}) {
      for (int64_t i = 0; i < c.dim; ++i) {
        r.k.f32()[changed * c.dim + i] = 30 * float(i + 1) / float(changed);  // now the heaviest key
        r.v.f32()[changed * c.dim + i] = -5;
      }
      RunLev(spec, r.problem, after);
      bool later = false;
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t i = 0; i < 700; ++i) {
          const size_t at = size_t((h * 700 + i) * c.value_dim);
          const bool same = std::equal(&before.out[at], &before.out[at] + c.value_dim, &after.out[at]) &&
                            before.lse[size_t(h * 700 + i)] == after.lse[size_t(h * 700 + i)];
          if (i < changed) {
            ASSERT_TRUE(same) << "row " << i << " by key " << changed;
          }
          later |= !same;
        }
      EXPECT_TRUE(later);
    }
  }
}

TEST(Lev, DoesNotDependOnThreads) {
  for (const bool causal : {false, true}) {
    const RandomProblem r(
        {.heads = 4, .kv_heads = 2, .nq = 500, .nk = 500, .dim = 16, .value_dim = 16, .causal = causal});
    for (const std::string spec :
         {"lev:samples=32,window=0", "lev:p=3,top=40", "lev:score=power,samples=32,window=64"}) {
      Answer one(r.problem), three(r.problem);
      const RunReport a = RunLev(spec, r.problem, one, 1), b = RunLev(spec, r.problem, three, 3);
      EXPECT_EQ(one.out, three.out) << spec;
      EXPECT_EQ(one.lse, three.lse) << spec;
      EXPECT_EQ(a.est_error, b.est_error) << spec;
      EXPECT_EQ(a.pairs, b.pairs) << spec;
    }
  }
}

// Every key that matters under |x|^2 is looked at: outliers get through, and the pairs stay few.
TEST(Lev, FindsOutlyingKeys) {
  const Case c{.nq = 2048, .nk = 2048, .dim = 16, .value_dim = 16, .causal = true};
  RandomProblem r(c);
  for (int64_t j = 100; j < 2048; j += 200)
    for (int64_t i = 0; i < 16; ++i) r.k.f32()[j * 16 + i] *= 6;
  Executor executor(2);
  for (const bool causal : {false, true}) {
    r.problem.mask.causal = causal;
    const PlanOptions o{.eps = .1, .window = 64, .sinks = 4};
    const KeyPlan plan = PlanKeys(executor, r.problem, o)[0];
    EXPECT_LT(plan.epsilon, .1 + 1e-9);
    for (const TilePlan& tile : plan.tiles) {
      const auto& set = plan.sets[size_t(tile.set)];
      ASSERT_TRUE(std::is_sorted(set.begin(), set.end()));
      std::vector<char> seen(2048);
      for (int64_t s = 0; s < int64_t(set.size()); ++s)
        if (s < tile.before || s >= tile.after) ++seen[size_t(set[size_t(s)])];
      for (int64_t j = tile.local.first; j < tile.local.last; ++j) ++seen[size_t(j)];
      const int64_t end = causal ? tile.local.last : 2048;
      // The outliers, once there are more keys than their leverage reaches below.
      for (int64_t j = 100; j < end; j += 200) EXPECT_EQ(seen[size_t(j)], 1) << j;
      int64_t rest = 0;
      for (int64_t j = 0; j < end; ++j) {
        ASSERT_LE(seen[size_t(j)], 1);
        if (seen[size_t(j)] == 0) {
          EXPECT_EQ(plan.RestKey(tile, rest), j);
          ++rest;
        }
      }
      EXPECT_EQ(rest, tile.rest);
      for (int64_t j = end; j < 2048; ++j) EXPECT_EQ(seen[size_t(j)], 0);
    }
  }
}

// The weighted sample's sums have the right mean: over 400 draws the mean is off by at most 5 of its standard
// deviations (a failure probability below 1e-6 a number, by the normal law).
TEST(Lev, SamplesAreUnbiased) {
  KeyPlan plan;
  plan.sets = {{0, 5, 6, 40, 90, 91}};
  TilePlan tile{.set = 0, .before = 3, .after = 4, .local = {20, 70}, .rest_before = 17, .rest = 17 + 230 - 2};
  std::vector<int32_t> keys;
  std::vector<float> weights;
  double total = 0;
  for (int64_t r = 0; r < tile.rest; ++r) total += std::sin(double(plan.RestKey(tile, r))) + 2;
  for (const int64_t count : {2, 16, 100}) {
    double sum = 0, squares = 0, half = 0;
    for (uint64_t draw = 0; draw < 400; ++draw) {
      SampleRest(plan, tile, Stream{draw, 5}, count, keys, weights);
      ASSERT_EQ(int64_t(keys.size()), count);
      double estimate = 0, even = 0, all = 0;
      for (size_t i = 0; i < keys.size(); ++i) {
        const double term = double(weights[i]) * (std::sin(double(keys[i])) + 2);
        estimate += term, all += double(weights[i]);
        if (i < keys.size() / 2) even += 2 * term;
      }
      EXPECT_EQ(all, double(tile.rest));
      sum += estimate, squares += (estimate - total) * (estimate - total), half += even;
    }
    EXPECT_NEAR(sum / 400, total, 5 * std::sqrt(squares / 400 / 400) + 1e-9) << count;
    EXPECT_NEAR(half / 400, total, .1 * total);
  }
  SampleRest(plan, tile, Stream{1, 5}, tile.rest, keys, weights);
  std::sort(keys.begin(), keys.end());
  EXPECT_TRUE(std::adjacent_find(keys.begin(), keys.end()) == keys.end());
  for (const float w : weights) EXPECT_EQ(w, 1);
}

// The certificate against the true error: within a factor of two where the rest is many like keys.
TEST(Lev, CertificateTellsTheError) {
  for (const bool causal : {false, true})
    for (const std::string spec :
         {"lev:samples=64,window=0,sinks=0", "lev:samples=512,window=64", "lev:residual=none,eps=.3,window=0",
          "lev:score=power,samples=64,window=0", "lev:score=power,p=1,samples=256"}) {
      SCOPED_TRACE(spec + (causal ? " causal" : ""));
      RandomProblem r(
          {.heads = 2, .kv_heads = 2, .nq = 1500, .nk = 1500, .dim = 16, .value_dim = 16, .causal = causal});
      Answer got(r.problem), want(r.problem);
      // Values with a mean: answers near zero are lost in any sample's noise, and the estimate, which is relative to
      // the answer it has, then saturates between 1 and 2.
      for (int64_t i = 0; i < 2 * 1500 * 16; ++i) r.v.f32()[i] += 0.7f;
      const RunReport report = RunLev(spec, r.problem, got);
      Reference(spec, r.problem, want);
      const ErrorReport e = ErrorOf(r.problem, got, want);
      EXPECT_LT(report.pairs, .7 * report.exact_pairs);
      EXPECT_GT(e.row_mean, 1e-3);
      EXPECT_LT(e.row_mean, 2 * report.est_error);
      EXPECT_GT(e.row_mean, .4 * report.est_error);
    }
}

// p = 2: the entries themselves are exact, whatever is left out; rows add up to what was kept.
TEST(Lev, PowerEntriesAreExact) {
  const Case c{.nq = 70, .nk = 900, .dim = 6, .value_dim = 6, .causal = true};
  RandomProblem r(c);
  // Values that read one key's weight out: value 0 is 1 at key 333 (made heavy), value 1 is 1 everywhere.
  for (int64_t j = 0; j < 900; ++j) {
    for (int64_t i = 0; i < 6; ++i) r.v.f32()[j * 6 + i] = 0;
    r.v.f32()[j * 6] = j == 333 ? 1 : 0;
    r.v.f32()[j * 6 + 1] = 1;
  }
  for (int64_t i = 0; i < 6; ++i) r.k.f32()[333 * 6 + i] *= 20;
  for (const bool causal : {false, true}) {
    r.problem.mask.causal = causal;
    Answer got(r.problem), want(r.problem);
    const RunReport report = RunLev("lev:score=power,eps=.2,residual=none,window=0,sinks=0", r.problem, got);
    Reference("lev:score=power", r.problem, want);
    double kept = 0;
    for (size_t i = 0; i < 70; ++i) {
      EXPECT_NEAR(got.out[6 * i], want.out[6 * i], 2e-6);
      EXPECT_NEAR(want.out[6 * i + 1], 1, 1e-6);
      EXPECT_LT(got.out[6 * i + 1], 1 + 1e-5f);
      EXPECT_NEAR(got.lse[i], want.lse[i], 1e-5);
      kept += double(got.out[6 * i + 1]) / 70;
    }
    EXPECT_LT(kept, .99);
    EXPECT_GT(report.est_error, 0);  // a bound, from the mass left out
    EXPECT_LE(ErrorOf(r.problem, got, want).row_mean, report.est_error * 1.001);
  }
}

TEST(Lev, ZeroKeysAndValues) {
  for (const std::string spec : {"lev", "lev:score=power", "lev:score=power,p=3", "lev:p=3,top=5", "lev:p=1,window=0"})
    for (const bool causal : {false, true}) {
      RandomProblem r({.nq = 300, .nk = 300, .dim = 4, .value_dim = 4, .causal = causal});
      std::fill_n(r.k.f32(), 1200, 0.f);
      Answer got(r.problem), want(r.problem);
      RunLev(spec, r.problem, got);
      Reference(spec, r.problem, want);
      if (spec.find("power") != std::string::npos) {
        EXPECT_LT(ErrorOf(r.problem, got, want).row_max, 1e-5) << spec;  // no weight at all: zeros
      }
      for (const float x : got.out) ASSERT_TRUE(std::isfinite(x)) << spec;
      r.problem.scale = 0;
      RunLev(spec, r.problem, got);
      for (const float x : got.out) ASSERT_TRUE(std::isfinite(x)) << spec;
    }
}

TEST(Lev, RefusesWhatDoesNotGoTogether) {
  for (const char* spec : {"lev:score=power,center=mean", "lev:score=power,precision=bf16", "lev:p=9", "lev:eps=0",
                           "lev:top=-1", "lev:residual=some", "lev:ridge=0"})
    EXPECT_FALSE(Make(spec)) << spec;
}

}  // namespace
}  // namespace croquis::attention::lev
