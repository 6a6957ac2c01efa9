// Every registered method against what method.h promises, at its defaults and with each parameter changed alone. A new
// method needs no change here. A method may refuse a problem, in words (kUnsupported, kOutOfRange); it may not crash,
// give numbers that are none, or let the number of threads decide.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/attention/test_problem.h"

namespace croquis::attention {
namespace {

using simd::RowType;
using testing::Answer;
using testing::Case;
using testing::RandomProblem;

std::string ShortReal(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", v);
  return text;
}

// The method at its defaults, and with each parameter changed alone: every word, both ends of every range.
std::vector<std::string> Variants(const MethodInfo& method) {
  std::vector<std::string> all = {std::string(method.name)};
  const auto add = [&](const ParamInfo& p, const std::string& value) {
    const std::string text = std::string(method.name) + ":" + std::string(p.name) + "=" + value;
    if (value != p.def && Make(text)) all.push_back(text);
  };
  for (const ParamInfo& p : method.params) {
    for (std::string_view rest = p.choices; !rest.empty();) {
      const size_t bar = rest.find('|');
      add(p, std::string(rest.substr(0, bar)));
      rest = bar == rest.npos ? "" : rest.substr(bar + 1);
    }
    if (!p.choices.empty()) continue;
    if (p.IsReal()) {
      add(p, ShortReal(p.real_min)), add(p, ShortReal(p.real_max));
    } else {
      add(p, std::to_string(p.min)), add(p, std::to_string(p.max));
    }
  }
  return all;
}

template <class F>
void ForEachMethod(const F& fn) {
  for (const MethodInfo* m : Methods()) fn(*m, std::string(m->name));
}
template <class F>
void ForEachVariant(const F& fn) {
  for (const MethodInfo* m : Methods())
    for (const std::string& text : Variants(*m)) fn(*m, text);
}

// Pools are made once: hundreds of runs share them.
Executor& Workers(int threads) {
  static Executor pools[] = {Executor(1), Executor(2), Executor(3)};
  return pools[threads - 1];
}

struct Ran {
  Answer answer;
  RunReport report;
};

// Runs it; nothing where the method refuses, which must be in words.
std::optional<Ran> Attempt(const MethodInfo& info, const std::string& text, const Problem& p, const std::string& where,
                           int threads = 2, uint64_t seed = 5) {
  const auto method = Make(text, seed);
  EXPECT_TRUE(method) << text << ": " << (method ? "" : method.error().message);
  if (!method) return std::nullopt;
  Executor& executor = Workers(threads);
  Ran ran{Answer(p), {}};
  // What is never written stays NaN and is seen.
  std::fill(ran.answer.out.begin(), ran.answer.out.end(), std::numeric_limits<float>::quiet_NaN());
  std::fill(ran.answer.lse.begin(), ran.answer.lse.end(), std::numeric_limits<float>::quiet_NaN());
  const Status status = attention::Run(executor, info, **method, p, ran.answer.View(), &ran.report);
  if (status) return ran;
  EXPECT_TRUE(status.error().code == Code::kUnsupported || status.error().code == Code::kOutOfRange)
      << text << ", " << where << ": " << status.error().message;
  EXPECT_GT(status.error().message.size(), 20u) << text << ", " << where;
  return std::nullopt;
}

void ExpectFinite(const Answer& a, const std::string& where) {
  for (const float x : a.out) ASSERT_TRUE(std::isfinite(x)) << where;
  for (const float x : a.lse) ASSERT_TRUE(std::isfinite(x)) << where << " (log-sum-exp)";
}

// How large queries and keys may be: methods with a bounded range of logits refuse standard normal ones. The largest of
// a few sizes that the method takes; 0 if it takes none.
float WorkingSize(const MethodInfo& info, const std::string& text) {
  static std::map<std::string, float> known;
  const auto at = known.find(text);
  if (at != known.end()) return at->second;
  for (const bool causal : {info.causal, false})  // a variant may lack the mask that its method takes
    for (const int64_t dim : {16, 4})             // features of high degree are too many but for small dims
      for (const float size : {1.f, .5f, .2f, .1f, .05f, .02f}) {
        const RandomProblem random({.nq = 64, .nk = 64, .dim = dim, .value_dim = dim, .causal = causal, .size = size});
        if (Attempt(info, text, random.problem, "any size")) return known[text] = size;
      }
  return known[text] = 0;
}

// A problem of a size that the method takes.
RandomProblem Fitting(const MethodInfo& info, const std::string& text, Case c) {
  c.size *= WorkingSize(info, text);
  return RandomProblem(c);
}

bool SameBits(const Answer& a, const Answer& b) {
  return std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(float)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

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

TEST(Conformance, KeyLengthIsAProblemOnFewerKeys) {
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

TEST(Conformance, LaterTokensChangeNothingWherePromised) {
  ForEachVariant([](const MethodInfo& info, const std::string& text) {
    if (!info.causal || info.strict_causal == nullptr || !info.strict_causal(*ResolveSpec(text))) return;
    CheckCausality(info, text, 257, {256, 200, 128, 3});
    // Long enough for methods that are exact on short pieces.
    const bool plain = text.find(':') == text.npos || text.find("causal") != text.npos;
    if (plain) CheckCausality(info, text, 2503, {2502, 2048, 1300});
  });
}

TEST(Conformance, ThreadsAndSeedsDecideAsTheyShould) {
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

// Strides between rows and heads, of inputs and output, and an output without log-sum-exps, change no number.
TEST(Conformance, StridesAreFollowed) {
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

TEST(Conformance, SecondKeysAndValuesAreTheFirstUnlessGiven) {
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
