// Every registered method against what method.h promises, at its defaults and with each parameter changed alone. A new
// method needs no change here. A method may refuse a problem, in words (kUnsupported, kOutOfRange); it may not crash,
// give numbers that are none, or let the number of threads decide.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/attention/test_methods.h"

namespace croquis::attention {
namespace {

using simd::RowType;
using testing::Answer;
using testing::Attempt;
using testing::Case;
using testing::ExpectFinite;
using testing::Fitting;
using testing::ForEachMethod;
using testing::ForEachVariant;
using testing::RandomProblem;
using testing::Workers;
using testing::WorkingSize;

ErrorReport ErrorOf(const std::string& text, const Problem& p, Answer& a) {
  Executor& executor = Workers(2);
  const auto method = Make(text, 5);
  Answer want(p);
  EXPECT_TRUE((*method)->RunReference(executor, p, want.View())) << text;
  return Compare(executor, p, a.View(), want.View());
}

// Rounding of the tensors' and the products' type, with room: the largest error of a row.
double ExactTolerance(const std::string& text, RowType type) {
  if (text.find("precision=bf16") != text.npos || type == RowType::kBf16) return 3e-2;
  return 1e-4;
}

std::string Name(const Case& c) {
  const char* types[] = {"f32", "f16", "bf16"};
  return std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads, " + std::to_string(c.nq) + " queries, " +
         std::to_string(c.nk) + " keys, dims " + std::to_string(c.dim) + " and " + std::to_string(c.value_dim) + ", " +
         types[int(c.type)] + (c.causal ? ", causal" : "") +
         (c.window > 0 ? ", window " + std::to_string(c.window) : "");
}

// Runs a case; finite everywhere and, for exact methods, the reference's answer.
void CheckCase(const MethodInfo& info, const std::string& text, const Case& c) {
  if ((c.causal && !info.causal) || (c.window > 0 && !info.window)) return;
  const RandomProblem random = Fitting(info, text, c);
  const std::string where = Name(c);
  auto ran = Attempt(info, text, random.problem, where);
  if (!ran) return;
  ExpectFinite(ran->answer, text + ", " + where);
  if (!info.exact) return;
  const ErrorReport e = ErrorOf(text, random.problem, ran->answer);
  EXPECT_LT(e.row_max, ExactTolerance(text, c.type)) << text << ", " << where;
  EXPECT_LT(e.lse_max, ExactTolerance(text, c.type)) << text << ", " << where;
}

TEST(Conformance, MethodsHaveRecords) {
  std::set<std::string_view> names;
  for (const MethodInfo* m : Methods()) {
    EXPECT_TRUE(names.insert(m->name).second) << m->name;
    EXPECT_FALSE(m->summary.empty()) << m->name;
    EXPECT_FALSE(m->paper.empty()) << m->name;
    for (const ParamInfo& p : m->params) EXPECT_FALSE(p.help.empty()) << m->name << " " << p.name;
    EXPECT_TRUE(ResolveSpec(m->name)) << m->name;
    EXPECT_TRUE(Make(m->name)) << m->name;
    EXPECT_FALSE(Make(std::string(m->name) + ":nonsense=1")) << m->name;
    EXPECT_FALSE(m->exact && !m->softmax) << m->name;
  }
  const auto none = FindMethod("nothing");
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("exact"), std::string::npos);
}

TEST(Conformance, ShapesThatDoNotFitAreErrors) {
  ForEachMethod([](const MethodInfo& info, const std::string& text) {
    const auto method = Make(text);
    Executor& executor = Workers(2);
    const RandomProblem random({.heads = 4, .kv_heads = 2, .nq = 10, .nk = 10, .dim = 16, .value_dim = 16});
    const auto expect = [&](const char* says, Code code, const auto& change) {
      Problem p = random.problem;
      change(p);
      Answer a(random.problem);
      const Status s = attention::Run(executor, info, **method, p, a.View());
      ASSERT_FALSE(s) << text << " " << says;
      EXPECT_EQ(s.error().code, code) << text << ": " << s.error().message;
      EXPECT_NE(s.error().message.find(says), std::string::npos) << text << ": " << s.error().message;
    };
    const Code shape = Code::kInvalidArgument, range = Code::kOutOfRange;
    expect("same dim", shape, [](Problem& p) { p.k.dim = 8; });
    expect("1 to 1024", shape, [](Problem& p) { p.q.dim = p.k.dim = 0; });
    expect("1 to 1024", shape, [](Problem& p) { p.q.dim = p.k.dim = 1025; });
    expect("1 to 1024", shape, [](Problem& p) { p.v.dim = 0; });
    expect("heads and rows", shape, [](Problem& p) { p.v.rows = 9; });
    expect("heads and rows", shape, [](Problem& p) { p.v.heads = 1; });
    expect("multiple", shape, [](Problem& p) { p.q.heads = 3; });
    expect("at least one head", shape, [](Problem& p) { p.q.heads = 0; });
    expect("at least one head", shape, [](Problem& p) { p.k.heads = p.v.heads = 0; });
    expect("at least one head", shape, [](Problem& p) { p.q.rows = -1; });
    expect("2^30", range, [](Problem& p) { p.q.rows = int64_t(1) << 40; });
    expect("key_length", range, [](Problem& p) { p.key_length = 11; });
    expect("window", range, [](Problem& p) { p.mask.window = -1; });
    expect("finite", shape, [](Problem& p) { p.scale = std::numeric_limits<float>::infinity(); });
    expect("k2 must have", shape, [](Problem& p) { p.k2 = p.k, p.k2.rows = 9; });
    expect("v2 must have", shape, [](Problem& p) { p.v2 = p.v, p.v2.dim = 9; });
    if (!info.second) expect("second", Code::kUnsupported, [](Problem& p) { p.k2 = p.k; });
    if (!info.causal) expect("causal", Code::kUnsupported, [](Problem& p) { p.mask.causal = true; });
    if (!info.window) expect("window", Code::kUnsupported, [](Problem& p) { p.mask.window = 4; });
  });
}

TEST(Conformance, NumbersThatAreNoneAreNamed) {
  ForEachMethod([](const MethodInfo& info, const std::string& text) {
    const auto method = Make(text);
    Executor& executor = Workers(2);
    for (const RowType type : {RowType::kF32, RowType::kF16, RowType::kBf16})
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()})
        for (int which = 0; which < 3; ++which) {
          RandomProblem random(
              {.heads = 2, .kv_heads = 2, .nq = 40, .nk = 40, .dim = 16, .value_dim = 16, .type = type});
          testing::RandomTensor& t = which == 0 ? random.q : which == 1 ? random.k : random.v;
          t.Set((40 + 37) * 16 + 15, bad);  // head 1, row 37, the last number
          Answer a(random.problem);
          const Status s = attention::Run(executor, info, **method, random.problem, a.View());
          ASSERT_FALSE(s) << text;
          EXPECT_EQ(s.error().code, Code::kNumeric) << text << ": " << s.error().message;
          const std::string want = std::string("in ") + "qkv"[which] + ", head 1, row 37";
          EXPECT_NE(s.error().message.find(want), std::string::npos) << text << ": " << s.error().message;
          // A key that does not count may hold anything.
          random.problem.key_length = 30;
          if (which > 0) {
            if (const auto ran = Attempt(info, text, random.problem, "NaN beyond key_length"))
              ExpectFinite(ran->answer, text);
          }
        }
  });
}

// Otherwise the other tests would pass by refusals.
TEST(Conformance, EverySettingTakesSomething) {
  ForEachVariant(
      [](const MethodInfo& info, const std::string& text) { EXPECT_GT(WorkingSize(info, text), 0) << text; });
}

TEST(Conformance, NothingInGivesNothingOut) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    ASSERT_TRUE(Attempt(info, text, RandomProblem({.nq = 0, .nk = 20}).problem, "no query")) << text;
    ASSERT_TRUE(Attempt(info, text, RandomProblem({.nq = 0, .nk = 0}).problem, "nothing")) << text;
    for (const bool no_rows : {false, true}) {
      RandomProblem random({.heads = 2, .nq = 5, .nk = no_rows ? 0 : 20, .causal = info.causal});
      random.problem.key_length = no_rows ? -1 : 0;
      const auto ran = Attempt(info, text, random.problem, "no key");
      ASSERT_TRUE(ran) << text;
      for (const float x : ran->answer.out) EXPECT_EQ(x, 0) << text;
      for (const float x : ran->answer.lse) EXPECT_EQ(x, kEmptyMax) << text;
    }
  });
}

TEST(Conformance, OneElement) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    for (const int64_t dim : {1, 64}) {
      const RandomProblem random =
          Fitting(info, text, {.nq = 1, .nk = 1, .dim = dim, .value_dim = dim, .causal = info.causal});
      const auto ran = Attempt(info, text, random.problem, "one element");
      if (!ran) continue;
      ExpectFinite(ran->answer, text + ", one element");
      std::vector<float> v(static_cast<size_t>(dim));
      random.problem.v.Head(0).Read(0, v.data());
      if (!info.softmax) continue;
      // The only key has all the mass; four-bit values are a twelfth off at worst.
      for (int64_t c = 0; c < dim; ++c)
        EXPECT_NEAR(ran->answer.out[size_t(c)], v[size_t(c)], info.exact ? 2e-2 : .3) << text << " dim " << dim;
    }
  });
}

TEST(Conformance, AnySizes) {
  ForEachMethod([](const MethodInfo& info, const std::string& text) {
    for (const int64_t n : {2, 3, 31, 64, 65, 127, 257, 1009})
      for (const bool causal : {false, true})
        CheckCase(info, text, {.heads = 2, .nq = n, .nk = n, .dim = 32, .value_dim = 32, .causal = causal});
    for (const auto& [nq, nk] : {std::pair<int64_t, int64_t>{1, 127}, {127, 1}, {33, 521}, {521, 33}, {1, 1009}})
      for (const bool causal : {false, true})
        CheckCase(info, text, {.nq = nq, .nk = nk, .dim = 32, .value_dim = 32, .causal = causal});
    for (const bool causal : {false, true}) {
      CheckCase(info, text, {.heads = 6, .kv_heads = 2, .nq = 127, .nk = 127, .causal = causal});
      CheckCase(info, text, {.heads = 3, .kv_heads = 1, .nq = 61, .nk = 127, .causal = causal});
      CheckCase(info, text, {.nq = 127, .nk = 127, .dim = 48, .value_dim = 80, .causal = causal});
      CheckCase(info, text, {.nq = 127, .nk = 127, .dim = 7, .value_dim = 3, .causal = causal});
      CheckCase(info, text, {.nq = 67, .nk = 67, .dim = 128, .value_dim = 128, .causal = causal});
      CheckCase(info, text, {.nq = 67, .nk = 67, .dim = 257, .value_dim = 31, .causal = causal});
      for (const RowType type : {RowType::kF16, RowType::kBf16})
        CheckCase(info, text, {.heads = 2, .nq = 257, .nk = 257, .type = type, .causal = causal});
    }
    CheckCase(info, text, {.nq = 257, .nk = 257, .causal = true, .window = 31});
    CheckCase(info, text, {.nq = 257, .nk = 257, .causal = true, .window = 1});
    CheckCase(info, text, {.nq = 100, .nk = 257, .window = 50});
  });
}

TEST(Conformance, AnySettings) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    for (const bool causal : {false, true}) {
      CheckCase(info, text,
                {.heads = 2, .kv_heads = 1, .nq = 257, .nk = 257, .dim = 16, .value_dim = 16, .causal = causal});
      CheckCase(info, text, {.nq = 13, .nk = 127, .dim = 16, .value_dim = 24, .causal = causal});
      CheckCase(info, text, {.nq = 3, .nk = 2, .dim = 16, .value_dim = 16, .type = RowType::kBf16, .causal = causal});
    }
  });
}

// Logits of 10^8 and more: all mass on one key, and nothing overflows.
TEST(Conformance, HugeLogits) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    for (const bool causal : {false, true}) {
      if (causal && !info.causal) continue;
      const RandomProblem random({.nq = 127, .nk = 127, .dim = 32, .value_dim = 32, .causal = causal, .size = 1e4f});
      if (const auto ran = Attempt(info, text, random.problem, "huge logits"))
        ExpectFinite(ran->answer, text + ", huge logits");
    }
  });
}

TEST(Conformance, ScalesOfAnySign) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    for (const float scale : {0.f, -.2f, 1e-20f}) {
      RandomProblem random = Fitting(info, text, {.nq = 67, .nk = 67, .dim = 16, .value_dim = 16});
      random.problem.scale = scale;
      auto ran = Attempt(info, text, random.problem, "scale " + std::to_string(scale));
      if (!ran) continue;
      ExpectFinite(ran->answer, text + ", scale " + std::to_string(scale));
      if (info.exact) {
        EXPECT_LT(ErrorOf(text, random.problem, ran->answer).row_max, ExactTolerance(text, RowType::kF32))
            << text << ", scale " << scale;
      }
    }
  });
}

// Nothing to tell keys apart by: hashes, clusters, Gram matrices and quantisers all degenerate.
TEST(Conformance, IdenticalKeys) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    for (const float size : {0.f, 1.f})
      for (const bool causal : {false, true}) {
        if (causal && !info.causal) continue;
        const int64_t n = 300, d = 16;
        RandomProblem random =
            Fitting(info, text, {.nq = n, .nk = n, .dim = d, .value_dim = d, .causal = causal, .size = size});
        for (int64_t i = 1; i < n; ++i) std::copy_n(random.k.f32(), d, random.k.f32() + i * d);
        auto ran = Attempt(info, text, random.problem, "identical keys");
        if (!ran) continue;
        ExpectFinite(ran->answer, text + ", identical keys");
        if (info.exact) {
          EXPECT_LT(ErrorOf(text, random.problem, ran->answer).row_max, ExactTolerance(text, RowType::kF32)) << text;
        }
      }
  });
}

TEST(Conformance, RowsThatSeeNoKeyAreZero) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    if (!info.causal) return;
    const RandomProblem random =
        Fitting(info, text, {.heads = 2, .nq = 200, .nk = 120, .dim = 16, .value_dim = 16, .causal = true});
    const auto ran = Attempt(info, text, random.problem, "more queries than keys");
    if (!ran) return;
    ExpectFinite(ran->answer, text);
    for (int64_t i = 0; i < 400; ++i) {
      const bool blind = i % 200 < 80;
      EXPECT_EQ(ran->answer.lse[size_t(i)] == kEmptyMax, blind) << text << " row " << i;
      for (int64_t c = 0; blind && c < 16; ++c) EXPECT_EQ(ran->answer.out[size_t(i * 16 + c)], 0) << text << " " << i;
    }
  });
}

TEST(Conformance, ReportsAreFilled) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    for (const bool causal : {false, true}) {
      if (causal && !info.causal) continue;
      const RandomProblem random = Fitting(
          info, text, {.heads = 4, .kv_heads = 2, .nq = 127, .nk = 257, .dim = 16, .value_dim = 16, .causal = causal});
      const auto ran = Attempt(info, text, random.problem, "report");
      if (!ran) continue;
      const RunReport& r = ran->report;
      EXPECT_GT(r.pairs, 0) << text;
      if (info.second) {
        EXPECT_GE(r.exact_pairs, random.problem.Pairs()) << text;  // triples, if it likes
      } else {
        EXPECT_EQ(r.exact_pairs, random.problem.Pairs()) << text;
      }
      EXPECT_EQ(r.rows, 4 * 127) << text;
      EXPECT_FALSE(r.kernel.empty()) << text;
      EXPECT_GE(r.fallback_rows, 0) << text;
      EXPECT_LE(r.fallback_rows, r.rows) << text;
      EXPECT_TRUE(r.est_error >= 0 || r.est_error == -1) << text << " " << r.est_error;
      EXPECT_TRUE(std::isfinite(r.est_error) && std::isfinite(r.lse_std)) << text;
      if (info.exact) {
        EXPECT_EQ(r.est_error, 0) << text;
      }
      if (!r.chosen.empty()) {
        EXPECT_EQ(r.chosen.size(), 4u) << text;
      }
    }
  });
}

// Data on which nobody should fail: logits of standard deviation .5 at most and values with a mean, so that any sample
// of keys with the right weights gives nearly the right answer. A method at its defaults may be a fifth off.
TEST(Conformance, EasyDataGivesSmallErrors) {
  ForEachMethod([](const MethodInfo& info, const std::string& text) {
    for (const bool causal : {false, true}) {
      if (causal && !info.causal) continue;
      const int64_t n = info.second ? 128 : 512;  // references of third order take cubic time
      RandomProblem random = Fitting(
          info, text,
          {.heads = 2, .kv_heads = 2, .nq = n, .nk = n, .dim = 16, .value_dim = 16, .causal = causal, .size = .35f});
      for (int64_t i = 0; i < 2 * n * 16; ++i) random.v.f32()[i] = 1 + .3f * random.v.f32()[i];
      auto ran = Attempt(info, text, random.problem, "easy data");
      ASSERT_TRUE(ran) << text << ": no method may refuse this";
      const ErrorReport e = ErrorOf(text, random.problem, ran->answer);
      EXPECT_LT(e.frobenius, info.exact ? 1e-5 : .2) << text << ", causal " << causal;
      if (info.softmax) {
        EXPECT_LT(e.lse_mean, info.exact ? 1e-5 : .2) << text << ", causal " << causal;
      }
    }
  });
}

}  // namespace
}  // namespace croquis::attention
