// HyperAttention: exact where it must be, every pair counted once, causal, reproducible; the order of hashes.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>

#include "croquis/attention/hyper/index.h"
#include "croquis/attention/hyper/test_data.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/test_run.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::Describe;
using testing::ErrorOf;
using testing::Head;
using testing::HeadData;
using testing::RandomProblem;
using testing::Reference;
using testing::RunOn;

const Case kShapes[] = {
    {.nq = 1500, .nk = 1500},
    {.nq = 1500, .nk = 1500, .causal = true},
    {.heads = 4, .kv_heads = 2, .nq = 1009, .nk = 1511, .dim = 20, .value_dim = 33},
    {.heads = 4, .kv_heads = 2, .nq = 1511, .nk = 1511, .dim = 20, .value_dim = 33, .causal = true},
    {.heads = 2, .kv_heads = 1, .nq = 701, .nk = 1999, .dim = 16, .value_dim = 16, .causal = true},
    {.nq = 2003, .nk = 1201, .dim = 16, .value_dim = 8, .causal = true},  // the first 802 rows see nothing
    {.nq = 3, .nk = 4001, .dim = 16, .value_dim = 16, .causal = true},
    {.nq = 4001, .nk = 2, .dim = 16, .value_dim = 16},
};

TEST(HyperHash, ConsecutiveRanksDifferInOneBit) {
  for (const int bits : {1, 2, 3, 7, 10}) {
    std::vector<uint32_t> code_at(size_t(1) << bits, ~0u);
    for (uint32_t code = 0; code < code_at.size(); ++code) code_at.at(hyper::GrayRank(code)) = code;
    for (size_t i = 1; i < code_at.size(); ++i) EXPECT_EQ(std::popcount(code_at[i] ^ code_at[i - 1]), 1) << bits;
  }
}

TEST(HyperHash, PrincipalDirectionsAreOrthonormalAndFindTheVariance) {
  constexpr int64_t kDim = 32;
  testing::RandomTensor k(5, 1, 900, kDim);
  for (int64_t r = 0; r < 900; ++r) k.f32()[r * kDim + 7] *= 6, k.f32()[r * kDim + 21] *= 3;
  const auto g = hyper::PrincipalDirections(k.View().Head(0), {0, 900}, {1, 2});
  for (int a = 0; a < hyper::kDirections; ++a)
    for (int b = 0; b <= a; ++b) {
      double dot = 0;
      for (int64_t i = 0; i < kDim; ++i)
        dot += double(g[size_t(i * hyper::kDirections + a)]) * double(g[size_t(i * hyper::kDirections + b)]);
      EXPECT_NEAR(dot, a == b ? 1 : 0, 1e-4);
    }
  EXPECT_GT(std::abs(g[7 * hyper::kDirections + 0]), .98f);
  EXPECT_GT(std::abs(g[21 * hyper::kDirections + 1]), .95f);
}

// Queries of zero weigh all keys alike, and moments are exact then: the log-sum-exp is the logarithm of the number of
// visible keys and the answer the mean of their values. A pair that is lost or counted twice shows.
TEST(Hyper, EveryPairCountsOnce) {
  for (const Case& shape : kShapes) {
    RandomProblem r(shape);
    for (int64_t i = 0; i < shape.heads * shape.nq * shape.dim; ++i) r.q.Set(i, 0);
    Answer want = Reference(r.problem);
    for (const std::string method :
         {"hyper:min_length=128,precision=f32", "hyper:min_length=200,strict=1,block=40,samples=37,precision=f32",
          "hyper:min_length=128,match=rank,global=10,recent=3,block=50,precision=f32",
          "hyper:min_length=300,global=0,recent=0,hash_bits=3,precision=f32",
          "hyper:min_length=128,split=5,precision=f32"}) {
      SCOPED_TRACE(Describe(shape) + " " + method);
      Answer got(r.problem);
      const RunReport report = RunOn(method, r.problem, got);
      const ErrorReport e = ErrorOf(r.problem, got, want);
      EXPECT_LT(e.lse_max, 2e-5);
      EXPECT_LT(e.row_max, 2e-4);
      EXPECT_LT(report.est_error, 1e-4);
      EXPECT_GT(report.pairs, 0);
    }
  }
}

// The same at a length of several stages, whose rows are sorted together for the longest segments.
TEST(Hyper, EveryPairOfSeveralStagesCountsOnce) {
  constexpr int64_t kRows = 18001, kDim = 16;
  RandomProblem r({.nq = kRows, .nk = kRows, .dim = kDim, .value_dim = kDim, .causal = true});
  for (int64_t i = 0; i < kRows * kDim; ++i) r.q.Set(i, 0);
  for (const std::string method : {"hyper:min_length=512,precision=f32", "hyper:min_length=512,strict=1,precision=f32",
                                   "hyper:min_length=1024,match=rank,precision=f32"}) {
    Answer got(r.problem);
    RunOn(method, r.problem, got);
    std::vector<double> sum(kDim);
    for (int64_t i = 0; i < kRows; ++i) {
      ASSERT_NEAR(got.lse[size_t(i)], std::log(double(i + 1)), 5e-5) << method << " row " << i;
      for (int64_t c = 0; c < kDim; ++c) {
        sum[size_t(c)] += double(r.v.f32()[i * kDim + c]);
        ASSERT_NEAR(got.out[size_t(i * kDim + c)], sum[size_t(c)] / double(i + 1), 1e-4) << method << " row " << i;
      }
    }
  }
}

// A method keeps memory and plans from run to run, but nothing that matters.
TEST(Hyper, RunsDoNotDependOnEarlierOnes) {
  const Case shape{.heads = 4, .kv_heads = 2, .nq = 1500, .nk = 1500, .causal = true};
  Case longer = shape, other = shape;
  longer.nq = longer.nk = 1700, other.size = 2;
  const RandomProblem first(shape), second(other), third(longer);
  Executor executor(2);
  for (const std::string text : {"hyper:min_length=128", "hyper:min_length=128,residual=stratified,tol=.2"}) {
    const auto method = Make(text, 1);
    ASSERT_TRUE(method);
    for (const Problem* p : {&first.problem, &second.problem, &third.problem, &first.problem}) {
      Answer got(*p), want(*p);
      RunReport report;
      ASSERT_TRUE(attention::Run(executor, **FindMethod("hyper"), **method, *p, got.View(), &report));
      const RunReport fresh = RunOn(text, *p, want);
      EXPECT_EQ(got.out, want.out);
      EXPECT_EQ(got.lse, want.lse);
      EXPECT_EQ(report.est_error, fresh.est_error);
      EXPECT_EQ(report.pairs, fresh.pairs);
    }
  }
}

TEST(Hyper, IsExactWhereNothingWouldBeSaved) {
  const Case cases[] = {{.nq = 1, .nk = 1, .dim = 1, .value_dim = 1},
                        {.nq = 7, .nk = 13, .dim = 5, .value_dim = 3, .causal = true},
                        {.nq = 127, .nk = 127, .causal = true},
                        {.heads = 2, .kv_heads = 1, .nq = 509, .nk = 509, .causal = true},
                        {.nq = 300, .nk = 997}};
  for (const Case& c : cases) {
    const RandomProblem r(c);
    Answer want = Reference(r.problem);
    for (const std::string method :
         {"hyper:precision=f32", "hyper:variant=paper,precision=f32", "hyper:min_length=16,block=1000,precision=f32",
          "hyper:strict=1,precision=f32", "hyper:variant=paper,min_length=16,block=1000,precision=f32"}) {
      SCOPED_TRACE(Describe(c) + " " + method);
      Answer got(r.problem);
      const RunReport report = RunOn(method, r.problem, got);
      EXPECT_LT(ErrorOf(r.problem, got, want).row_max, 1e-5);
      EXPECT_EQ(report.est_error, 0);
      EXPECT_DOUBLE_EQ(report.pairs, report.exact_pairs);
    }
  }
}

TEST(Hyper, FiniteAndCloseForEveryShapeResidualAndType) {
  for (const Case& shape : kShapes)
    for (const simd::RowType type : {simd::RowType::kF32, simd::RowType::kBf16}) {
      Case c = shape;
      c.type = type, c.size = .7f;
      const RandomProblem r(c);
      Answer want = Reference(r.problem);
      for (const std::string method :
           {"hyper:min_length=128", "hyper:min_length=128,residual=stratified", "hyper:min_length=128,strict=1",
            "hyper:min_length=128,residual=uniform,match=rank",
            "hyper:min_length=128,variant=paper,block=64,samples=128",
            "hyper:min_length=128,residual=stratified,strict=1"}) {
        SCOPED_TRACE(Describe(c) + " " + method);
        Answer got(r.problem);
        RunOn(method, r.problem, got);
        for (const float x : got.out) ASSERT_TRUE(std::isfinite(x));
        // Logits of standard deviation .5: even the samples alone have a log-sum-exp to within some percent.
        EXPECT_LT(ErrorOf(r.problem, got, want).lse_mean, .05);
      }
    }
}

TEST(Hyper, DoesNotDependOnThreads) {
  const RandomProblem r(
      {.heads = 2, .kv_heads = 1, .nq = 1777, .nk = 1777, .dim = 32, .value_dim = 32, .causal = true});
  for (const std::string method : {"hyper:min_length=128", "hyper:min_length=128,residual=stratified,tol=0.1",
                                   "hyper:min_length=128,variant=paper,block=64,samples=64"}) {
    Answer one(r.problem), three(r.problem);
    const RunReport a = RunOn(method, r.problem, one, 7, 1), b = RunOn(method, r.problem, three, 7, 3);
    EXPECT_EQ(one.out, three.out) << method;
    EXPECT_EQ(one.lse, three.lse) << method;
    EXPECT_EQ(a.pairs, b.pairs);
    EXPECT_EQ(a.est_error, b.est_error);
  }
}

// With strict=1 a token changes no earlier row, to the bit; without it, only by which keys earlier rows look at.
TEST(Hyper, StrictIsCausalToTheBit) {
  for (const std::string rest :
       {"", ",split=4", ",residual=stratified", ",residual=stratified,tol=0.05", ",residual=uniform"})
    for (const int64_t token : {900, 1408, 1999}) {
      SCOPED_TRACE(rest + " " + std::to_string(token));
      RandomProblem r({.nq = 2000, .nk = 2000, .dim = 32, .value_dim = 32, .causal = true});
      Answer before(r.problem), after(r.problem);
      const std::string method = "hyper:min_length=128,strict=1,precision=f32" + rest;
      RunOn(method, r.problem, before);
      for (int64_t i = token * 32; i < (token + 1) * 32; ++i) {
        r.q.Set(i, 9), r.k.Set(i, i % 2 ? 7 : -7), r.v.Set(i, 100);
      }
      RunOn(method, r.problem, after);
      for (int64_t i = 0; i < token * 32; ++i) ASSERT_EQ(before.out[size_t(i)], after.out[size_t(i)]) << i / 32;
      EXPECT_NE(before.out[size_t(token * 32)], after.out[size_t(token * 32)]);
    }
}

TEST(Hyper, FailingRowsAreComputedExactly) {
  // Moments cannot see a heavy key inside of a cell: their estimates differ less between rows.
  const HeadData data(Head::kPlanted, 1500, 32, 3);
  for (const bool causal : {false, true})
    for (const std::string residual : {"moment", "stratified"}) {
      SCOPED_TRACE(residual);
      const Problem p = data.Get(causal);
      Answer want = Reference(p);
      const std::string method = "hyper:min_length=128,precision=f32,residual=" + residual + ",tol=";
      Answer all(p), some(p), capped(p), none(p);
      const int64_t failed = RunOn(method + "0.0000001,cap=1", p, all).fallback_rows;
      EXPECT_GT(failed, causal ? 700 : 1499);  // the first rows are exact at once
      EXPECT_LE(failed, 1500);
      EXPECT_LT(ErrorOf(p, all, want).row_max, 1e-4);
      const RunReport report = RunOn(method + (residual == "moment" ? "0.03" : "0.1") + ",cap=1", p, some),
                      loose = RunOn(method + "0", p, none);
      EXPECT_GT(report.fallback_rows, 0);
      EXPECT_LT(report.fallback_rows, 1500);
      EXPECT_EQ(loose.fallback_rows, 0);
      EXPECT_LT(ErrorOf(p, some, want).row_mean, ErrorOf(p, none, want).row_mean);
      EXPECT_LT(report.est_error, loose.est_error);
      EXPECT_EQ(RunOn(method + "0.03,cap=0", p, capped).fallback_rows, 1500);
      EXPECT_LT(ErrorOf(p, capped, want).row_max, 1e-5);
    }
}

// The estimate of moments is a mean over 64 random rows of errors with a standard deviation about their mean
// (measured), so it lies within 3 / sqrt(64) = 40 % of the truth but for one case in 400.
TEST(Hyper, EstimatesItsError) {
  for (const Head head : {Head::kPlanted, Head::kFlat, Head::kClusters}) {
    const HeadData data(head, 2048, 32, 4);
    const Problem p = data.Get(false);
    Answer got(p), want = Reference(p);
    const RunReport report = RunOn("hyper:min_length=128,precision=f32,probes=64", p, got);
    const ErrorReport e = ErrorOf(p, got, want);
    EXPECT_GT(report.est_error, .6 * e.row_mean) << int(head);
    EXPECT_LT(report.est_error, 1.4 * e.row_mean) << int(head);
    EXPECT_GT(report.lse_std, .5 * e.lse_mean);
  }
}

// Mass of the true softmax that lies in a query's window, mean over every eighth row.
double Captured(const Problem& p, const hyper::Options& options) {
  Executor executor(2);
  const hyper::Plan plan = hyper::MakePlan(p, options);
  EXPECT_EQ(plan.segments.size(), 1u);
  const hyper::Segment& s = plan.segments[0];
  const hyper::Group& group = plan.stages[0].passes[0][0];
  hyper::Index index(simd::TileType::kF32, p, options, plan);
  index.Build(executor, 0);
  const auto rows = index.SortedRows(group, 0);
  const auto codes = index.SortedCodes(group, 0);
  const auto order = index.Order(s).subspan(size_t(s.GlobalSlots()), size_t(s.sorted()));
  const int64_t nk = p.k.rows, dim = p.k.dim;
  const auto *q = reinterpret_cast<const float*>(p.q.data), *k = reinterpret_cast<const float*>(p.k.data);
  double captured = 0;
  std::vector<double> logits(static_cast<size_t>(nk));
  for (size_t at = 0; at < rows.size(); at += 8) {
    double top = -1e30, all = 0, inside = 0;
    for (int64_t j = 0; j < nk; ++j) {
      double x = 0;
      for (int64_t i = 0; i < dim; ++i) x += double(q[rows[at] * dim + i]) * double(k[j * dim + i]);
      top = std::max(top, logits[size_t(j)] = x * double(p.scale));
    }
    for (const double x : logits) all += std::exp(x - top);
    const int64_t block = int64_t(at) / s.block * s.block;
    const Range window = options.match == hyper::Match::kRank ? Range{block, block + s.block}
                                                              : index.CodeWindow(s, codes[at], group.bits);
    for (int64_t j = window.first; j < window.last; ++j) inside += std::exp(logits[size_t(order[size_t(j)])] - top);
    captured += inside / all;
  }
  return captured / double((rows.size() + 7) / 8);
}

// Queries and keys in different cones, a heavy key for each query (1.2 of it and noise .6): blocks matched by the rank
// of plain hashes catch what any 128 of 4,096 keys would, centred codes several times as much.
TEST(Hyper, WindowsCatchHeavyKeys) {
  const HeadData data(Head::kPlanted, 4096, 64, 5, simd::RowType::kF32, 1.2f);
  const Problem p = data.Get(false);
  hyper::Options options{.block = 128, .bits = 7, .min_length = 16, .seed = 3};
  EXPECT_GE(Captured(p, options), .20);
  options.block = 256;
  EXPECT_GE(Captured(p, options), .25);
  options = {.paper = true, .block = 128, .bits = 7, .min_length = 16, .match = hyper::Match::kRank, .seed = 3};
  EXPECT_LT(Captured(p, options), .06);
}

TEST(Hyper, RefusesWhatDoesNotGoTogether) {
  for (const std::string method :
       {"hyper:strict=1,match=rank", "hyper:strict=1,variant=paper", "hyper:tol=0.1,residual=sinks",
        "hyper:tol=0.1,probes=0", "hyper:tol=0.1,strict=1", "hyper:block=-1", "hyper:variant=other", "hyper:tol=-1"})
    EXPECT_FALSE(Make(method)) << method;
  EXPECT_TRUE(Make("hyper:tol=0.1,strict=1,residual=stratified"));
}

}  // namespace
}  // namespace croquis::attention
