#include <algorithm>
#include <mutex>
#include <set>

#include "croquis/base/memory.h"
#include "croquis/model/config.h"
#include "croquis/model/transformer.h"

namespace croquis::model {
namespace {

using linalg::PackedLinear;
using linalg::WeightType;

constexpr int64_t kBlockRows = 64;  // rows unpacked at a time

// Collects what is to be packed first, so that missing tensors and memory are known before anything is taken.
class Packer {
 public:
  Packer(const WeightSet& set, WeightType type) : set_(set), type_(type) {}

  // Tensors [rows_i, in] one after another as rows of `to`; biases where the files have them or `bias` demands them.
  void Linear(PackedLinear* to, int64_t in, const std::vector<std::pair<std::string, int64_t>>& parts, bool bias) {
    int64_t out = 0;
    for (const auto& [name, rows] : parts) {
      if (const auto* t = Get(name + ".weight", {rows, in})) jobs_.push_back({plans_.size(), out, t});
      if (bias || set_.Find(name + ".bias") != nullptr)
        if (const auto* b = Get(name + ".bias", {rows})) biases_.push_back({plans_.size(), out, b});
      out += rows;
    }
    plans_.push_back({to, out, in});
    const int64_t bytes = PackedLinear::Bytes(out, in, type_);
    if (bytes < 0 || __builtin_add_overflow(total_, bytes, &total_))
      Fail(NoMemory("the weights do not fit a 64-bit address space"));
    widest_ = std::max(widest_, in);
  }
  void Vector(std::vector<float>* to, const std::string& name, int64_t size) {
    used_.insert(name);
    auto v = set_.Vector(name, size);
    if (!v) return Fail(v.error());
    *to = *std::move(v);
  }
  const WeightTensor* Get(const std::string& name, const std::vector<int64_t>& shape) {
    used_.insert(name);
    auto t = set_.Get(name, shape);
    if (t) return *t;
    Fail(t.error());
    return nullptr;
  }
  void Ignore(const std::string& name) { used_.insert(name); }

  Status CheckAllUsed() const {
    std::vector<std::string> unused;
    for (const auto& [name, tensor] : set_.tensors())
      // Old Llama folders carry the rotary frequencies, which the configuration also gives.
      if (!used_.contains(name) && !name.ends_with(".rotary_emb.inv_freq")) unused.push_back(tensor.file_name);
    if (unused.empty()) return {};
    return Unsupported("the files hold " + std::to_string(unused.size()) +
                       " tensors that this architecture and configuration do not use, " + unused.front() +
                       " among them; running without them would not be the same model");
  }

  Status Run(Executor& executor, const std::string& what) {
    CROQUIS_CHECK_OK(status());
    CROQUIS_CHECK_OK(CheckAllUsed());
    CROQUIS_CHECK_OK(CheckMemory(total_, "the weights of " + what));
    for (const auto& p : plans_) *p.to = PackedLinear(p.out, p.in, type_);
    struct Block {
      const Job* job;
      int64_t row;
    };
    std::vector<Block> blocks;
    for (const Job& job : jobs_)
      for (int64_t r = 0; r < job.from->shape[0]; r += kBlockRows) blocks.push_back({&job, r});
    std::vector<Matrix<float>> rows;
    rows.reserve(size_t(executor.threads()));
    for (int w = 0; w < executor.threads(); ++w) rows.emplace_back(kBlockRows, widest_);
    std::mutex mutex;
    executor.ParallelFor(int64_t(blocks.size()), [&](int64_t i, int worker) {
      const auto [job, row] = blocks[size_t(i)];
      const int64_t n = std::min(kBlockRows, job->from->shape[0] - row), in = job->from->shape[1];
      float* buffer = rows[size_t(worker)].data();
      if (Status s = job->from->ReadRows(row, n, buffer); !s) {
        const std::lock_guard lock(mutex);
        return Fail(s.error());
      }
      plans_[job->plan].to->SetRows(job->row + row, {buffer, n, in});
    });
    for (const Job& b : biases_) {
      std::vector<float> values(size_t(b.from->shape[0]));
      CROQUIS_CHECK_OK(codecs::Dequantize(b.from->type, b.from->bytes.data(), b.from->shape[0], values.data()));
      plans_[b.plan].to->SetBias(b.row, values);
    }
    return status();
  }
  Status status() const { return error_ ? Status(*error_) : Status(); }

 private:
  struct Plan {
    PackedLinear* to;
    int64_t out, in;
  };
  struct Job {
    size_t plan;
    int64_t row;
    const WeightTensor* from;
  };
  void Fail(Error error) {
    if (!error_) error_ = std::move(error);
  }

  const WeightSet& set_;
  WeightType type_;
  std::vector<Plan> plans_;
  std::vector<Job> jobs_, biases_;
  std::set<std::string> used_;
  std::optional<Error> error_;
  int64_t total_ = 0, widest_ = 0;
};

Result<WeightType> ChooseType(const WeightSet& set, LoadOptions::Dtype dtype) {
  if (dtype == LoadOptions::Dtype::kF32) return WeightType::kF32;
  if (dtype == LoadOptions::Dtype::kBf16) {
    if (linalg::HasFastBf16()) return WeightType::kBf16;
    return Unsupported("this machine has no bf16 instructions (AVX-512 BF16 or AMX); load with f32");
  }
  const WeightTensor* first = set.Find("model.layers.0.self_attn.q_proj.weight");
  const bool stored_f32 = first != nullptr && first->readable && first->type == codecs::GgmlType::kF32;
  return linalg::HasFastBf16() && !stored_f32 ? WeightType::kBf16 : WeightType::kF32;
}

}  // namespace

int64_t TransformerWeights::Bytes() const {
  int64_t bytes = head.bytes() + int64_t(final_norm.size() * sizeof(float));
  for (const Layer& l : layers) {
    bytes += l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
    bytes += int64_t((l.attn_norm.size() + l.mlp_norm.size() + l.q_norm.size() + l.k_norm.size()) * sizeof(float));
  }
  return bytes;
}

Result<TransformerWeights> LoadTransformer(const WeightSet& set, const ModelConfig& c, Executor& executor,
                                           LoadOptions::Dtype dtype) {
  TransformerWeights w;
  CROQUIS_TRY(w.type, ChooseType(set, dtype));
  Packer packer(set, w.type);
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  if (const auto* t = packer.Get("model.embed_tokens.weight", {c.vocab, c.hidden})) w.embedding = *t;
  w.layers.resize(size_t(c.layers));
  for (size_t i = 0; i < w.layers.size() && packer.status(); ++i) {
    auto& l = w.layers[i];
    const std::string layer = "model.layers." + std::to_string(i) + ".", attn = layer + "self_attn.",
                      mlp = layer + "mlp.";
    packer.Vector(&l.attn_norm, layer + "input_layernorm.weight", c.hidden);
    packer.Vector(&l.mlp_norm, layer + "post_attention_layernorm.weight", c.hidden);
    if (c.qk_norm) {
      packer.Vector(&l.q_norm, attn + "q_norm.weight", c.head_dim);
      packer.Vector(&l.k_norm, attn + "k_norm.weight", c.head_dim);
    }
    packer.Linear(&l.qkv, c.hidden, {{attn + "q_proj", q}, {attn + "k_proj", kv}, {attn + "v_proj", kv}}, c.qkv_bias);
    packer.Linear(&l.o, q, {{attn + "o_proj", c.hidden}}, c.o_bias);
    packer.Linear(&l.gate_up, c.hidden, {{mlp + "gate_proj", c.intermediate}, {mlp + "up_proj", c.intermediate}},
                  c.mlp_bias);
    packer.Linear(&l.down, c.intermediate, {{mlp + "down_proj", c.hidden}}, c.mlp_bias);
  }
  packer.Vector(&w.final_norm, "model.norm.weight", c.hidden);
  const std::string head = c.tied_embeddings ? "model.embed_tokens" : "lm_head";
  packer.Linear(&w.head, c.hidden, {{head, c.vocab}}, false);
  if (c.tied_embeddings) packer.Ignore("lm_head.weight");  // some folders store the copy too

  std::vector<float> factors;
  if (set.Find("rope_freqs.weight") != nullptr) packer.Vector(&factors, "rope_freqs.weight", c.head_dim / 2);
  if (std::any_of(factors.begin(), factors.end(), [](float f) { return !(f > 0); }))
    return Corrupt("the tensor rope_freqs.weight has divisors that are not positive");
  w.inv_freq = RopeFrequencies(c, factors);
  CROQUIS_CHECK_OK(packer.Run(executor, c.name));
  return w;
}

}  // namespace croquis::model
