// Exact attention on tensors against attention in double.
#include <gtest/gtest.h>

#include <string>

#include "croquis/attention/partial.h"
#include "croquis/attention/test_problem.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::RandomProblem;

void ExpectExact(const Case& c, const std::string& method, double tolerance) {
  SCOPED_TRACE(method + " heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " nq " +
               std::to_string(c.nq) + " nk " + std::to_string(c.nk) + " dim " + std::to_string(c.dim) + "/" +
               std::to_string(c.value_dim) + (c.causal ? " causal" : "") + " window " + std::to_string(c.window));
  const RandomProblem r(c);
  Answer got(r.problem), want(r.problem);
  Executor executor(2);
  const auto made = Make(method);
  ASSERT_TRUE(made) << made.error().message;
  const Status ran = Run(executor, **FindMethod("exact"), **made, r.problem, got.View());
  ASSERT_TRUE(ran) << ran.error().message;
  ASSERT_TRUE(SoftmaxReference(executor, r.problem, want.View()));
  const ErrorReport e = Compare(executor, r.problem, got.View(), want.View());
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

}  // namespace
}  // namespace croquis::attention
