#include "croquis/eval/prefill_bench.h"

#include <gtest/gtest.h>

#include <cmath>

#include "croquis/attention/method.h"

namespace croquis::eval {
namespace {

TEST(PrefillBench, CurvesAreReadOffTheirPoints) {
  const std::vector<double> n = {1000, 2000, 4000, 8000};
  // Time n^1.5, exact's n^2 / 50: equal at 2,500.
  std::vector<double> ms, speedup;
  for (const double x : n) ms.push_back(std::pow(x, 1.5)), speedup.push_back(x * x / 50 / ms.back());
  const PrefillCurve c = CurveOf("m", n, ms, speedup);
  ASSERT_TRUE(c.crossover && c.exponent);
  EXPECT_NEAR(*c.crossover, 2500, 1e-6);
  EXPECT_NEAR(*c.exponent, 1.5, 1e-9);
  EXPECT_FALSE(c.at_first);
  const std::vector<double> slow = {.5, .9, .99, 1}, fast = {1.2, .9, 2, 3}, one = {1.5};
  EXPECT_FALSE(CurveOf("m", n, ms, slow).crossover);
  EXPECT_TRUE(CurveOf("m", n, ms, fast).at_first);
  EXPECT_FALSE(CurveOf("m", std::span(n).first(1), std::span(ms).first(1), one).exponent);
  EXPECT_FALSE(CurveOf("m", {}, {}, {}).crossover);
}

PrefillBenchOptions Small() {
  PrefillBenchOptions o;
  o.lengths = {200, 128};
  o.heads = 4, o.kv_heads = 2, o.head_dim = 32, o.repeats = 2;
  o.methods = {"hyper", "polysketch", "exact"};
  return o;
}

TEST(PrefillBench, ErrorsAreThoseOfTheWholeProblem) {
  Executor executor(2);
  for (const bool causal : {false, true}) {
    PrefillBenchOptions o = Small();
    o.causal = causal;
    const auto bench = BenchPrefill(executor, o);
    ASSERT_TRUE(bench) << bench.error().message;
    ASSERT_EQ(bench->rows.size(), 6u);  // exact, hyper and polysketch at 128, then at 200
    ASSERT_EQ(bench->curves.size(), 3u);
    EXPECT_EQ(bench->rows[0].n, 128);
    EXPECT_EQ(bench->rows[3].n, 200);
    for (const PrefillRow& row : bench->rows) {
      EXPECT_TRUE(row.refused.empty()) << row.refused;
      EXPECT_GT(row.ms, 0);
      EXPECT_GE(row.speedup_high, row.speedup);
      EXPECT_LE(row.speedup_low, row.speedup);
      EXPECT_EQ(row.error_rows, 4 * 64);
      EXPECT_FALSE(row.kernel.empty());
    }
    for (const size_t exact : {0u, 3u}) {
      EXPECT_EQ(bench->rows[exact].method, "exact:precision=f32");
      EXPECT_EQ(bench->rows[exact].speedup, 1);
      EXPECT_EQ(bench->rows[exact].pairs_share, 1);
      // Sampled rows stand at their own positions: another mask would be seen here.
      EXPECT_LT(bench->rows[exact].error_max, 1e-4);
      EXPECT_LT(bench->rows[exact].lse_error, 1e-4);
    }
    // Polysketch is held against its own scores, from which softmax is far away.
    EXPECT_LT(bench->rows[2].error_mean, .7);
  }
}

TEST(PrefillBench, TensorsAreOfThePrecision) {
  Executor executor(2);
  PrefillBenchOptions o = Small();
  o.precision = simd::RowType::kBf16;
  o.methods = {"hyper", "hyper:precision=f32"};
  o.lengths = {96};
  const auto bench = BenchPrefill(executor, o);
  ASSERT_TRUE(bench) << bench.error().message;
  EXPECT_EQ(bench->rows[0].method, "exact:precision=bf16");
  EXPECT_EQ(bench->rows[1].method, "hyper:precision=bf16");
  EXPECT_EQ(bench->rows[2].method, "hyper:precision=f32");
  EXPECT_GT(bench->rows[0].error_mean, 1e-5);  // products in bf16
  EXPECT_LT(bench->rows[0].error_mean, 1e-2);
}

TEST(PrefillBench, WhatCannotBeMeasuredIsNamed) {
  Executor executor(1);
  const auto code = [&](const auto& change) {
    PrefillBenchOptions o = Small();
    change(o);
    const auto bench = BenchPrefill(executor, o);
    EXPECT_FALSE(bench);
    return bench ? Code::kInternal : bench.error().code;
  };
  EXPECT_EQ(code([](auto& o) { o.lengths = {}; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.lengths = {0}; }), Code::kOutOfRange);
  EXPECT_EQ(code([](auto& o) { o.lengths = {int64_t(1) << 40}; }), Code::kOutOfRange);
  EXPECT_EQ(code([](auto& o) { o.methods = {"nothing"}; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.heads = 3; }), Code::kInvalidArgument);
  EXPECT_EQ(code([](auto& o) { o.repeats = 0; }), Code::kOutOfRange);
  EXPECT_EQ(code([](auto& o) { o.precision = simd::RowType::kF16; }), Code::kInvalidArgument);
  // A method that refuses is a row with the reason.
  PrefillBenchOptions o = Small();
  o.methods = {"tensor"};
  o.data = AttentionData::kSinks;  // entries far beyond its bound
  const auto bench = BenchPrefill(executor, o);
  ASSERT_TRUE(bench) << bench.error().message;
  EXPECT_FALSE(bench->rows[1].refused.empty());
  EXPECT_FALSE(bench->curves[1].crossover);
  // An interrupt ends it.
  EXPECT_FALSE(BenchPrefill(executor, Small(), [](int64_t, int64_t) { return false; }));
}

TEST(PrefillBench, DefaultsTakeTheMask) {
  for (const bool causal : {false, true})
    for (const std::string& text : DefaultPrefillMethods(causal)) {
      const auto m = attention::FindMethod(text);
      ASSERT_TRUE(m) << text;
      EXPECT_TRUE((*m)->softmax && !(*m)->exact && ((*m)->causal || !causal)) << text;
    }
}

}  // namespace
}  // namespace croquis::eval
