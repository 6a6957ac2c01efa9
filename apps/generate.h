// Generation as `run` and `demo` use it: prefill, sample, stream.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "apps/output.h"
#include "croquis/base/executor.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"
#include "croquis/model/sampler.h"

namespace croquis::apps {

struct GenerateOptions {
  int64_t max_tokens = 128, chunk = 256;
  model::SamplerOptions sampler;
  bool ignore_stop = false;               // go on after a stop token
  bool penalise_prompt = true;            // the repetition penalty counts the prompt's tokens, too
  attention::Prefill* prefill = nullptr;  // reads the prompt whole by this, into an empty cache; null: in chunks
};

struct Generated {
  std::vector<int32_t> tokens;
  std::string text;
  const char* stop = "length";  // or "stop token", "interrupted"
  double prompt_seconds = 0, decode_seconds = 0;
  int64_t decode_steps = 0;  // forward passes of one token that decode_seconds covers

  double PromptRate(int64_t prompt_tokens) const;  // tokens a second
  double DecodeRate() const;                       // NaN before the first step
};

// Feeds `prompt` and generates; `on_text` gets the text in pieces that never split a character (may be empty).
// `progress`: shown for the prompt. Errors: no prompt, the sampler's, the model's. An interrupt ends with what there
// is.
Result<Generated> Generate(Executor& executor, model::Model& model, kvcache::KvCache& cache,
                           std::span<const int32_t> prompt, const GenerateOptions& options,
                           const std::function<void(const std::string&)>& on_text, bool progress);

// The columns of a cache that tables and --json share: kv, cache_bytes, cache_bytes_f16, bits_per_number, ...
void AddCacheColumns(const kvcache::Report& report, Json& row);

}  // namespace croquis::apps
