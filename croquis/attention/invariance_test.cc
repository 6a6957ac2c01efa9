// What the answer of every registered method, in every setting, does not depend on: threads, strides, keys beyond
// key_length, and later tokens where the method promises that. A new method needs no change here.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "croquis/attention/test_methods.h"

namespace croquis::attention {
namespace {

using simd::RowType;
using testing::Answer;
using testing::Attempt;
using testing::Case;
using testing::Fitting;
using testing::ForEachVariant;
using testing::RandomProblem;
using testing::Workers;
using testing::WorkingSize;

bool SameBits(const Answer& a, const Answer& b) {
  return std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(float)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

TEST(Invariance, KeyLengthIsAProblemOnFewerKeys) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    RandomProblem random =
        Fitting(info, text, {.heads = 2, .nq = 60, .nk = 150, .dim = 16, .value_dim = 16, .causal = info.causal});
    random.problem.mask.offset = 50;
    Problem fewer = random.problem;
    fewer.k.rows = fewer.v.rows = 101;
    random.problem.key_length = 101;
    const auto a = Attempt(info, text, random.problem, "key_length"), b = Attempt(info, text, fewer, "fewer keys");
    ASSERT_EQ(a.has_value(), b.has_value()) << text;
    if (a) {
      EXPECT_TRUE(SameBits(a->answer, b->answer)) << text;
      EXPECT_EQ(a->report.exact_pairs, b->report.exact_pairs) << text;
    }
  });
}

// Changes token t in q, k and v and compares the rows before it.
void CheckCausality(const MethodInfo& info, const std::string& text, int64_t n, std::initializer_list<int64_t> tokens) {
  const int64_t d = 16;
  const Case c{.heads = 2, .kv_heads = 1, .nq = n, .nk = n, .dim = d, .value_dim = d, .causal = true};
  const auto before = Attempt(info, text, Fitting(info, text, c).problem, "causality");
  if (!before) return;
  for (const int64_t t : tokens) {
    RandomProblem changed = Fitting(info, text, c);
    for (int64_t i = 0; i < d; ++i) {
      const float x = (i % 2 == 0 ? 2.f : -2.f) * WorkingSize(info, text);
      changed.q.f32()[t * d + i] = changed.q.f32()[(n + t) * d + i] = x;
      changed.k.f32()[t * d + i] = x;
      changed.v.f32()[t * d + i] = 10 * x;
    }
    const auto after = Attempt(info, text, changed.problem, "causality");
    ASSERT_TRUE(after) << text;
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < t * d; ++i)
        ASSERT_NEAR(before->answer.out[size_t(h * n * d + i)], after->answer.out[size_t(h * n * d + i)], 1e-6)
            << text << ": token " << t << " of " << n << " changes row " << i / d << " of head " << h;
      for (int64_t i = 0; i < t; ++i)
        ASSERT_NEAR(before->answer.lse[size_t(h * n + i)], after->answer.lse[size_t(h * n + i)], 1e-5)
            << text << ": token " << t << " of " << n << " changes the log-sum-exp of row " << i;
    }
    EXPECT_FALSE(SameBits(before->answer, after->answer)) << text << ": token " << t << " changes nothing";
  }
}

TEST(Invariance, LaterTokensChangeNothingWherePromised) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    if (!info.causal || info.strict_causal == nullptr || !info.strict_causal(*ResolveSpec(text))) return;
    CheckCausality(info, text, 257, {256, 200, 128, 3});
    // Long enough for methods that are exact on short pieces.
    const bool plain = text.find(':') == text.npos || text.find("causal") != text.npos;
    if (plain) CheckCausality(info, text, 2503, {2502, 2048, 1300});
  });
}

TEST(Invariance, ThreadsAndSeedsDecideAsTheyShould) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    const bool plain = text.find(':') == text.npos;
    const int64_t n = plain ? 1009 : 257;
    for (const bool causal : {false, true}) {
      if (causal && !info.causal) continue;
      const RandomProblem random = Fitting(
          info, text, {.heads = 4, .kv_heads = 2, .nq = n, .nk = n, .dim = 16, .value_dim = 16, .causal = causal});
      const auto one = Attempt(info, text, random.problem, "threads", 1);
      for (const int threads : {1, 2, 3}) {
        const auto other = Attempt(info, text, random.problem, "threads", threads);
        ASSERT_EQ(one.has_value(), other.has_value()) << text;
        if (!one) continue;
        EXPECT_TRUE(SameBits(one->answer, other->answer)) << text << ": " << threads << " threads, causal " << causal;
        EXPECT_EQ(one->report.pairs, other->report.pairs) << text << ": " << threads << " threads";
        EXPECT_EQ(one->report.est_error, other->report.est_error) << text << ": " << threads << " threads";
        EXPECT_EQ(one->report.fallback_rows, other->report.fallback_rows) << text << ": " << threads << " threads";
      }
    }
  });
}

// Strides between rows and heads, of inputs and output, and an output without log-sum-exps, change no number.
TEST(Invariance, StridesAreFollowed) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    const int64_t n = 127, d = 16, heads = 4, kv_heads = 2;
    const RandomProblem random = Fitting(
        info, text,
        {.heads = heads, .kv_heads = kv_heads, .nq = n, .nk = n, .dim = d, .value_dim = d, .causal = info.causal});
    const auto want = Attempt(info, text, random.problem, "strides");
    if (!want) return;
    // [rows, heads, dim], as attention layers leave it; one number of room after each row.
    std::vector<std::vector<float>> kept;
    const auto moved = [&](const TensorView& t) {
      std::vector<float>& to =
          kept.emplace_back(size_t(n * (t.heads * d + 1)), std::numeric_limits<float>::quiet_NaN());
      for (int64_t h = 0; h < t.heads; ++h)
        for (int64_t r = 0; r < n; ++r) t.Head(h).Read(r, &to[size_t(r * (t.heads * d + 1) + h * d)]);
      return TensorView{
          reinterpret_cast<const std::byte*>(to.data()), RowType::kF32, t.heads, n, d, d, t.heads * d + 1};
    };
    Problem p = random.problem;
    p.q = moved(p.q), p.k = moved(p.k), p.v = moved(p.v);
    std::vector<float> out(size_t(n * heads * d), std::numeric_limits<float>::quiet_NaN());
    const auto method = Make(text, 5);
    Executor& executor = Workers(2);
    ASSERT_TRUE(attention::Run(executor, info, **method, p, Output{out.data(), d, heads * d, nullptr})) << text;
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = 0; r < n; ++r)
        for (int64_t c = 0; c < d; ++c)
          ASSERT_EQ(out[size_t((r * heads + h) * d + c)], want->answer.out[size_t((h * n + r) * d + c)])
              << text << " head " << h << " row " << r;
  });
}

TEST(Invariance, SecondKeysAndValuesAreTheFirstUnlessGiven) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    if (!info.second) return;
    RandomProblem random = Fitting(info, text, {.heads = 2, .nq = 67, .nk = 67, .dim = 8, .value_dim = 8});
    const auto without = Attempt(info, text, random.problem, "no second keys");
    random.problem.k2 = random.problem.k, random.problem.v2 = random.problem.v;
    const auto with = Attempt(info, text, random.problem, "second keys");
    ASSERT_EQ(without.has_value(), with.has_value()) << text;
    if (with) {
      EXPECT_TRUE(SameBits(without->answer, with->answer)) << text;
    }
  });
}

}  // namespace
}  // namespace croquis::attention
