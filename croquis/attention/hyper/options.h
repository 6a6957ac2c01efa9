// What can be set on HyperAttention, read from a spec.
#pragma once

#include <cstdint>

#include "croquis/base/result.h"
#include "croquis/base/spec.h"

namespace croquis::attention::hyper {

// What stands for the keys outside of a query's window.
enum class Residual : uint8_t {
  kMoment,      // a virtual key for each cell of neighbouring keys
  kStratified,  // a random key of each cell
  kUniform,     // random keys, with replacement
  kValues,      // the same, half of them with probabilities by the squared norms of values (KDEformer)
  kSinks        // the first keys, unweighted; not an estimate of anything
};
// Whether a residual is random samples, whose two halves tell the error of each row.
inline bool SplitsSamples(Residual r) {
  return r == Residual::kStratified || r == Residual::kUniform || r == Residual::kValues;
}
enum class Match : uint8_t {
  kCode,  // a query's window lies around the place of its own code among the keys
  kRank   // block u of the sorted queries meets block u of the sorted keys
};

struct Options {
  bool paper = false;      // HyperAttention as published and shipped by its authors
  int64_t block = 0;       // keys of a window; 0: by length
  int64_t samples = 0;     // cells or samples of the residual; 0: by length
  int64_t bits = 0;        // of a hash; 0: by length
  int64_t min_length = 0;  // so many keys or fewer are attended exactly
  int64_t split = 2;       // causal: parts that a range of keys is cut into
  int64_t globals = 0;     // keys that every query meets: sinks, along the mean query, outliers
  int64_t recent = 0;      // last keys of a causal segment that every query meets
  Residual residual = Residual::kMoment;
  Match match = Match::kCode;
  bool strict = false;   // no row depends on later tokens in any way
  double tolerance = 0;  // rows whose estimated relative error is above are computed exactly; 0: none
  double cap = 1;        // with a larger share of such rows the whole head is computed exactly
  int64_t probes = 0;    // rows of each head computed exactly to estimate the error
  uint64_t seed = 0;
};

// Errors: parameters that do not go together.
Result<Options> ReadOptions(const Spec& spec, uint64_t seed);

}  // namespace croquis::attention::hyper
