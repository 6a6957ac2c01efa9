#include "croquis/model/transformer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "croquis/attention/attention.h"
#include "croquis/attention/hydragen/attend_batch.h"
#include "croquis/attention/prefill.h"
#include "croquis/base/memory.h"
#include "croquis/model/transformer_ops.h"

namespace croquis::model {
namespace {

// FNV-1a over everything that gives cached keys and values their meaning.
class Hash {
 public:
  void Add(uint64_t v) {
    for (int i = 0; i < 8; ++i) h_ = (h_ ^ ((v >> (8 * i)) & 0xff)) * 1099511628211ull;
  }
  void Add(double v) { Add(std::bit_cast<uint64_t>(v)); }
  void Add(const std::string& s) {
    Add(uint64_t(s.size()));
    for (const char c : s) h_ = (h_ ^ uint8_t(c)) * 1099511628211ull;
  }
  uint64_t value() const { return h_; }

 private:
  uint64_t h_ = 1469598103934665603ull;
};

uint64_t ModelId(const ModelConfig& c, const TransformerWeights& w, const WeightSet& set) {
  Hash h;
  for (const int64_t v : {int64_t(c.arch), c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.intermediate, c.vocab,
                          c.sliding_window, int64_t(c.rope_interleaved)})
    h.Add(uint64_t(v));
  for (const int64_t v : c.layer_windows) h.Add(uint64_t(v));
  for (const double f : w.inv_freq) h.Add(f);
  for (const auto& [name, tensor] : set.tensors()) {
    h.Add(name);
    for (const int64_t n : tensor.shape) h.Add(uint64_t(n));
  }
  return h.value();
}

// Activations, taken once for the most tokens seen: what attention needs of `rows` tokens at a time, and the rest of
// `chunk` of them.
struct Activations {
  int64_t rows = 0, chunk = 0;
  std::vector<int64_t> position;               // [rows]
  Matrix<float> hidden, qkv, heads, cos, sin;  // [rows, ..]
  Matrix<float> x, gate_up, act;               // [chunk, ..]

  static int64_t Bytes(const ModelConfig& c, int64_t n, int64_t chunk) {
    const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    const auto whole = CheckedMul(n, (c.hidden + 2 * q + 2 * kv + c.head_dim) * 4),
               part = CheckedMul(chunk, (c.hidden + 3 * c.intermediate) * 4);
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    return whole && part && *part <= kMost - *whole ? *whole + *part : kMost;
  }
  Activations() = default;
  Activations(const ModelConfig& c, int64_t n, int64_t part)
      : rows(n),
        chunk(part),
        position(size_t(n)),
        hidden(n, c.hidden),
        qkv(n, (c.heads + 2 * c.kv_heads) * c.head_dim),
        heads(n, c.heads * c.head_dim),
        cos(n, c.head_dim / 2),
        sin(n, c.head_dim / 2),
        x(part, c.hidden),
        gate_up(part, 2 * c.intermediate),
        act(part, c.intermediate) {}
};

// Tokens [first, first + n) of the activations.
struct Rows {
  int64_t first = 0, n = 0;
};

class Transformer final : public Model {
 public:
  Transformer(ModelConfig config, TransformerWeights weights, WeightSet set, std::unique_ptr<Tokenizer> tokenizer)
      : config_(std::move(config)),
        weights_(std::move(weights)),
        set_(std::move(set)),
        tokenizer_(std::move(tokenizer)),
        multiplier_(std::max({config_.hidden, config_.heads * config_.head_dim, config_.intermediate})),
        id_(ModelId(config_, weights_, set_)) {
    const bool bf16 = weights_.type == linalg::WeightType::kBf16;
    compute_ = std::string(bf16 ? "bf16" : "f32") + " (oneDNN, " + linalg::Isa(weights_.type) + ")";
  }

  const ModelConfig& config() const override { return config_; }
  const Tokenizer* tokenizer() const override { return tokenizer_.get(); }
  std::string_view Compute() const override { return compute_; }
  int64_t WeightBytes() const override { return weights_.Bytes(); }

  kvcache::CacheConfig CacheTemplate() const override {
    kvcache::CacheConfig c;
    c.layers = config_.layers;
    c.kv_heads = config_.kv_heads;
    c.head_dim = config_.head_dim;
    c.rope.inv_freq = weights_.inv_freq;
    c.rope.interleaved = config_.rope_interleaved;
    c.model_id = id_;
    return c;
  }

  Status Forward(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache, MatView<float> logits,
                 int64_t chunk, Progress progress, void* context) override;
  Status ForwardBatch(Executor& executor, std::span<const int32_t> tokens, std::span<kvcache::KvCache* const> caches,
                      MatView<float> logits) override;
  Status Prefill(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                 attention::Prefill& method, MatView<float> logits, int64_t chunk, Progress progress,
                 void* context) override;
  int64_t PrefillBytes(int64_t tokens, int64_t chunk) const override {
    const int64_t activations = Activations::Bytes(config_, tokens, std::min(chunk, tokens));
    const auto packed = CheckedMul(tokens, config_.kv_heads * config_.head_dim * 2 * 4);  // in f32 at most
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    return packed && *packed <= kMost - activations ? activations + *packed : kMost;
  }
  Result<std::unique_ptr<attention::Prefill>> MakePrefill(const attention::PrefillPolicy& policy,
                                                          uint64_t seed) const override {
    return attention::Prefill::Make(policy, config_.layers, config_.heads, config_.kv_heads,
                                    weights_.type == linalg::WeightType::kBf16, seed);
  }

 private:
  Status Check(std::span<const int32_t> tokens, const kvcache::KvCache& cache, MatView<float> logits,
               int64_t chunk) const;
  Status TakeActivations(int64_t rows, int64_t chunk);
  Status Chunk(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache, MatView<float> logits);
  Status BatchStep(Executor& executor, std::span<const int32_t> tokens, std::span<kvcache::KvCache* const> caches,
                   MatView<float> logits);
  Status Embed(std::span<const int32_t> tokens, int64_t position);
  Status EmbedRow(int64_t row, int32_t token, int64_t position);
  Status Qkv(Executor& executor, const TransformerWeights::Layer& layer, Rows rows);
  Status OutAndMlp(Executor& executor, const TransformerWeights::Layer& layer, Rows rows);
  Status Logits(Executor& executor, int64_t n, MatView<float> logits);

  // The queries, keys and values of the first n tokens.
  MatView<float> Queries(int64_t n) { return a_.qkv.View().Rows(0, n).Cols(0, config_.heads * config_.head_dim); }
  MatView<float> Keys(int64_t n) {
    const int64_t d = config_.head_dim;
    return a_.qkv.View().Rows(0, n).Cols(config_.heads * d, config_.kv_heads * d);
  }
  MatView<float> Values(int64_t n) {
    const int64_t d = config_.head_dim;
    return a_.qkv.View().Rows(0, n).Cols((config_.heads + config_.kv_heads) * d, config_.kv_heads * d);
  }
  attention::AttendOptions LayerOptions(int64_t layer) const {
    return {.layer = layer, .scale = LogitScale(), .window = config_.Window(layer)};
  }
  float LogitScale() const { return float(1 / std::sqrt(double(config_.head_dim))); }

  // fn(row) for each row of the chunk; a single row is not worth waking anyone.
  template <class F>
  static void EachRow(Executor& executor, int64_t n, const F& fn) {
    if (n == 1) return fn(0);
    executor.ParallelFor(n, [&](int64_t r, int) { fn(r); });
  }

  ModelConfig config_;
  TransformerWeights weights_;
  WeightSet set_;
  std::unique_ptr<Tokenizer> tokenizer_;
  linalg::Multiplier multiplier_;
  Activations a_;
  uint64_t id_;
  std::string compute_;
};

Status Transformer::Check(std::span<const int32_t> tokens, const kvcache::KvCache& cache, MatView<float> logits,
                          int64_t chunk) const {
  const auto& k = cache.config();
  if (k.layers != config_.layers || k.kv_heads != config_.kv_heads || k.head_dim != config_.head_dim)
    return InvalidArgument("the cache was made for another model: it has " + std::to_string(k.layers) + " layers of " +
                           std::to_string(k.kv_heads) + " x " + std::to_string(k.head_dim) + ", the model " +
                           std::to_string(config_.layers) + " of " + std::to_string(config_.kv_heads) + " x " +
                           std::to_string(config_.head_dim));
  if (chunk < 1) return InvalidArgument("a chunk of " + std::to_string(chunk) + " tokens; wanted at least 1");
  if (logits.rows > int64_t(tokens.size()) || (logits.rows > 0 && logits.cols != config_.vocab))
    return InvalidArgument("logits of [" + std::to_string(logits.rows) + ", " + std::to_string(logits.cols) + "] for " +
                           std::to_string(tokens.size()) + " tokens and a vocabulary of " +
                           std::to_string(config_.vocab));
  if (int64_t(tokens.size()) > k.capacity - cache.length())
    return OutOfRange(std::to_string(tokens.size()) + " more tokens do not fit: the cache holds " +
                      std::to_string(cache.length()) + " of at most " + std::to_string(k.capacity) +
                      "; make it with a larger capacity");
  for (const int32_t id : tokens)
    if (id < 0 || id >= config_.vocab)
      return OutOfRange("the token id " + std::to_string(id) + " is outside the model's vocabulary of " +
                        std::to_string(config_.vocab));
  return {};
}

Status Transformer::Forward(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                            MatView<float> logits, int64_t chunk, Progress progress, void* context) {
  CROQUIS_CHECK_OK(Check(tokens, cache, logits, chunk));
  const int64_t total = int64_t(tokens.size()), first_logit = total - logits.rows;
  CROQUIS_CHECK_OK(TakeActivations(std::min(chunk, total), std::min(chunk, total)));
  for (int64_t done = 0; done < total;) {
    const int64_t n = std::min(chunk, total - done);
    const int64_t wanted = std::clamp<int64_t>(done + n - first_logit, 0, n);
    const auto out = logits.Rows(std::max<int64_t>(0, done - first_logit), wanted);
    if (Status s = Chunk(executor, tokens.subspan(size_t(done), size_t(n)), cache, out); !s) {
      cache.Rollback();
      return s;
    }
    cache.Commit(n);
    done += n;
    if (progress != nullptr && !progress(context, done, total) && done < total)
      return InvalidArgument("stopped by the caller after " + std::to_string(done) + " of " + std::to_string(total) +
                             " tokens");
  }
  return {};
}

Status Transformer::Prefill(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                            attention::Prefill& method, MatView<float> logits, int64_t chunk, Progress progress,
                            void* context) {
  CROQUIS_CHECK_OK(Check(tokens, cache, logits, chunk));
  if (cache.length() > 0)
    return InvalidArgument("a prompt is read whole into an empty cache; this one holds " +
                           std::to_string(cache.length()) + " tokens, which Forward continues");
  const int64_t total = int64_t(tokens.size());
  CROQUIS_CHECK_OK(TakeActivations(total, std::min(chunk, total)));
  CROQUIS_CHECK_OK(Embed(tokens, 0));
  const auto each_chunk = [&](auto step) -> Status {
    for (int64_t first = 0; first < total; first += chunk)
      CROQUIS_CHECK_OK(step(Rows{first, std::min(chunk, total - first)}));
    return {};
  };
  const auto layers = [&]() -> Status {
    for (int64_t l = 0; l < config_.layers; ++l) {
      const auto& w = weights_.layers[size_t(l)];
      CROQUIS_CHECK_OK(each_chunk([&](Rows rows) { return Qkv(executor, w, rows); }));
      CROQUIS_CHECK_OK(method.Attend(executor, {l, config_.Window(l), LogitScale(), Queries(total), Keys(total),
                                                Values(total), a_.heads.View().Rows(0, total)}));
      CROQUIS_CHECK_OK(cache.Append(l, Keys(total), Values(total)));
      CROQUIS_CHECK_OK(each_chunk([&](Rows rows) { return OutAndMlp(executor, w, rows); }));
      if (progress != nullptr && !progress(context, total * (l + 1) / config_.layers, total) && l + 1 < config_.layers)
        return InvalidArgument("stopped by the caller after " + std::to_string(l + 1) + " of " +
                               std::to_string(config_.layers) + " layers");
    }
    return Logits(executor, total, logits);
  };
  const Status done = layers();
  if (total > chunk) a_ = Activations();  // what comes next is a token at a time
  if (!done) {
    cache.Rollback();
    return done;
  }
  cache.Commit(total);
  return {};
}

Status Transformer::TakeActivations(int64_t rows, int64_t chunk) {
  if (rows <= a_.rows && chunk <= a_.chunk) return {};
  CROQUIS_CHECK_OK(
      CheckMemory(Activations::Bytes(config_, rows, chunk), "the activations of " + std::to_string(rows) + " tokens"));
  a_ = Activations(config_, rows, chunk);
  return {};
}

Status Transformer::Chunk(Executor& executor, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                          MatView<float> logits) {
  const int64_t n = int64_t(tokens.size());
  CROQUIS_CHECK_OK(Embed(tokens, cache.length()));
  for (int64_t l = 0; l < config_.layers; ++l) {
    const auto& w = weights_.layers[size_t(l)];
    CROQUIS_CHECK_OK(Qkv(executor, w, {0, n}));
    CROQUIS_CHECK_OK(attention::AttendAndAppend(executor, cache, LayerOptions(l), Queries(n), Keys(n), Values(n),
                                                a_.heads.View().Rows(0, n)));
    CROQUIS_CHECK_OK(OutAndMlp(executor, w, {0, n}));
  }
  return Logits(executor, n, logits);
}

Status Transformer::ForwardBatch(Executor& executor, std::span<const int32_t> tokens,
                                 std::span<kvcache::KvCache* const> caches, MatView<float> logits) {
  const auto n = int64_t(tokens.size());
  if (int64_t(caches.size()) != n || logits.rows != n)
    return InvalidArgument(std::to_string(n) + " tokens need as many caches and rows of logits, got " +
                           std::to_string(caches.size()) + " and " + std::to_string(logits.rows));
  for (int64_t b = 0; b < n; ++b)
    CROQUIS_CHECK_OK(Check(tokens.subspan(size_t(b), 1), *caches[size_t(b)], logits.Rows(b, 1), 1));
  if (n == 0) return {};
  CROQUIS_CHECK_OK(TakeActivations(n, n));
  if (Status s = BatchStep(executor, tokens, caches, logits); !s) {
    for (kvcache::KvCache* cache : caches) cache->Rollback();
    return s;
  }
  for (kvcache::KvCache* cache : caches) cache->Commit(1);
  return {};
}

Status Transformer::BatchStep(Executor& executor, std::span<const int32_t> tokens,
                              std::span<kvcache::KvCache* const> caches, MatView<float> logits) {
  const auto n = int64_t(tokens.size());
  for (int64_t b = 0; b < n; ++b) CROQUIS_CHECK_OK(EmbedRow(b, tokens[size_t(b)], caches[size_t(b)]->length()));
  for (int64_t l = 0; l < config_.layers; ++l) {
    const auto& w = weights_.layers[size_t(l)];
    CROQUIS_CHECK_OK(Qkv(executor, w, {0, n}));
    CROQUIS_CHECK_OK(attention::AttendBatch(executor, caches, LayerOptions(l), Queries(n), Keys(n), Values(n),
                                            a_.heads.View().Rows(0, n)));
    CROQUIS_CHECK_OK(OutAndMlp(executor, w, {0, n}));
  }
  return Logits(executor, n, logits);
}

Status Transformer::Embed(std::span<const int32_t> tokens, int64_t position) {
  for (size_t r = 0; r < tokens.size(); ++r) CROQUIS_CHECK_OK(EmbedRow(int64_t(r), tokens[r], position + int64_t(r)));
  return {};
}

// A row of the embedding, and the cosines and sines of its position, which all layers share.
Status Transformer::EmbedRow(int64_t row, int32_t token, int64_t position) {
  CROQUIS_CHECK_OK(weights_.embedding.ReadRows(token, 1, a_.hidden.Row(row)));
  a_.position[size_t(row)] = position;
  float *cos = a_.cos.Row(row), *sin = a_.sin.Row(row);
  for (size_t i = 0; i < weights_.inv_freq.size(); ++i) {
    const double angle = double(position) * weights_.inv_freq[i];
    cos[i] = float(std::cos(angle));
    sin[i] = float(std::sin(angle));
  }
  return {};
}

// Queries, keys and values of norm(hidden), rotated.
Status Transformer::Qkv(Executor& executor, const TransformerWeights::Layer& w, Rows rows) {
  const int64_t d = config_.head_dim, q_heads = config_.heads, n = rows.n;
  const auto hidden = a_.hidden.View().Rows(rows.first, n), x = a_.x.View().Rows(0, n),
             qkv = a_.qkv.View().Rows(rows.first, n);
  EachRow(executor, n,
          [&](int64_t r) { RmsNorm(hidden.Row(r), w.attn_norm.data(), config_.rms_eps, config_.hidden, x.Row(r)); });
  CROQUIS_CHECK_OK(multiplier_.Apply(executor, w.qkv, x, qkv));
  EachRow(executor, n, [&](int64_t r) {
    for (int64_t h = 0; h < q_heads + config_.kv_heads; ++h) {
      float* head = qkv.Row(r) + h * d;
      if (const auto& norm = h < q_heads ? w.q_norm : w.k_norm; !norm.empty())
        RmsNorm(head, norm.data(), config_.rms_eps, d, head);
      Rope(a_.cos.Row(rows.first + r), a_.sin.Row(rows.first + r), d / 2, config_.rope_interleaved, head);
    }
  });
  return {};
}

// hidden += o(heads), then hidden += down(silu(gate(x)) * up(x)), x = norm(hidden).
Status Transformer::OutAndMlp(Executor& executor, const TransformerWeights::Layer& w, Rows rows) {
  const int64_t wide = config_.intermediate, n = rows.n;
  const auto hidden = a_.hidden.View().Rows(rows.first, n), x = a_.x.View().Rows(0, n);
  CROQUIS_CHECK_OK(multiplier_.Apply(executor, w.o, a_.heads.View().Rows(rows.first, n), x));
  EachRow(executor, n, [&](int64_t r) { AddTo(x.Row(r), config_.hidden, hidden.Row(r)); });
  const auto gate_up = a_.gate_up.View().Rows(0, n), act = a_.act.View().Rows(0, n);
  EachRow(executor, n,
          [&](int64_t r) { RmsNorm(hidden.Row(r), w.mlp_norm.data(), config_.rms_eps, config_.hidden, x.Row(r)); });
  CROQUIS_CHECK_OK(multiplier_.Apply(executor, w.gate_up, x, gate_up));
  EachRow(executor, n, [&](int64_t r) { SiluMul(gate_up.Row(r), gate_up.Row(r) + wide, wide, act.Row(r)); });
  CROQUIS_CHECK_OK(multiplier_.Apply(executor, w.down, act, x));
  EachRow(executor, n, [&](int64_t r) { AddTo(x.Row(r), config_.hidden, hidden.Row(r)); });
  return {};
}

// Final norm and head of the last logits.rows of the n rows; all n are checked.
Status Transformer::Logits(Executor& executor, int64_t n, MatView<float> logits) {
  for (int64_t r = 0; r < n; ++r)
    if (!AllFinite(a_.hidden.Row(r), config_.hidden))
      return Numeric("NaN or infinity among the activations after layer " + std::to_string(config_.layers - 1) +
                     " (the last) at position " + std::to_string(a_.position[size_t(r)]) +
                     "; the weights may be damaged");
  const int64_t wanted = logits.rows, skip = n - wanted;
  if (wanted == 0) return {};
  for (int64_t first = 0; first < wanted; first += a_.chunk) {
    const int64_t rows = std::min(a_.chunk, wanted - first);
    const auto x = a_.x.View().Rows(0, rows);
    EachRow(executor, rows, [&](int64_t r) {
      RmsNorm(a_.hidden.Row(skip + first + r), weights_.final_norm.data(), config_.rms_eps, config_.hidden, x.Row(r));
    });
    CROQUIS_CHECK_OK(multiplier_.Apply(executor, weights_.head, x, logits.Rows(first, rows)));
  }
  for (int64_t r = 0; r < wanted; ++r)
    if (!AllFinite(logits.Row(r), config_.vocab))
      return Numeric("NaN or infinity among the logits at position " + std::to_string(a_.position[size_t(skip + r)]) +
                     "; the weights of the output may be damaged");
  return {};
}

}  // namespace

std::unique_ptr<Model> MakeTransformer(ModelConfig config, TransformerWeights weights, WeightSet set,
                                       std::unique_ptr<Tokenizer> tokenizer) {
  return std::make_unique<Transformer>(std::move(config), std::move(weights), std::move(set), std::move(tokenizer));
}

}  // namespace croquis::model
