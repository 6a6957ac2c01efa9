// For tests of dense methods: a case in words, a run, the answer of exact attention, and the error of the one against
// the other.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "croquis/attention/test_problem.h"

namespace croquis::attention::testing {

inline std::string Describe(const Case& c) {
  return "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " nq " + std::to_string(c.nq) +
         " nk " + std::to_string(c.nk) + " dim " + std::to_string(c.dim) + "/" + std::to_string(c.value_dim) +
         (c.causal ? " causal" : "") + (c.window > 0 ? " window " + std::to_string(c.window) : "");
}

// Runs a method, "name:param=value,...", which must not refuse.
inline RunReport RunOn(const std::string& method, const Problem& p, Answer& answer, uint64_t seed = 1,
                       int threads = 2) {
  Executor executor(threads);
  RunReport report;
  const auto made = Make(method, seed);
  EXPECT_TRUE(made) << made.error().message;
  if (!made) return report;
  const Status ran = Run(executor, **FindMethod(method.substr(0, method.find(':'))), **made, p, answer.View(), &report);
  EXPECT_TRUE(ran) << ran.error().message;
  return report;
}

inline Answer Reference(const Problem& p) {
  Executor executor(2);
  Answer want(p);
  EXPECT_TRUE(SoftmaxReference(executor, p, want.View()));
  return want;
}

inline ErrorReport ErrorOf(const Problem& p, Answer& got, Answer& want, bool operator_norm = false) {
  Executor executor(2);
  return Compare(executor, p, got.View(), want.View(), operator_norm);
}

}  // namespace croquis::attention::testing
