#include "croquis/model/llama2c.h"

#include <array>
#include <cstdlib>
#include <cstring>

#include "croquis/base/memory.h"

namespace croquis::model {
namespace {

struct Field {
  const char* name;
  int32_t least, most;
};
constexpr std::array<Field, 7> kFields = {{{"dim", 8, 1 << 16},
                                           {"hidden_dim", 1, 1 << 18},
                                           {"n_layers", 1, 1 << 10},
                                           {"n_heads", 1, 1 << 10},
                                           {"n_kv_heads", 1, 1 << 10},
                                           {"vocab_size", 1, 1 << 22},
                                           {"seq_len", 1, 1 << 24}}};

// Hands out consecutive f32 tensors; counts in 64 bits, so sizes from checked fields cannot overflow (all below 2^60).
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> file, size_t at) : file_(file), at_(uint64_t(at)) {}
  uint64_t at() const { return at_; }
  bool ok() const { return at_ <= file_.size(); }
  std::span<const std::byte> Take(int64_t numbers) {
    const uint64_t bytes = uint64_t(numbers) * 4, from = at_;
    at_ += bytes;
    return ok() ? file_.subspan(size_t(from), size_t(bytes)) : std::span<const std::byte>{};
  }

 private:
  std::span<const std::byte> file_;
  uint64_t at_;
};

}  // namespace

Result<Llama2cFile> ParseLlama2c(std::span<const std::byte> file) {
  std::array<int32_t, 7> h;
  if (file.size() < sizeof h) return Corrupt("not a llama2.c checkpoint: " + std::to_string(file.size()) + " bytes");
  std::memcpy(h.data(), file.data(), sizeof h);
  if (h[0] == 0x616b3432)
    return Unsupported("this llama2.c checkpoint has version " + std::to_string(h[1]) +
                       "; the original format (export.py --version 0) is read");
  const bool tied = h[5] > 0;
  if (h[5] < 0 && h[5] != INT32_MIN) h[5] = -h[5];  // a negative vocabulary says that the output has weights of its own
  for (size_t i = 0; i < h.size(); ++i)
    if (h[i] < kFields[i].least || h[i] > kFields[i].most)
      return Corrupt(std::string("not a llama2.c checkpoint: ") + kFields[i].name + " is " + std::to_string(h[i]) +
                     ", wanted " + std::to_string(kFields[i].least) + " to " + std::to_string(kFields[i].most));
  Llama2cFile out;
  ModelConfig& c = out.config;
  c.hidden = h[0], c.intermediate = h[1], c.layers = h[2], c.heads = h[3], c.kv_heads = h[4], c.vocab = h[5];
  c.max_position = h[6];
  c.tied_embeddings = tied;
  c.rope_interleaved = true;
  if (c.hidden % c.heads != 0 || c.heads % c.kv_heads != 0 || c.hidden / c.heads % 2 != 0)
    return Corrupt("not a llama2.c checkpoint: dim " + std::to_string(c.hidden) + ", n_heads " +
                   std::to_string(c.heads) + " and n_kv_heads " + std::to_string(c.kv_heads) + " do not divide");
  c.head_dim = c.hidden / c.heads;

  Cursor in(file, sizeof h);
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    int64_t numbers = 1;
    for (const int64_t n : shape) numbers *= n;
    out.tensors.push_back({std::move(name), std::move(shape), in.Take(numbers)});
  };
  const auto each = [&](const char* name, const std::vector<int64_t>& shape) {
    for (int64_t l = 0; l < c.layers && in.ok(); ++l)
      add("model.layers." + std::to_string(l) + "." + name + ".weight", shape);
  };
  const int64_t kv = c.kv_heads * c.head_dim;
  add("model.embed_tokens.weight", {c.vocab, c.hidden});
  each("input_layernorm", {c.hidden});
  each("self_attn.q_proj", {c.hidden, c.hidden});
  each("self_attn.k_proj", {kv, c.hidden});
  each("self_attn.v_proj", {kv, c.hidden});
  each("self_attn.o_proj", {c.hidden, c.hidden});
  each("post_attention_layernorm", {c.hidden});
  each("mlp.gate_proj", {c.intermediate, c.hidden});
  each("mlp.down_proj", {c.hidden, c.intermediate});
  each("mlp.up_proj", {c.intermediate, c.hidden});
  add("model.norm.weight", {c.hidden});
  in.Take(c.max_position * c.head_dim);  // tables of cosines and sines, which are computed here
  if (!tied) add("lm_head.weight", {c.vocab, c.hidden});
  if (!in.ok() || in.at() != file.size())
    return Corrupt("not a llama2.c checkpoint, or damaged: its header asks for " +
                   std::string(in.ok() ? "" : "at least ") + std::to_string(in.at()) + " bytes, the file has " +
                   std::to_string(file.size()));
  return out;
}

}  // namespace croquis::model
