// Prefill attention measured: time and error of dense methods against exact attention, over lengths.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/eval/attention_data.h"
#include "croquis/eval/compare.h"

namespace croquis::eval {

struct PrefillBenchOptions {
  std::vector<int64_t> lengths = {1024, 2048, 4096, 8192, 16384};  // queries and keys
  std::vector<std::string> methods;                                // exact is put in front, at the precision below
  int64_t heads = 4, kv_heads = 4, head_dim = 64;
  bool causal = true;
  simd::RowType precision = simd::RowType::kF32;  // f32 or bf16: of the tensors, and of products unless a method says
  int64_t repeats = 3;                            // rounds; every method is visited once a round, in turn
  int64_t error_rows = 64;  // rows of each head whose error is measured, in runs of 8 spread over the length
  AttentionData data = AttentionData::kGaussian;
  uint64_t seed = 1;
};

// One method at one length.
struct PrefillRow {
  std::string method;
  int64_t n = 0;
  double ms = 0, ms_best = 0;                // median and least over the rounds
  double speedup = 0;                        // exact's time over its own in the same round: median over rounds,
  double speedup_low = 0, speedup_high = 0;  // least and most
  double pairs_share = 0;                    // of the pairs that exact attention evaluates
  double est_error = 0;                      // the method's own estimate; -1: none
  double fallback_share = 0;                 // of rows that were computed exactly after their certificate failed
  // Over the sampled rows: |o - o'| / (|o'| + 1e-3 max |v|) and |lse - lse'|, o' in double.
  double error_mean = 0, error_p90 = 0, error_max = 0, lse_error = 0;
  int64_t error_rows = 0;
  std::string kernel;
  std::string refused;  // why the method did not run; all figures are 0 then
};

struct PrefillCurve {
  std::string method;
  // The shortest length where the method is faster than exact, interpolated between measured lengths in logarithms;
  // nothing where it is at none of them. at_first: faster at the shortest already, so n* is at most that.
  std::optional<double> crossover;
  bool at_first = false;
  std::optional<double> exponent;  // slope of log(time) over log(n), least squares
};

struct PrefillBench {
  std::vector<PrefillRow> rows;  // length after length, exact first
  std::vector<PrefillCurve> curves;
};

// Methods of the registry that approximate softmax attention and take the mask, at their defaults.
std::vector<std::string> DefaultPrefillMethods(bool causal);

// The first visit of each method at a length is not timed (it warms up, and its answer is checked), except at lengths
// where exact attention takes more than ten seconds, where it is the first round. Errors: options out of range, more
// memory than there is, methods that do not exist; a method that refuses a problem is a row that says so.
Result<PrefillBench> BenchPrefill(Executor& executor, const PrefillBenchOptions& options,
                                  const ProgressFn& progress = {});

// n* and the exponent of a method from its measured lengths (increasing) and figures there.
PrefillCurve CurveOf(std::string method, std::span<const double> lengths, std::span<const double> ms,
                     std::span<const double> speedups);

}  // namespace croquis::eval
