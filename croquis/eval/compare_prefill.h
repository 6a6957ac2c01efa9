// Quality of approximate prefill: next-token distributions against those of exact attention, over windows of text that
// are each read whole.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/prefill.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/eval/compare.h"
#include "croquis/eval/metrics.h"
#include "croquis/model/model.h"

namespace croquis::eval {

struct PrefillCompareOptions {
  std::vector<attention::PrefillPolicy> methods;
  int64_t ctx = 1024;   // tokens of a window, the BOS token included
  int64_t windows = 8;  // 0: all
  uint64_t seed = 0;    // of the methods
};

struct PrefillScore {
  DivergenceSummary divergence;  // positions after the first of each window
  attention::PrefillReport report;
  double seconds = 0;
};

struct PrefillCompareResult {
  std::vector<PrefillScore> methods;  // in the order of the options
  PrefillScore reference;             // exact attention; its kl_* compare it with itself: 0
  int64_t windows = 0, windows_available = 0;
};

// text: tokens without special ones; every window starts with the tokenizer's BOS when it has one. Logits of two whole
// windows are in memory at a time. Errors: options out of range, text shorter than a window, those of the model and
// the methods.
Result<PrefillCompareResult> ComparePrefill(Executor& executor, model::Model& model, std::span<const int32_t> text,
                                            const PrefillCompareOptions& options, const ProgressFn& progress = {});

}  // namespace croquis::eval
