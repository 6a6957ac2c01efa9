#include "croquis/model/weights.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "croquis/model/safetensors.h"

namespace croquis::model {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kGlobalNames = {
    {{"token_embd.weight", "model.embed_tokens.weight"},
     {"output_norm.weight", "model.norm.weight"},
     {"output.weight", "lm_head.weight"},
     {"rope_freqs.weight", "rope_freqs.weight"}}};
// Between the layer's number and ".weight" or ".bias".
constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kLayerNames = {
    {{"attn_norm", "input_layernorm"},
     {"attn_q", "self_attn.q_proj"},
     {"attn_k", "self_attn.k_proj"},
     {"attn_v", "self_attn.v_proj"},
     {"attn_output", "self_attn.o_proj"},
     {"attn_q_norm", "self_attn.q_norm"},
     {"attn_k_norm", "self_attn.k_norm"},
     {"ffn_norm", "post_attention_layernorm"},
     {"ffn_gate", "mlp.gate_proj"},
     {"ffn_up", "mlp.up_proj"},
     {"ffn_down", "mlp.down_proj"}}};
constexpr std::string_view kGgufLayer = "blk.", kLayer = "model.layers.";

std::string Translate(std::string_view name, bool to_gguf) {
  for (const auto& [gguf, hf] : kGlobalNames)
    if (name == (to_gguf ? hf : gguf)) return std::string(to_gguf ? gguf : hf);
  const std::string_view prefix = to_gguf ? kLayer : kGgufLayer;
  if (!name.starts_with(prefix)) return std::string(name);
  const size_t dot = name.find('.', prefix.size()), last = name.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return std::string(name);
  const std::string_view part = name.substr(dot + 1, last - dot - 1);
  for (const auto& [gguf, hf] : kLayerNames)
    if (part == (to_gguf ? hf : gguf))
      return std::string(to_gguf ? kGgufLayer : kLayer) +
             std::string(name.substr(prefix.size(), dot - prefix.size() + 1)) + std::string(to_gguf ? gguf : hf) +
             std::string(name.substr(last));
  return std::string(name);
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (const int64_t n : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(n);
  return out + "]";
}

WeightTensor FromSafetensors(const SafetensorsEntry& e) {
  WeightTensor t{e.name, e.dtype, true, codecs::GgmlType::kF32, e.shape, e.bytes};
  if (e.dtype == "F16") {
    t.type = codecs::GgmlType::kF16;
  } else if (e.dtype == "BF16") {
    t.type = codecs::GgmlType::kBf16;
  } else {
    t.readable = e.dtype == "F32";
  }
  return t;
}

// The safetensors files of a folder and which tensors each must hold (empty: any).
Result<SafetensorsIndex> FindShards(const std::string& folder) {
  std::error_code error;
  const fs::path dir(folder);
  if (!fs::is_directory(dir, error)) return NotFound(folder + ": no such folder");
  if (fs::exists(dir / "model.safetensors", error)) return SafetensorsIndex{{"model.safetensors"}, {}};
  if (const auto index = dir / "model.safetensors.index.json"; fs::exists(index, error)) {
    CROQUIS_TRY(const std::string text, ReadTextFile(index.string()));
    return ParseSafetensorsIndex(text);
  }
  SafetensorsIndex found;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".safetensors") found.files.push_back(it->path().filename().string());
  if (found.files.size() == 1) return found;
  return NotFound(folder + ": wanted model.safetensors or model.safetensors.index.json, found " +
                  (found.files.empty() ? "no .safetensors file"
                                       : std::to_string(found.files.size()) + " .safetensors files "
                                                                              "and no index") +
                  "; PyTorch's .bin checkpoints are not read, convert them to safetensors");
}

}  // namespace

std::string NameFromGguf(std::string_view name) { return Translate(name, false); }
std::string NameToGguf(std::string_view name) { return Translate(name, true); }

Status WeightTensor::ReadRows(int64_t row, int64_t n, float* out) const {
  const int64_t cols = shape.back(), row_bytes = cols / codecs::BlockSize(type) * int64_t(codecs::BlockBytes(type));
  if (row < 0 || n < 0 || (row + n) * row_bytes > int64_t(bytes.size()))
    return OutOfRange("rows " + std::to_string(row) + " to " + std::to_string(row + n) + " of tensor " + file_name);
  return codecs::Dequantize(type, bytes.data() + row * row_bytes, n * cols, out);
}

Status WeightSet::Add(std::string name, WeightTensor tensor) {
  const std::string file_name = tensor.file_name;
  if (!tensors_.emplace(std::move(name), std::move(tensor)).second)
    return Corrupt("the tensor " + file_name + " is there twice, in different files");
  return {};
}

Result<WeightSet> WeightSet::FromFolder(const std::string& folder) {
  CROQUIS_TRY(const SafetensorsIndex index, FindShards(folder));
  WeightSet set;
  for (size_t i = 0; i < index.files.size(); ++i) {
    const std::string path = (fs::path(folder) / index.files[i]).string();
    CROQUIS_TRY(auto file, MappedFile::Open(path));
    auto table = ParseSafetensorsHeader(file->bytes());
    if (!table) return Error{table.error().code, path + ": " + table.error().message};
    for (const SafetensorsEntry& e : *table) CROQUIS_CHECK_OK(set.Add(e.name, FromSafetensors(e)));
    set.files_.push_back(std::move(file));
  }
  for (const auto& [name, shard] : index.tensors)
    if (set.Find(name) == nullptr)
      return Corrupt(folder + "/" + index.files[shard] + ": lacks the tensor " + name +
                     " that the index says it holds");
  return set;
}

Result<WeightSet> WeightSet::FromGguf(const GgufFile& gguf, std::shared_ptr<const MappedFile> file) {
  WeightSet set;
  set.gguf_ = true;
  for (const GgufTensor& t : gguf.tensors()) {
    const auto type = codecs::GgmlType(t.type);
    CROQUIS_CHECK_OK(set.Add(NameFromGguf(t.name), WeightTensor{std::string(t.name), std::string(codecs::Name(type)),
                                                                true, type, t.shape, t.bytes}));
  }
  set.files_.push_back(std::move(file));
  return set;
}

Result<WeightSet> WeightSet::FromLlama2c(const Llama2cFile& parsed, std::shared_ptr<const MappedFile> file) {
  WeightSet set;
  for (const auto& t : parsed.tensors)
    CROQUIS_CHECK_OK(set.Add(t.name, WeightTensor{t.name, "F32", true, codecs::GgmlType::kF32, t.shape, t.bytes}));
  set.files_.push_back(std::move(file));
  return set;
}

const WeightTensor* WeightSet::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

Result<const WeightTensor*> WeightSet::Get(const std::string& name, const std::vector<int64_t>& shape) const {
  const WeightTensor* t = Find(name);
  if (t == nullptr)
    return Corrupt("the tensor " + (gguf_ ? NameToGguf(name) : name) + " " + ShapeText(shape) + " is missing");
  if (t->shape != shape)
    return Corrupt("the tensor " + t->file_name + " has shape " + ShapeText(t->shape) + ", the configuration says " +
                   ShapeText(shape));
  if (!t->readable)
    return Unsupported("the tensor " + t->file_name + " holds " + t->dtype + "; F32, F16 and BF16 are read");
  return t;
}

Result<std::vector<float>> WeightSet::Vector(const std::string& name, int64_t size) const {
  CROQUIS_TRY(const WeightTensor* t, Get(name, {size}));
  std::vector<float> out(static_cast<size_t>(size));
  CROQUIS_CHECK_OK(codecs::Dequantize(t->type, t->bytes.data(), size, out.data()));
  return out;
}

}  // namespace croquis::model
