// Decode attention measured: time, bytes and error of one token attending to n cached ones, for several caches in one
// run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/eval/compare.h"
#include "croquis/kvcache/cache.h"

namespace croquis::eval {

struct AttentionBenchOptions {
  int64_t n = 32768;  // cached tokens
  int64_t heads = 32, kv_heads = 8, head_dim = 128;
  int64_t layers = 0;      // 0: so many that f16 exceeds twice the last cache and 600 MB, memory permitting
  int64_t last_cache = 0;  // bytes; for layers = 0
  int64_t reps = 15;       // rounds; every cache is visited once a round, in turn
  int64_t sinks = 4, ring = 128;
  double logit_std = 2.5;                 // queries are scaled so that logits have this standard deviation
  std::vector<kvcache::KvPolicy> caches;  // f16 is added in front when it is not there
  int64_t center_pairs = 16;  // frequency pairs that hold the common part of the biased keys; 0: no such rows
  double center_norm = 8;     // its norm over the mean norm of the rest
  std::string center_method = "eden:bits=4";
  uint64_t seed = 1;
};

// One cache. Times are of one attention call (one layer, one token), which appends its own key and value.
struct AttentionRow {
  std::string kv;
  std::string keys;            // "gaussian", or "biased, 16 pairs"
  std::string kernel;          // what computes, by the cache's report
  bool fast = true;            // false: a generic path is used
  double ms = 0, ms_best = 0;  // median and least over the rounds
  int64_t bytes = 0;           // of a layer, as allocated: what a call reads
  double gb_per_s = 0;         // bytes over the median time, 1e9
  double share_of_read = 0;    // gb_per_s over the read speed measured in the same rounds
  double ratio_to_f16 = 0;     // how many times faster than f16: median over rounds of f16's time over its own
  double rel_error = 0;        // |o - o'| / |o'|, o' = attention in f64 over the values as decoded from the cache
  double total_error = 0;      // the same against the keys and values before they were encoded
  double bits_per_number = 0, bits_total = 0;  // stored in pages; with sinks, ring and tables
  double center_cost = 0;      // center=rope rows: its time over center=none's, median over rounds; else 0
  int64_t centered_pairs = 0;  // summed over heads and layers
};

// What set the number of layers.
enum class LayerLimit : uint8_t {
  kNone,    // as many as wanted
  kAsked,   // the caller's number
  kMemory,  // more do not fit
  kMost     // kMostLayers: at small n more layers are many small calls, not a longer read
};
inline constexpr int64_t kMostLayers = 64;

struct AttentionBench {
  std::vector<AttentionRow> rows;  // f16 first
  int64_t layers = 0;
  LayerLimit limit = LayerLimit::kNone;
  int64_t f16_bytes = 0;      // what f16 reads in a round: all layers
  double read_gb_per_s = 0;   // best over the rounds of a plain streaming read with the same threads
  bool beyond_caches = true;  // false: f16_bytes are not much more than the last cache, see `limit`
};

// Fills the caches with Gaussian keys and values (every layer its own; the numbers depend on the seed alone), then
// measures. Errors: options out of range, more memory than there is, those of the caches.
Result<AttentionBench> BenchAttention(Executor& executor, const AttentionBenchOptions& options,
                                      const ProgressFn& progress = {});

// Encoding: nanoseconds per vector on one thread.
struct EncodeRow {
  std::string codec, role, kernel;
  double ns = 0, ns_best = 0;                // median and least over the rounds
  double bits_per_number = 0, gb_per_s = 0;  // of f32 input, median
};
Result<std::vector<EncodeRow>> BenchEncode(const std::vector<std::string>& codecs, int64_t head_dim, int64_t reps,
                                           uint64_t seed = 1, const ProgressFn& progress = {});

// `count` Gaussian numbers that are a function of (seed, stream, index): 65,536 equiprobable values, eight a Philox
// block.
void FillGaussian(uint64_t seed, uint64_t stream, uint64_t index, int64_t count, float* out);

}  // namespace croquis::eval
