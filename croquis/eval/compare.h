// Quality of compressed caches: next-token distributions against those of an uncompressed cache, over windows of text.
//
// Two ways of reading a window, both with the text's own tokens as input (docs/cli.md defines them for users):
//   chunked  the window goes through the model `chunk` tokens at a time, as a prompt does: a token sees the tokens of
//   its
//            own chunk and of the ring exactly, older ones through the codes.
//   decode   one token at a time, as in generation: a token sees all but the ring through the codes, and its own key
//            and value are made from activations that have seen codes only.
// In both, keys and values of later tokens carry the error of earlier reads. The reference runs in the same way, with
// the same chunks, so that nothing but the cache differs.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/eval/metrics.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"

namespace croquis::eval {

// Called between pieces of work; returning false stops with an error of Code::kInternal, message "interrupted".
using ProgressFn = std::function<bool(int64_t done, int64_t total)>;

struct CompareOptions {
  std::vector<kvcache::KvPolicy> caches;
  kvcache::KvPolicy reference;  // f16, unless the caller wants another
  int64_t ctx = 1024;           // tokens of a window, the BOS token included
  int64_t windows = 8;          // 0: all
  int64_t chunk = 32;
  int64_t sinks = 4, ring = 128;
  bool chunked = true, decode = true;
  uint64_t seed = 0;
};

struct CacheScore {
  DivergenceSummary chunked, decode;  // positions after the first of each window; empty when not asked for
  kvcache::Report report;             // at the end of the last window
  double seconds = 0;                 // spent in this cache's forward passes
};

struct CompareResult {
  std::vector<CacheScore> caches;  // in the order of the options
  CacheScore reference;            // its kl_* compare it with itself: 0
  int64_t windows = 0, windows_available = 0;
};

// text: tokens without special ones; every window starts with the tokenizer's BOS when it has one. Logits of one chunk
// and two caches are in memory at a time: windows go through all caches in step with the reference.
// Errors: options out of range, text shorter than a window, those of the model and the caches.
Result<CompareResult> CompareCaches(Executor& executor, model::Model& model, std::span<const int32_t> text,
                                    const CompareOptions& options, const ProgressFn& progress = {});

// Mean KL and the rest over one given text, continuing caches that hold the same tokens: `test` and `reference` are fed
// `tokens` one at a time. Both end longer by tokens.size().
Result<DivergenceSummary> CompareContinuation(Executor& executor, model::Model& model, kvcache::KvCache& reference,
                                              kvcache::KvCache& test, std::span<const int32_t> tokens);

}  // namespace croquis::eval
