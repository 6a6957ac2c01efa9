// Attention while a whole prompt is read: which method computes it, by layer and head, and what came of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "croquis/attention/method.h"
#include "croquis/base/layer_heads.h"

namespace croquis::attention {

struct PrefillPolicy {
  std::string base = "exact";  // a method string
  struct Override {
    LayerHeads at;  // layers and query heads
    std::string method;
  };
  std::vector<Override> overrides;  // later ones win
  std::string text = "exact";       // as the user wrote it; the `prefill` column of tables

  const std::string& At(int64_t layer, int64_t head) const;
};

// "auto:eps=0.05"; `layers` entries: "0-1=exact", "3/0-2=hyper:samples=64". Errors: unknown methods and parameters,
// methods that do not approximate softmax or take no causal mask.
Result<PrefillPolicy> ParsePrefillPolicy(std::string_view method, std::span<const std::string> layers = {});

// What a prefill did, summed over all layers and heads since Make.
struct PrefillReport {
  double pairs = 0, exact_pairs = 0;
  double est_error = -1;  // mean over rows, of those with an estimate; -1: none has one
  int64_t rows = 0, fallback_rows = 0;
  std::map<std::string, int64_t> heads;  // method -> how often a head was computed by it
  bool windowed = false;  // layers with a sliding window, which not all methods take: those heads count as exact
  std::string kernel;
};

// One attention call of a prefill: T tokens from position 0 on, of one layer.
struct PrefillCall {
  int64_t layer = 0, window = 0;  // window 0: none
  float scale = 1;
  MatView<const float> q, k, v;  // [T, heads * head_dim], [T, kv_heads * head_dim] twice, after RoPE
  MatView<float> out;            // as q
};

// A policy made ready for a model.
class Prefill {
 public:
  // bf16: products in bf16 where a method leaves its precision to `auto`. Errors: overrides beyond the model.
  static Result<std::unique_ptr<Prefill>> Make(const PrefillPolicy& policy, int64_t layers, int64_t heads,
                                               int64_t kv_heads, bool bf16, uint64_t seed = 0);

  // Causal attention of the call's tokens to each other. Errors: those of the methods; NaN among the activations.
  Status Attend(Executor& executor, const PrefillCall& call);
  const PrefillReport& report() const { return report_; }

 private:
  struct Entry {
    const MethodInfo* info;
    std::unique_ptr<const Method> method;
  };
  Prefill() = default;
  Status Run(Executor& executor, const Entry& entry, const Problem& problem, const Output& output);
  Result<const Entry*> Find(const std::string& text, bool window);
  Result<Entry> Resolve(const std::string& text, bool window) const;

  PrefillPolicy policy_;
  int64_t heads_ = 0, kv_heads_ = 0;
  bool bf16_ = false;
  uint64_t seed_ = 0;
  std::map<std::pair<std::string, bool>, Entry> methods_;  // by text as the user wrote it, and window
  PrefillReport report_;
  double estimated_rows_ = 0;
};

}  // namespace croquis::attention
