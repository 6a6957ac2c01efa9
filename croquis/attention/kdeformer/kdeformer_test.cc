// KDEformer: the practical algorithm on every shape, the theory's densities against sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "croquis/attention/hyper/test_data.h"
#include "croquis/attention/kdeformer/theory.h"
#include "croquis/attention/test_run.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::ErrorOf;
using testing::Head;
using testing::HeadData;
using testing::RandomProblem;
using testing::Reference;
using testing::RunOn;

TEST(Kdeformer, PracticalOnEveryShape) {
  for (const Case& c : {Case{.nq = 1, .nk = 1, .dim = 1, .value_dim = 1},
                        {.heads = 4, .kv_heads = 2, .nq = 1009, .nk = 1511, .dim = 20, .value_dim = 33, .size = .7f},
                        {.heads = 2, .kv_heads = 1, .nq = 1511, .nk = 1511, .dim = 20, .causal = true, .size = .7f},
                        {.nq = 2003, .nk = 1201, .dim = 16, .value_dim = 8, .causal = true, .size = .7f},
                        {.nq = 700, .nk = 1999, .type = simd::RowType::kBf16, .size = .7f}}) {
    SCOPED_TRACE(c.nq);
    const RandomProblem r(c);
    Answer got(r.problem), want = Reference(r.problem);
    const RunReport report = RunOn("kdeformer:min_length=128", r.problem, got);
    for (const float x : got.out) ASSERT_TRUE(std::isfinite(x));
    EXPECT_LT(ErrorOf(r.problem, got, want).lse_mean, .05);
    EXPECT_LE(report.pairs, report.exact_pairs);
  }
}

TEST(Kdeformer, PracticalIsExactWhereNothingWouldBeSaved) {
  for (const bool causal : {false, true}) {
    const RandomProblem r({.nq = 127, .nk = 127, .causal = causal});
    Answer got(r.problem), want = Reference(r.problem);
    const RunReport report = RunOn("kdeformer:precision=f32", r.problem, got);
    EXPECT_LT(ErrorOf(r.problem, got, want).row_max, 1e-5);
    EXPECT_EQ(report.est_error, 0);
  }
}

// Masses over 200 seeds, as for hyper: 20 rows within 4.5 standard errors (a chance below 1 in 7,000).
TEST(Kdeformer, SamplesByValueNormsAreUnbiased) {
  constexpr int kSeeds = 200;
  constexpr int64_t kRows = 1100, kDim = 16;
  HeadData data(Head::kFlat, kRows, kDim, 13);
  const Problem p = data.Get(false);
  Answer want = Reference(p);
  std::vector<double> sum(20), squares(20);
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Answer got(p);
    RunOn("kdeformer:min_length=512,block=64,samples=32,precision=f32", p, got, seed);
    for (size_t t = 0; t < sum.size(); ++t) {
      const double z = std::exp(double(got.lse[t * 50]) - double(want.lse[t * 50])) - 1;
      sum[t] += z, squares[t] += z * z;
    }
  }
  for (size_t t = 0; t < sum.size(); ++t) {
    const double mean = sum[t] / kSeeds, variance = squares[t] / kSeeds - mean * mean;
    EXPECT_LT(std::abs(mean), 4.5 * std::sqrt(variance / kSeeds)) << t;
  }
}

TEST(Kdeformer, ExactDensitiesGiveTheLogSumExp) {
  for (const Case& c : {Case{.nq = 200, .nk = 333, .dim = 24, .value_dim = 17},
                        {.heads = 4, .kv_heads = 2, .nq = 100, .nk = 100, .dim = 16},
                        {.nq = 70, .nk = 130, .dim = 64, .size = 6}}) {  // logits far beyond what exp takes in f32
    const RandomProblem r(c);
    Answer got(r.problem), want = Reference(r.problem);
    RunOn("kdeformer:variant=theory,precision=f32", r.problem, got);
    for (const float x : got.out) ASSERT_TRUE(std::isfinite(x));
    EXPECT_LT(ErrorOf(r.problem, got, want).lse_max, 1e-4);
  }
}

// Column norms of P, estimated from a quarter of the points: within a factor of two for 95 % of keys where logits have
// a standard deviation of .5, as between unit vectors. (Doubled logits of deviation s vary by exp(4 s^2): at 2 no
// sample will do.)
TEST(Kdeformer, ColumnNorms) {
  constexpr int64_t kRows = 800, kDim = 32;
  const RandomProblem r({.nq = kRows, .nk = kRows, .dim = kDim, .value_dim = kDim, .size = .7f});
  const Problem& p = r.problem;
  Answer want = Reference(p);
  Executor executor(2);
  const auto* const q = reinterpret_cast<const float*>(p.q.data);
  const auto* const k = reinterpret_cast<const float*>(p.k.data);
  std::vector<double> truth(kRows);
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < kRows; ++j) {
      double x = 0;
      for (int64_t c = 0; c < kDim; ++c) x += double(q[i * kDim + c]) * double(k[j * kDim + c]);
      truth[size_t(j)] += std::exp(2 * (x * double(p.scale) - double(want.lse[size_t(i)])));
    }
  for (const int64_t samples : {0, 200}) {
    const auto logs =
        kdeformer::LogColumnNorms({.kde_samples = samples, .seed = 3}, simd::TileType::kF32, executor, p, 0);
    ASSERT_TRUE(logs);
    int64_t near = 0;
    for (size_t j = 0; j < truth.size(); ++j) {
      const double difference = std::abs((*logs)[j] - std::log(truth[j]));
      if (samples == 0) {
        EXPECT_LT(difference, 1e-3);
      }
      near += difference < std::log(2.);
    }
    EXPECT_GE(near, kRows * 95 / 100) << samples;
  }
}

TEST(Kdeformer, TheoryConverges) {
  const HeadData data(Head::kPlanted, 600, 32, 6);
  const Problem p = data.Get(false);
  Answer want = Reference(p);
  double few = 0, many = 0;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Answer a(p), b(p);
    RunOn("kdeformer:variant=theory,samples=64,precision=f32", p, a, seed);
    const RunReport report = RunOn("kdeformer:variant=theory,samples=1024,precision=f32", p, b, seed);
    few += ErrorOf(p, a, want, true).op, many += ErrorOf(p, b, want, true).op;
    const double error = ErrorOf(p, b, want).row_mean;
    EXPECT_GT(report.est_error, .5 * error);
    EXPECT_LT(report.est_error, 2 * error);
  }
  EXPECT_NEAR(few / many, 4, 1);  // sixteen times the samples, a quarter of the error
}

TEST(Kdeformer, TheoryRefusesCausalMasks) {
  const RandomProblem r({.causal = true});
  Answer got(r.problem);
  Executor executor(1);
  const auto made = Make("kdeformer:variant=theory");
  ASSERT_TRUE(made);
  const Status ran = attention::Run(executor, **FindMethod("kdeformer"), **made, r.problem, got.View());
  ASSERT_FALSE(ran);
  EXPECT_EQ(ran.error().code, Code::kUnsupported);
}

TEST(Kdeformer, DoesNotDependOnThreads) {
  const RandomProblem r({.heads = 2, .kv_heads = 1, .nq = 1100, .nk = 1100, .dim = 16, .value_dim = 16});
  for (const std::string method : {"kdeformer:min_length=128", "kdeformer:variant=theory,kde_samples=300"}) {
    Answer one(r.problem), three(r.problem);
    RunOn(method, r.problem, one, 7, 1), RunOn(method, r.problem, three, 7, 3);
    EXPECT_EQ(one.out, three.out) << method;
    EXPECT_EQ(one.lse, three.lse) << method;
  }
}

}  // namespace
}  // namespace croquis::attention
