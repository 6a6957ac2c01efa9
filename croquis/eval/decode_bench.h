// Whole decode steps of a model over a long context, several caches in one run.
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

struct DecodeBenchOptions {
  std::vector<kvcache::KvPolicy> caches;  // f16 is added in front when it is not there
  int64_t n = 32768;                      // tokens of context
  int64_t steps = 64;                     // of every cache; the caches take turns step by step
  int64_t chunk = 256, sinks = 4, ring = 128;
  uint64_t seed = 0;
};

struct DecodeRow {
  std::string kv;
  double prompt_tokens_per_s = 0;
  double ms = 0, ms_best = 0;  // of a step: median and least
  double ratio_to_f16 = 0;     // how many times faster than f16: median over steps of f16's time over its own
  kvcache::Report report;      // after the last step
};

// Milliseconds of every decode step of every cache, [caches][tokens.size()]: each token is fed to all caches in turn.
Result<std::vector<std::vector<double>>> TimeSteps(Executor& executor, model::Model& model,
                                                   std::span<kvcache::KvCache* const> caches,
                                                   std::span<const int32_t> tokens, const ProgressFn& progress = {});

// `tokens` fill the context (repeated when too few) and are then what is decoded: every cache sees the same.
// Errors: options out of range, no tokens, those of the caches and the model.
Result<std::vector<DecodeRow>> BenchDecode(Executor& executor, model::Model& model, std::span<const int32_t> tokens,
                                           const DecodeBenchOptions& options, const ProgressFn& progress = {});

}  // namespace croquis::eval
