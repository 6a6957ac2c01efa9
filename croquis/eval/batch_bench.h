// Decoding many sequences with a common beginning: what sharing it saves, in attention alone and in whole steps.
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

struct BatchBenchOptions {
  int64_t sequences = 32;
  int64_t prefix = 4096;                             // tokens that all sequences share
  int64_t own = 64;                                  // tokens of each sequence behind them
  int64_t heads = 32, kv_heads = 8, head_dim = 128;  // of attention alone; a model brings its own
  int64_t reps = 9;                                  // rounds; the ways take turns within each
  int64_t sinks = 4, ring = 128;
  std::vector<kvcache::KvPolicy> caches;
  uint64_t seed = 1;
};

// One cache. Three ways of decoding one token of every sequence, each in turn in every round:
//   shared   the sequences are branches of one cache, read by AttendBatch: shared pages once for all
//   alone    every sequence has a cache of its own, read by AttendAndAppend, one after the other: nothing is shared
//   branches the branches, read one after the other: their pages are shared in memory, not their reading
struct BatchRow {
  std::string kv;
  double shared_ms = 0, alone_ms = 0, branches_ms = 0;  // medians, all sequences together
  double speedup = 0;                                   // alone over shared: median over rounds
  double speedup_to_branches = 0;
  double error = 0;                           // largest |o - o'| / |o'| over sequences, o' = the unshared answer
  int64_t shared_bytes = 0, alone_bytes = 0;  // of all caches together, as allocated
  bool fast = true;
  std::string kernel;
};

// Attention of one layer, over Gaussian keys and values. Errors: options out of range, more memory than there is.
Result<std::vector<BatchRow>> BenchBatchAttention(Executor& executor, const BatchBenchOptions& options,
                                                  const ProgressFn& progress = {});

}  // namespace croquis::eval
