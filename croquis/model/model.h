// A decoder-only transformer read from disk, run in chunks over a KV cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "croquis/attention/prefill.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/tokenizer.h"

namespace croquis::model {

enum class Arch : uint8_t { kLlama, kMistral, kQwen2, kQwen3 };

struct RopeScaling {  // "llama3" scaling of Llama 3.1 and later; "linear" position scaling; none
  enum class Type : uint8_t { kNone, kLinear, kLlama3 } type = Type::kNone;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;
  int64_t original_max_position = 8192;
};

struct ModelConfig {
  Arch arch = Arch::kLlama;
  std::string name;  // folder or file name
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocab = 0;
  int64_t max_position = 0;
  int64_t sliding_window = 0;          // 0: none
  std::vector<int64_t> layer_windows;  // window of each layer where layers differ (Qwen); empty: sliding_window for all
  double rms_eps = 1e-5, rope_theta = 10000;
  RopeScaling rope_scaling;
  bool rope_interleaved = false;  // pairs (2i, 2i+1): llama2.c and GGUF's "llama" permutation
  // Biases that the files must have; further ones that are there are used too.
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false, tied_embeddings = false;

  int64_t Window(int64_t layer) const { return layer_windows.empty() ? sliding_window : layer_windows[size_t(layer)]; }
};

struct LoadOptions {
  enum class Dtype : uint8_t {
    kAuto,
    kF32,
    kBf16
  } dtype = Dtype::kAuto;  // of matrix products; auto: bf16 where the machine
                           // has it, but f32 for files that hold f32
  std::string tokenizer;   // path of a tokenizer when the model does not carry one (llama2.c's tok512.bin)
};

class Model {
 public:
  // A Hugging Face folder, a .gguf file, or llama2.c's .bin. Errors name the file, what was wanted and what was got.
  static Result<std::unique_ptr<Model>> Load(const std::string& path, Executor& executor,
                                             const LoadOptions& options = {});
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  // Null when the model carries no tokenizer and none was given.
  virtual const Tokenizer* tokenizer() const = 0;
  // What computes: "bf16 (oneDNN, AMX)" or "f32 (oneDNN)".
  virtual std::string_view Compute() const = 0;
  virtual int64_t WeightBytes() const = 0;

  // layers, heads, head_dim, RoPE and model id filled in; capacity and policy are the caller's.
  virtual kvcache::CacheConfig CacheTemplate() const = 0;

  // Runs `tokens` at positions cache.length() .. and commits them. logits: [n, vocab] for the last n = logits.rows
  // positions (0 rows: none wanted). Long inputs are cut into chunks of `chunk` tokens. `progress` (may be null) is
  // called with the tokens done after each chunk; returning false stops with an error. Errors: token ids outside the
  // vocabulary, capacity, NaN or infinite activations (named with layer and position). On error the cache is as before
  // the failing chunk.
  using Progress = bool (*)(void* context, int64_t done, int64_t total);
  virtual Status Forward(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                         MatView<float> logits, int64_t chunk = 256, Progress progress = nullptr,
                         void* context = nullptr) = 0;
  // One token for each of several sequences: tokens[b] at position caches[b]->length(), committed. logits: [B, vocab].
  // The matrix products run over all rows together; attention reads pages that the caches share once (KvCache::Branch;
  // see attention/hydragen). What a sequence gets is what Forward gives it alone but for the order of sums. Errors: as
  // Forward, and a cache that comes twice. On error the caches are as before.
  virtual Status ForwardBatch(Executor& executor, std::span<const int32_t> tokens,
                              std::span<kvcache::KvCache* const> caches, MatView<float> logits) = 0;
  // Reads a prompt whole into an empty cache, attention computed by `method` (made for this model: see MakePrefill) on
  // exact keys and values, and appends them to the cache. All tokens' activations are in memory; matrix products run
  // over `chunk` tokens. logits, progress (called after each layer, in tokens' worth of work) and errors as Forward.
  virtual Status Prefill(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                         attention::Prefill& method, MatView<float> logits, int64_t chunk = 256,
                         Progress progress = nullptr, void* context = nullptr) = 0;
  // Memory that Prefill of so many tokens takes beside the cache, given back when it is done: all activations, and the
  // packed keys and values of a layer.
  virtual int64_t PrefillBytes(int64_t tokens, int64_t chunk = 256) const = 0;
  // A policy made ready for Prefill on this model.
  virtual Result<std::unique_ptr<attention::Prefill>> MakePrefill(const attention::PrefillPolicy& policy,
                                                                  uint64_t seed = 0) const = 0;
};

}  // namespace croquis::model
