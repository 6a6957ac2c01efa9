// KDEformer as its theorem has it: the denominators and the importance of each key are kernel density estimates, and
// the product is a sample of keys. Quadratic with exact densities; for small n and for checks.
#pragma once

#include <cstdint>

#include "croquis/attention/method.h"

namespace croquis::attention::kdeformer {

struct TheoryOptions {
  int64_t samples = 0;      // keys drawn for the product; 0: n / 4, at least 64
  int64_t kde_samples = 0;  // points a density is estimated from; 0: all, exact
  uint64_t seed = 0;
};

// Errors: a causal mask (kUnsupported), too little memory.
Status RunTheory(const TheoryOptions& options, simd::TileType type, Executor& executor, const Problem& p,
                 const Output& output, RunReport* report);

// What it draws keys with, for tests: ln of the estimate of |P e_j|^2 for each key of query head h.
Result<std::vector<double>> LogColumnNorms(const TheoryOptions& options, simd::TileType type, Executor& executor,
                                           const Problem& p, int64_t h);

}  // namespace croquis::attention::kdeformer
