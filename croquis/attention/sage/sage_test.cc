// Quantised attention against attention in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "croquis/attention/test_run.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::RandomProblem;

struct Error {
  double cosine, row_max, row_mean, lse_max;
};

// biased: each channel of queries, keys and values has a mean of several standard deviations.
Error Measure(const Case& c, const std::string& method, bool biased = false) {
  RandomProblem r(c);
  if (biased) {
    const Stream random{7, Purpose("attention.sage_test")};
    const auto shift = [&](testing::RandomTensor& t, int64_t rows, int64_t dim, uint64_t at, float size) {
      for (int64_t i = 0; i < rows * dim; ++i) t.f32()[i] += size * random.Gaussian(at + uint64_t(i % dim));
    };
    shift(r.q, c.heads * c.nq, c.dim, 0, 1);
    shift(r.k, c.kv_heads * c.nk, c.dim, 1000, 4);
    shift(r.v, c.kv_heads * c.nk, c.value_dim, 2000, 2);
  }
  Answer got(r.problem), want = testing::Reference(r.problem);
  testing::RunOn(method, r.problem, got);
  const ErrorReport e = testing::ErrorOf(r.problem, got, want);
  double dot = 0, a = 0, b = 0;
  for (size_t i = 0; i < got.out.size(); ++i) {
    dot += double(got.out[i]) * want.out[i];
    a += double(got.out[i]) * got.out[i];
    b += double(want.out[i]) * want.out[i];
  }
  return {dot / std::sqrt(a * b), e.row_max, e.row_mean, e.lse_max};
}

// The bounds of the paper's spec: cosine at least .9999, no row off by 2 %, log-sum-exp to 1e-3 on average-size logits
// (here its largest error).
TEST(Sage, IsCloseOnEveryTarget) {
  const Case cases[] = {
      {.nq = 256, .nk = 256},
      {.heads = 4, .kv_heads = 2, .nq = 130, .nk = 333, .dim = 80, .value_dim = 48, .causal = true},
      {.heads = 3, .kv_heads = 1, .nq = 100, .nk = 200, .dim = 128, .value_dim = 128, .causal = true, .window = 70},
      {.nq = 9, .nk = 1500, .dim = 17, .value_dim = 33},
  };
  for (const simd::Target target : simd::Reachable()) {
    SCOPED_TRACE(simd::Name(target));
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    for (const bool biased : {false, true})
      for (const Case& c : cases) {
        SCOPED_TRACE("nk " + std::to_string(c.nk) + (biased ? " biased" : ""));
        const Error e = Measure(c, "sage", biased);
        EXPECT_GT(e.cosine, .9999);
        EXPECT_LT(e.row_max, .02);
        EXPECT_LT(e.lse_max, .01);
      }
  }
  ASSERT_TRUE(simd::Force(""));
}

TEST(Sage, Parameters) {
  const Case c{.nq = 200, .nk = 500, .causal = true};
  EXPECT_GT(Measure(c, "sage:pv=int8").cosine, .9999);
  EXPECT_LT(Measure(c, "sage:pv=int16").row_mean, .8 * Measure(c, "sage:pv=int8").row_mean);
  // Four bits lose ten times more, and centring is what makes them usable on keys with a common part.
  const double four = Measure(c, "sage:bits=4", true).row_mean;
  EXPECT_GT(four, 3 * Measure(c, "sage", true).row_mean);
  EXPECT_GT(Measure(c, "sage:bits=4,smooth_k=off,smooth_q=off", true).row_mean, 2 * four);
  EXPECT_GT(Measure(c, "sage:bits=4,smooth_q=off", true).row_mean, four);
}

TEST(Sage, RowsThatSeeNothingAndFewRows) {
  EXPECT_LT(Measure({.nq = 200, .nk = 60, .causal = true}, "sage").row_max, .02);  // the first 140 rows see nothing
  EXPECT_LT(Measure({.nq = 1, .nk = 3000}, "sage").row_max, 1e-5);                 // computed exactly
  EXPECT_LT(Measure({.nq = 100, .nk = 1, .dim = 3, .value_dim = 1}, "sage").row_max, .02);
}

TEST(Sage, EveryNumberOfThreadsGivesTheSameBits) {
  const RandomProblem r({.heads = 4, .kv_heads = 2, .nq = 300, .nk = 1300, .causal = true});
  const auto made = Make("sage");
  ASSERT_TRUE(made);
  Answer one(r.problem);
  Executor single(1);
  ASSERT_TRUE(attention::Run(single, **FindMethod("sage"), **made, r.problem, one.View()));
  for (const int threads : {2, 5}) {
    Answer other(r.problem);
    Executor executor(threads);
    ASSERT_TRUE(attention::Run(executor, **FindMethod("sage"), **made, r.problem, other.View()));
    EXPECT_EQ(one.out, other.out);
    EXPECT_EQ(one.lse, other.lse);
  }
}

}  // namespace
}  // namespace croquis::attention
