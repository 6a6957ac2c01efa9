// Needle in a haystack: a fact hidden in a long text, asked for at its end.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/eval/compare.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"

namespace croquis::eval {

// One question: the prompt's tokens and the answer's.
struct NeedlePrompt {
  std::vector<int32_t> tokens;
  std::vector<int32_t> answer;  // tokens that continue the prompt with the digits
  std::string digits;           // five digits
};

struct NeedleOptions {
  std::vector<kvcache::KvPolicy> caches;
  std::vector<int64_t> lengths;  // tokens of prompt and answer together
  std::vector<double> depths;    // 0: the fact stands at the start, 1: right before the question
  int64_t trials = 2;            // facts a cell
  int64_t chunk = 256, sinks = 4, ring = 128;
  uint64_t seed = 0;
};

struct NeedleCell {
  size_t cache = 0;  // index into the options' caches
  double depth = 0;
  int64_t length = 0, trials = 0;
  double accuracy = 0;        // share of facts whose five digits the greedy answer starts with
  double token_accuracy = 0;  // share of the answer's tokens that are the most likely one, given the true ones before
  double log_prob = 0;        // mean over facts of ln p(answer), given the true tokens
};

// A fact in `haystack` (repeated when too short) between two sentences near `depth`, and the question, at most `length`
// tokens with the answer, at least length - 48. Depends on (seed, trial) and the arguments alone.
// Errors: lengths too short for fact and question; the tokenizer's.
Result<NeedlePrompt> MakeNeedle(const model::Tokenizer& tokenizer, const std::string& haystack, double depth,
                                int64_t length, uint64_t seed, int64_t trial);

// The grid, one cell for each (cache, length, depth), cells of one prompt computed for all caches before the next.
Result<std::vector<NeedleCell>> RunNeedles(Executor& executor, model::Model& model, const std::string& haystack,
                                           const NeedleOptions& options, const ProgressFn& progress = {});

// The first run of digits of a text, "" without one.
std::string FirstDigits(const std::string& text);

}  // namespace croquis::eval
