#include "croquis/model/config.h"

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>

#include "croquis/model/tokenizer_json_util.h"

namespace croquis::model {
namespace {

struct ArchName {
  Arch arch;
  std::string_view type, cls;
};
constexpr std::array<ArchName, 4> kArchs = {{{Arch::kLlama, "llama", "LlamaForCausalLM"},
                                             {Arch::kMistral, "mistral", "MistralForCausalLM"},
                                             {Arch::kQwen2, "qwen2", "Qwen2ForCausalLM"},
                                             {Arch::kQwen3, "qwen3", "Qwen3ForCausalLM"}}};
constexpr int64_t kMost = int64_t{1} << 40;  // of any integer here; CheckConfig has the real limits

// Reads members of one JSON object; remembers the first thing that was wrong.
class Members {
 public:
  Members(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  int64_t Int(const char* key, std::optional<int64_t> otherwise = {}) {
    const Json* v = Member(object_, key);
    if (v == nullptr) {
      if (!otherwise) Fail(std::string("lacks '") + key + "'");
      return otherwise.value_or(0);
    }
    // Some exporters write whole numbers as 8192.0.
    const double d = v->is_number() ? v->get<double>() : std::nan("");
    if (!(std::fabs(d) <= double(kMost)) || d != std::floor(d)) {
      Fail(std::string("has a '") + key + "' that is not an integer");
      return 0;
    }
    return int64_t(d);
  }
  double Real(const char* key, std::optional<double> otherwise = {}) {
    const Json* v = Member(object_, key);
    if (v == nullptr) {
      if (!otherwise) Fail(std::string("lacks '") + key + "'");
      return otherwise.value_or(0);
    }
    if (!v->is_number()) Fail(std::string("has a '") + key + "' that is not a number");
    return v->is_number() ? v->get<double>() : 0;
  }
  bool Bool(const char* key, bool otherwise) {
    const Json* v = Member(object_, key);
    if (v == nullptr) return otherwise;
    if (!v->is_boolean()) Fail(std::string("has a '") + key + "' that is neither true nor false");
    return v->is_boolean() && v->get<bool>();
  }
  std::string Text(const char* key, const std::string& otherwise) {
    const Json* v = Member(object_, key);
    if (v == nullptr) return otherwise;
    if (!v->is_string()) Fail(std::string("has a '") + key + "' that is not text");
    return v->is_string() ? v->get<std::string>() : otherwise;
  }
  void Fail(const std::string& what, bool unsupported = false) {
    if (!error_) error_ = Error{unsupported ? Code::kUnsupported : Code::kCorrupt, where_ + " " + what};
  }
  Status status() const { return error_ ? Status(*error_) : Status(); }

 private:
  const Json& object_;
  std::string where_;
  std::optional<Error> error_;
};

Result<Arch> FindArch(const Json& root) {
  Members m(root, "config.json");
  const std::string type = m.Text("model_type", "");
  std::string cls;
  if (const Json* list = Member(root, "architectures"); list != nullptr && list->is_array() && !list->empty())
    if (list->front().is_string()) cls = list->front().get<std::string>();
  for (const auto& a : kArchs) {
    // The class decides when both are there: a "llama" that is a classifier has no output for tokens.
    if (cls.empty() ? type == a.type : cls == a.cls && (type.empty() || type == a.type)) return a.arch;
  }
  if (type.empty() && cls.empty())
    return Corrupt("config.json names no architecture (model_type); known are " + KnownArchitectures());
  return Unsupported("the architecture '" +
                     (cls.empty() ? type : cls + "' (model_type '" + type + "')").substr(0, 200) +
                     (cls.empty() ? "'" : "") + " is not known; known are " + KnownArchitectures());
}

Status ReadRope(const Json& root, Members& m, ModelConfig& c) {
  const Json* p = Member(root, "rope_parameters");
  if (p == nullptr) p = Member(root, "rope_scaling");
  c.rope_theta = m.Real("rope_theta", 10000);
  if (m.Real("partial_rotary_factor", 1) != 1)
    m.Fail("asks for partial rotary embeddings, which are not computed", true);
  if (p == nullptr) return {};
  if (!p->is_object()) return Corrupt("config.json: rope_parameters or rope_scaling is not an object");
  Members r(*p, "config.json: rope_parameters (or rope_scaling)");
  c.rope_theta = r.Real("rope_theta", c.rope_theta);
  if (r.Real("partial_rotary_factor", 1) != 1)
    r.Fail("asks for partial rotary embeddings, which are not computed", true);
  const std::string type = r.Text("rope_type", r.Text("type", "default"));
  RopeScaling& s = c.rope_scaling;
  if (type == "llama3") {
    s.type = RopeScaling::Type::kLlama3;
    s.factor = r.Real("factor");
    s.low_freq_factor = r.Real("low_freq_factor");
    s.high_freq_factor = r.Real("high_freq_factor");
    s.original_max_position = r.Int("original_max_position_embeddings", c.max_position);
  } else if (type == "linear") {
    s.type = RopeScaling::Type::kLinear;
    s.factor = r.Real("factor");
  } else if (type != "default") {
    r.Fail("has the type '" + type.substr(0, 60) + "'; computed are default, linear and llama3", true);
  } else if (Member(*p, "full_attention") != nullptr || Member(*p, "sliding_attention") != nullptr) {
    r.Fail("differ by kind of layer, which is not computed", true);
  }
  return r.status();
}

// Which layers see a window only, as transformers' configuration classes set `layer_types`.
Status ReadWindows(const Json& root, Members& m, ModelConfig& c) {
  const bool qwen = c.arch == Arch::kQwen2 || c.arch == Arch::kQwen3;
  int64_t window = 0;
  if (c.arch == Arch::kMistral) {
    // An absent member means 4096, as in MistralConfig; null means none.
    const bool null = root.contains("sliding_window") && root["sliding_window"].is_null();
    window = null ? 0 : m.Int("sliding_window", 4096);
  } else if (qwen && m.Bool("use_sliding_window", false)) {
    window = m.Int("sliding_window", 4096);
  }
  if (window < 0 || window >= kMost) return Corrupt("config.json: sliding_window is " + std::to_string(window));
  if (window == 0) return {};
  c.sliding_window = window;
  if (!qwen) return {};
  c.layer_windows.assign(size_t(c.layers), window);
  const Json* types = Member(root, "layer_types");
  if (types == nullptr) {
    const int64_t full = m.Int("max_window_layers", 28);
    for (int64_t l = 0; l < c.layers && l < full; ++l) c.layer_windows[size_t(l)] = 0;
    return {};
  }
  if (!types->is_array() || int64_t(types->size()) != c.layers)
    return Corrupt("config.json: layer_types does not have one entry for each of the " + std::to_string(c.layers) +
                   " layers");
  for (size_t l = 0; l < types->size(); ++l) {
    const Json& t = (*types)[l];
    if (t == "full_attention") {
      c.layer_windows[l] = 0;
    } else if (t != "sliding_attention") {
      return Unsupported("config.json: layer_types has an entry that is neither full_attention nor sliding_attention");
    }
  }
  return {};
}

}  // namespace

std::string KnownArchitectures() {
  std::string out;
  for (const auto& a : kArchs) out += (out.empty() ? "" : ", ") + std::string(a.type);
  return out;
}

Result<ModelConfig> ParseHfConfig(std::string_view text) {
  CROQUIS_TRY(const Json root,
              ParseJson({reinterpret_cast<const std::byte*>(text.data()), text.size()}, "config.json"));
  if (!root.is_object()) return Corrupt("config.json is not a JSON object");
  ModelConfig c;
  CROQUIS_TRY(c.arch, FindArch(root));
  Members m(root, "config.json");
  const bool qwen = c.arch == Arch::kQwen2 || c.arch == Arch::kQwen3;
  c.layers = m.Int("num_hidden_layers");
  c.hidden = m.Int("hidden_size");
  c.heads = m.Int("num_attention_heads");
  c.kv_heads = m.Int("num_key_value_heads", c.heads);
  c.intermediate = m.Int("intermediate_size");
  c.vocab = m.Int("vocab_size");
  // Qwen3Config's head_dim is 128 when absent; the others divide.
  c.head_dim = m.Int("head_dim", c.arch == Arch::kQwen3 ? 128 : c.heads > 0 ? c.hidden / c.heads : 0);
  c.max_position = m.Int("max_position_embeddings", c.arch == Arch::kMistral ? 131072 : qwen ? 32768 : 2048);
  c.rms_eps = m.Real("rms_norm_eps", 1e-6);
  c.tied_embeddings = m.Bool("tie_word_embeddings", false);
  c.qk_norm = c.arch == Arch::kQwen3;
  const bool attention_bias = (c.arch == Arch::kLlama || c.arch == Arch::kQwen3) && m.Bool("attention_bias", false);
  c.qkv_bias = c.arch == Arch::kQwen2 || attention_bias;
  c.o_bias = attention_bias;
  c.mlp_bias = c.arch == Arch::kLlama && m.Bool("mlp_bias", false);
  if (const std::string act = m.Text("hidden_act", "silu"); act != "silu" && act != "swish")
    m.Fail("asks for the activation '" + act.substr(0, 60) + "'; only silu is computed", true);
  if (Member(root, "quantization_config") != nullptr)
    m.Fail("describes quantised weights (quantization_config); use a bf16 or f16 folder, or a GGUF file", true);
  CROQUIS_CHECK_OK(m.status());
  CROQUIS_CHECK_OK(CheckConfig(c));
  CROQUIS_CHECK_OK(ReadRope(root, m, c));
  CROQUIS_CHECK_OK(ReadWindows(root, m, c));
  CROQUIS_CHECK_OK(m.status());
  CROQUIS_CHECK_OK(CheckConfig(c));
  return c;
}

Status CheckConfig(const ModelConfig& c) {
  const struct {
    const char* name;
    int64_t value, least, most;
  } sizes[] = {{"layers", c.layers, 1, 1 << 12},         {"hidden size", c.hidden, 1, 1 << 18},
               {"attention heads", c.heads, 1, 1 << 12}, {"key/value heads", c.kv_heads, 1, 1 << 12},
               {"head dimension", c.head_dim, 8, 256},   {"intermediate size", c.intermediate, 1, 1 << 22},
               {"vocabulary", c.vocab, 1, 1 << 24},      {"maximum position", c.max_position, 1, int64_t{1} << 31}};
  for (const auto& s : sizes)
    if (s.value < s.least || s.value > s.most)
      return Corrupt(std::string("the model's ") + s.name + " is " + std::to_string(s.value) + ", wanted " +
                     std::to_string(s.least) + " to " + std::to_string(s.most));
  if (c.heads % c.kv_heads != 0)
    return Corrupt("the model's " + std::to_string(c.heads) + " attention heads are no multiple of its " +
                   std::to_string(c.kv_heads) + " key/value heads");
  if (c.head_dim % 2 != 0) return Corrupt("the model's head dimension " + std::to_string(c.head_dim) + " is odd");
  if (!(c.rms_eps >= 0 && c.rms_eps < 1)) return Corrupt("the model's RMSNorm epsilon is not in [0, 1)");
  if (!(c.rope_theta >= 1 && c.rope_theta <= 1e15)) return Corrupt("the model's rope_theta is not in [1, 1e15]");
  const RopeScaling& s = c.rope_scaling;
  if (s.type != RopeScaling::Type::kNone && !(s.factor > 0 && s.factor <= 1e6))
    return Corrupt("the factor of the model's RoPE scaling is not in (0, 1e6]");
  if (s.type == RopeScaling::Type::kLlama3 && !(s.low_freq_factor > 0 && s.high_freq_factor > s.low_freq_factor &&
                                                s.high_freq_factor < 1e6 && s.original_max_position > 0))
    return Corrupt(
        "the model's llama3 RoPE scaling wants 0 < low_freq_factor < high_freq_factor and a positive "
        "original_max_position_embeddings");
  return {};
}

std::vector<double> RopeFrequencies(const ModelConfig& c, const std::vector<float>& factors) {
  std::vector<double> freq(size_t(c.head_dim / 2));
  const RopeScaling& s = c.rope_scaling;
  for (size_t i = 0; i < freq.size(); ++i) {
    double f = std::pow(c.rope_theta, -2.0 * double(i) / double(c.head_dim));
    if (i < factors.size()) f /= double(factors[i]);
    if (s.type == RopeScaling::Type::kLinear) f /= s.factor;
    if (s.type == RopeScaling::Type::kLlama3) {
      // Long waves are stretched by `factor`, short ones kept, those between blended by their turns in the old context.
      const double turns = double(s.original_max_position) * f / (2 * std::numbers::pi);
      const double blend = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
      f = blend <= 0 ? f / s.factor : blend >= 1 ? f : (1 - blend) * f / s.factor + blend * f;
    }
    freq[i] = f;
  }
  return freq;
}

}  // namespace croquis::model
