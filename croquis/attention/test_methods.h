// For tests over the whole registry: every method in every setting, and runs that may be refused, in words.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "croquis/attention/test_problem.h"

namespace croquis::attention::testing {

inline std::string ShortReal(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", v);
  return text;
}

// The method at its defaults, and with each parameter changed alone: every word, both ends of every range.
inline std::vector<std::string> Variants(const MethodInfo& method) {
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
inline Executor& Workers(int threads) {
  static Executor pools[] = {Executor(1), Executor(2), Executor(3)};
  return pools[threads - 1];
}

struct Ran {
  Answer answer;
  RunReport report;
};

// Runs it; nothing where the method refuses, which must be in words.
inline std::optional<Ran> Attempt(const MethodInfo& info, const std::string& text, const Problem& p,
                                  const std::string& where, int threads = 2, uint64_t seed = 5) {
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

inline void ExpectFinite(const Answer& a, const std::string& where) {
  for (const float x : a.out) ASSERT_TRUE(std::isfinite(x)) << where;
  for (const float x : a.lse) ASSERT_TRUE(std::isfinite(x)) << where << " (log-sum-exp)";
}

// How large queries and keys may be: methods with a bounded range of logits refuse standard normal ones. The largest of
// a few sizes that the method takes; 0 if it takes none.
inline float WorkingSize(const MethodInfo& info, const std::string& text) {
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
inline RandomProblem Fitting(const MethodInfo& info, const std::string& text, Case c) {
  c.size *= WorkingSize(info, text);
  return RandomProblem(c);
}

}  // namespace croquis::attention::testing
