// Exact attention on tensors against attention in double.
#include <gtest/gtest.h>

#include <string>

#include "croquis/attention/partial.h"
#include "croquis/attention/test_run.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::RandomProblem;

void ExpectExact(const Case& c, const std::string& method, double tolerance) {
  SCOPED_TRACE(method + " " + testing::Describe(c));
  const RandomProblem r(c);
  Answer got(r.problem), want = testing::Reference(r.problem);
  testing::RunOn(method, r.problem, got);
  const ErrorReport e = testing::ErrorOf(r.problem, got, want);
  EXPECT_LT(e.row_max, tolerance);
  EXPECT_LT(e.lse_max, 4 * tolerance);
}

TEST(ExactAttention, EqualsTheReferenceOnEveryTarget) {
  const Case cases[] = {
      {},
      {.heads = 4, .kv_heads = 2, .nq = 67, .nk = 131, .dim = 80, .value_dim = 96, .causal = true},
      {.heads = 3, .kv_heads = 1, .nq = 130, .nk = 130, .dim = 128, .value_dim = 128, .causal = true, .window = 37},
      {.nq = 1, .nk = 1000, .dim = 64},
      {.nq = 1, .nk = 1, .dim = 1, .value_dim = 1},
      {.nq = 5, .nk = 257, .dim = 17, .value_dim = 33, .window = 3},
      {.nq = 200, .nk = 60, .dim = 64, .causal = true},  // the first 140 rows see nothing
      {.nq = 97, .nk = 97, .dim = 256, .value_dim = 40, .size = 2},
      {.heads = 8, .kv_heads = 2, .nq = 9, .nk = 700, .dim = 64, .causal = true},   // tiles over the heads of a group
      {.heads = 8, .kv_heads = 2, .nq = 2, .nk = 5000, .dim = 40, .causal = true},  // a few rows, three pieces
      {.heads = 4, .kv_heads = 4, .nq = 3, .nk = 4200, .dim = 33, .causal = true, .window = 2100},
      {.nq = 7, .nk = 4, .dim = 64, .causal = true},  // a few rows, three of which see nothing
  };
  for (const simd::Target target : simd::Reachable()) {
    SCOPED_TRACE(simd::Name(target));
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    for (Case c : cases) {
      ExpectExact(c, "exact:precision=f32", 2e-5);
      c.type = simd::RowType::kBf16;
      ExpectExact(c, "exact:precision=bf16", 3e-2);
      c.type = simd::RowType::kF16;
      ExpectExact(c, "exact", 2e-5);
    }
  }
  ASSERT_TRUE(simd::Force(""));
}

// Pieces and tiles are cut by the problem, not by the number of workers.
TEST(ExactAttention, EveryNumberOfThreadsGivesTheSameBits) {
  const Case cases[] = {
      {.heads = 4, .kv_heads = 2, .nq = 700, .nk = 1300, .dim = 64, .causal = true},
      {.heads = 4, .kv_heads = 2, .nq = 1, .nk = 9000, .dim = 64},
  };
  for (Case c : cases)
    for (const simd::RowType type : {simd::RowType::kF32, simd::RowType::kBf16}) {
      c.type = type;
      const RandomProblem r(c);
      const auto made = Make("exact");
      ASSERT_TRUE(made);
      Answer one(r.problem);
      Executor single(1);
      ASSERT_TRUE(attention::Run(single, **FindMethod("exact"), **made, r.problem, one.View()));
      for (const int threads : {2, 3, 5}) {
        Answer other(r.problem);
        Executor executor(threads);
        ASSERT_TRUE(attention::Run(executor, **FindMethod("exact"), **made, r.problem, other.View()));
        EXPECT_EQ(one.out, other.out);
        EXPECT_EQ(one.lse, other.lse);
      }
    }
}

// Keys out of sight are neither read into products nor packed: numbers there would make NaNs.
TEST(ExactAttention, KeysOutsideTheWindowAreNotRead) {
  for (const int64_t nq : {1, 5, 100}) {
    RandomProblem r({.nq = nq, .nk = 900, .causal = true, .window = 64});
    const int64_t hidden = 900 - nq - 63;  // keys before the first query's window
    const Answer clean = [&] {
      Answer a(r.problem);
      Executor executor(1);
      EXPECT_TRUE((*Make("exact"))->Run(executor, r.problem, a.View(), std::make_unique<RunReport>().get()));
      return a;
    }();
    for (int64_t i = 0; i < hidden / 64 * 64 * 64; ++i) r.k.Set(i, 1e30f), r.v.Set(i, std::nanf(""));
    Answer dirty(r.problem);
    Executor executor(1);
    RunReport report;
    ASSERT_TRUE((*Make("exact"))->Run(executor, r.problem, dirty.View(), &report));
    EXPECT_EQ(clean.out, dirty.out);
  }
}

}  // namespace
}  // namespace croquis::attention
