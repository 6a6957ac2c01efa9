// --prefill, as run and eval take it: which method computes attention while a prompt is read.
#pragma once

#include <string>
#include <vector>

#include "apps/cli.h"
#include "croquis/attention/prefill.h"

namespace croquis::apps {

struct PrefillOptions {
  std::vector<std::string> methods;
  std::vector<std::string> layers;  // --prefill-layers
  uint64_t seed = 0;
};

// `command` may take several methods (eval) or one (run).
void AddPrefillOptions(CLI::App& command, PrefillOptions& options, bool several);
// Each --prefill with the same --prefill-layers.
Result<std::vector<attention::PrefillPolicy>> ParsePrefills(const PrefillOptions& options);

// Why run, not told how, reads a prompt in chunks through the cache; empty: it is read whole by exact attention.
struct ReadingFacts {
  const kvcache::KvPolicy* kv;
  bool restored = false;             // the prompt continues a cache
  int64_t tokens = 0, chunk = 0;     // of the prompt; that are read at a time
  int64_t bytes = 0, available = 0;  // of memory that reading whole takes (Model::PrefillBytes); that there is
};
std::string WhyChunks(const ReadingFacts& facts);

// The columns of a prefill that tables and --json share: pairs, pairs_exact, pairs_share, est_error, fallback_share,
// heads, prefill_kernel.
void AddPrefillColumns(const attention::PrefillReport& report, Json& row);
// "31.2 % of the pairs, estimated error .021; heads: exact 12, hyper 20; 3.1 % of rows computed again exactly".
std::string DescribePrefill(const attention::PrefillReport& report);

// croquis eval --prefill: its table, once options were read.
struct PrefillEvalOptions {
  Common common;
  ModelOptions model;
  PrefillOptions prefill;
  std::string text;
  int64_t ctx = 0, windows = 8;
};
Status EvalPrefill(const PrefillEvalOptions& options);

}  // namespace croquis::apps
