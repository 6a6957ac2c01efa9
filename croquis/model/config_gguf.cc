#include <array>
#include <optional>

#include "croquis/model/config.h"

namespace croquis::model {
namespace {

// "llama" also holds Mistral models: llama.cpp's converter gives them that name.
constexpr std::array<std::pair<std::string_view, Arch>, 3> kArchs = {
    {{"llama", Arch::kLlama}, {"qwen2", Arch::kQwen2}, {"qwen3", Arch::kQwen3}}};

// Metadata under the architecture's prefix; remembers the first key that is missing.
class Keys {
 public:
  Keys(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix) + ".") {}

  int64_t Int(const char* key, std::optional<int64_t> otherwise = {}) {
    const std::string name = prefix_ + key;
    if (const auto v = file_.Int(name)) return *v;
    if (file_.Find(name) != nullptr) {
      Fail("GGUF: " + name + " is not one integer (values that differ by layer are not supported)");
    } else if (!otherwise) {
      Fail("GGUF: the metadata lacks " + name);
    }
    return otherwise.value_or(0);
  }
  double Real(const char* key, std::optional<double> otherwise = {}) {
    const std::string name = prefix_ + key;
    if (const auto v = file_.Real(name)) return *v;
    if (!otherwise) Fail("GGUF: the metadata lacks " + name);
    return otherwise.value_or(0);
  }
  std::string Text(const char* key) { return std::string(file_.String(prefix_ + key).value_or("")); }
  void Fail(std::string what) {
    if (problem_.empty()) problem_ = std::move(what);
  }
  Status status() const { return problem_.empty() ? Status() : Status(Corrupt(problem_)); }

 private:
  const GgufFile& file_;
  std::string prefix_, problem_;
};

}  // namespace

Result<ModelConfig> ConfigFromGguf(const GgufFile& file) {
  const auto name = file.String("general.architecture");
  if (!name) return Corrupt("GGUF: the metadata lacks general.architecture");
  std::optional<Arch> arch;
  for (const auto& [text, a] : kArchs)
    if (text == *name) arch = a;
  if (!arch)
    return Unsupported("GGUF: the architecture '" + std::string(name->substr(0, 100)) +
                       "' is not known; known are llama (also Mistral), qwen2, qwen3");
  ModelConfig c;
  c.arch = *arch;
  Keys k(file, std::string(*name));
  if (k.Int("expert_count", 0) != 0)
    return Unsupported("GGUF: the model is a mixture of experts, which is not computed; known are dense " +
                       KnownArchitectures());
  c.layers = k.Int("block_count");
  c.hidden = k.Int("embedding_length");
  c.heads = k.Int("attention.head_count");
  c.kv_heads = k.Int("attention.head_count_kv", c.heads);
  c.intermediate = k.Int("feed_forward_length");
  c.max_position = k.Int("context_length", 2048);
  c.head_dim = k.Int("attention.key_length", c.heads > 0 ? c.hidden / c.heads : 0);
  c.rms_eps = k.Real("attention.layer_norm_rms_epsilon");
  c.rope_theta = k.Real("rope.freq_base", 10000);
  c.sliding_window = k.Int("attention.sliding_window", 0);
  c.rope_interleaved = *arch == Arch::kLlama;  // the converter permutes rows of q and k of this architecture only
  c.qkv_bias = *arch == Arch::kQwen2;
  c.qk_norm = *arch == Arch::kQwen3;
  c.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  if (k.Int("attention.value_length", c.head_dim) != c.head_dim)
    return Unsupported("GGUF: keys and values have different lengths, which is not computed");
  if (k.Int("rope.dimension_count", c.head_dim) != c.head_dim)
    return Unsupported("GGUF: only a part of each head is rotated (rope.dimension_count), which is not computed");
  const auto* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    return Corrupt("GGUF: the file lacks the tensor token_embd.weight");
  c.vocab = embedding->shape[0];
  const std::string scaling = k.Text("rope.scaling.type");
  if (scaling == "linear") {
    c.rope_scaling.type = RopeScaling::Type::kLinear;
    c.rope_scaling.factor = k.Real("rope.scaling.factor");
  } else if (!scaling.empty() && scaling != "none") {
    return Unsupported("GGUF: the RoPE scaling '" + scaling.substr(0, 60) +
                       "' is not computed; known are none, linear and "
                       "the table rope_freqs.weight of Llama 3");
  } else if (const double factor = k.Real("rope.scale_linear", 1); factor != 1) {
    c.rope_scaling.type = RopeScaling::Type::kLinear;
    c.rope_scaling.factor = factor;
  }
  CROQUIS_CHECK_OK(k.status());
  if (c.sliding_window < 0) return Corrupt("GGUF: a sliding window of " + std::to_string(c.sliding_window));
  CROQUIS_CHECK_OK(CheckConfig(c));
  return c;
}

}  // namespace croquis::model
