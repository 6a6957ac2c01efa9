// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

// Applied in the order of transformers' generate: repetition penalty, temperature, top-k, top-p, min-p.
struct SamplerOptions {
  double temperature = 0;         // 0: greedy, the others but the penalty are ignored
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // 1: off
  double min_p = 0;               // 0: off
  double repetition_penalty = 1;  // 1: off; CTRL's rule (arXiv 1909.05858, section 4.1), over prompt and output
  uint64_t seed = 0;
};

class Sampler {
 public:
  // Errors: values outside their ranges, with the range.
  static Result<Sampler> Make(const SamplerOptions& options);
  // The step-th choice depends only on (options, logits, history, step). Greedy ties go to the lowest id.
  int32_t Sample(std::span<const float> logits, std::span<const int32_t> history, int64_t step) const;

 private:
  explicit Sampler(const SamplerOptions& o) : options_(o) {}
  SamplerOptions options_;
};

}  // namespace croquis::model
