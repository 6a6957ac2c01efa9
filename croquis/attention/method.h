// Methods of dense attention: exact, quantised, sub-quadratic, and those with another score function. One interface,
// one registry; a method is a folder.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/spec.h"
#include "croquis/simd/tile_kernels.h"

namespace croquis::attention {

// What a run did and how wrong it may be.
struct RunReport {
  double pairs = 0;        // (query, key) pairs evaluated, over all heads; virtual keys and features count as pairs
  double exact_pairs = 0;  // what exact attention evaluates; third-order attention counts triples in both
  // Estimate of the mean over rows of |o~ - o| / (|o| + 1e-3 max_j |v_j|); 0 for exact methods, -1 where the method has
  // no estimate.
  double est_error = 0;
  double lse_std = 0;               // estimated standard deviation of the log-sum-exp, mean over rows; -1: no estimate
  int64_t rows = 0;                 // over all heads
  int64_t fallback_rows = 0;        // rows whose certificate failed and that were computed exactly
  std::string kernel;               // "amx-bf16", "avx512": what evaluated the pairs
  std::vector<std::string> chosen;  // by a chooser: the method of each head; empty otherwise
};

class Method {
 public:
  virtual ~Method() = default;
  // Shapes, finite numbers and masks were checked (see attention::Run below), nq and nk are positive. Results do not
  // depend on the number of threads. Errors: what the method refuses, not enough memory.
  virtual Status Run(Executor& executor, const Problem& problem, const Output& output, RunReport* report) const = 0;
  // What the method approximates, evaluated the plain way: softmax attention unless the method has another score
  // function. Slow; for checks.
  virtual Status RunReference(Executor& executor, const Problem& problem, const Output& output) const;
  // Whether it attends to more than the problem's keys (a prefix read from a file): a row that sees no key has an
  // answer then, and there may be no keys at all.
  virtual bool HasOwnKeys() const { return false; }
};

struct MethodInfo {
  std::string_view name;
  std::string_view summary;  // one line for listings
  std::string_view paper;    // source, e.g. "arXiv 2310.05869"
  std::span<const ParamInfo> params;
  bool exact = false;   // the answer differs by rounding alone
  bool softmax = true;  // approximates softmax attention; otherwise its own score function
  bool causal = true;   // takes a causal mask
  bool window = false;  // takes a sliding window
  bool second = false;  // takes second keys and values (Problem::k2, v2)
  // Whether, under a causal mask, changing a token changes no earlier row (a method may let later tokens choose which
  // keys an earlier row looks at, never what it reads from later tokens).
  bool (*strict_causal)(const Spec& spec) = nullptr;  // null: no
  // Makes it from a completed spec. Errors: parameters that do not go together.
  Result<std::unique_ptr<const Method>> (*make)(const Spec& spec, uint64_t seed) = nullptr;
};

// All methods, in the order of the registry (METHODS in CMakeLists.txt).
std::span<const MethodInfo* const> Methods();
// The method of that name, or an error that lists those there are.
Result<const MethodInfo*> FindMethod(std::string_view name);
// "hyper:block=128" with defaults filled in, checked.
Result<Spec> ResolveSpec(std::string_view text);
Result<std::unique_ptr<const Method>> Make(std::string_view text, uint64_t seed = 0);

// Runs a method on a problem after checking it: shapes that do not fit together, sizes out of range (dims 1 to 1024),
// NaN or infinity (kNumeric, with head, row and column), masks the method does not take. Empty inputs are fine: no
// query gives nothing, no key zeros.
Status Run(Executor& executor, const MethodInfo& info, const Method& method, const Problem& problem,
           const Output& output, RunReport* report = nullptr);

// Shared by methods that evaluate pairs: which type tiles have.
inline constexpr ParamInfo kPrecisionParam = {
    "precision",
    "auto",
    0,
    0,
    "auto|f32|bf16",
    "what products are computed in; auto: bf16 for bf16 tensors where the machine has instructions for it"};
simd::TileType TileTypeOf(const Spec& spec, const Problem& problem);

}  // namespace croquis::attention
