// Small models written by the tests themselves: weights by a formula, safetensors and GGUF files byte by byte.
#pragma once

#include <unistd.h>

#include <cmath>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "croquis/base/dtype.h"

namespace croquis::model {

// The golden weights, as `generated` in tests/peer/transformers_models.py: splitmix64 of (FNV-1a of the name) + index.
inline std::vector<float> GeneratedWeights(const std::string& name, const std::vector<int64_t>& shape) {
  uint64_t h = 1469598103934665603ull;
  for (const char c : name) h = (h ^ uint8_t(c)) * 1099511628211ull;
  int64_t size = 1;
  for (const int64_t n : shape) size *= n;
  const bool norm = name.find("norm") != std::string::npos, bias = name.ends_with(".bias");
  const float scale = norm || bias ? 1.f : float(4.0 / std::sqrt(double(shape[1])));
  std::vector<float> out(static_cast<size_t>(size));
  for (size_t i = 0; i < out.size(); ++i) {
    uint64_t z = h + (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    const float u = float((z ^ (z >> 31)) >> 40) * 0x1p-24f - 0.5f;
    out[i] = norm ? 1.f + u * 0.5f : u * scale;
  }
  return out;
}

// A folder that is removed with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "croquis-model-XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string path() const { return path_.string(); }
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::filesystem::remove(path_ / name);  // a new file: an old one may still be mapped
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

template <class T>
void AppendBytes(std::string& to, const T& value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

struct TestTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// dtype: "F32", "F16" or "BF16".
inline std::string SafetensorsBytes(const std::vector<TestTensor>& tensors, const std::string& dtype = "F32") {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& t : tensors) {
    const size_t begin = data.size();
    for (const float v : t.values) {
      if (dtype == "F32") AppendBytes(data, v);
      if (dtype == "F16") AppendBytes(data, FloatToF16(v));
      if (dtype == "BF16") AppendBytes(data, FloatToBf16(v));
    }
    header[t.name] = {{"dtype", dtype}, {"shape", t.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  std::string file;
  AppendBytes(file, uint64_t(text.size()));
  return file + text + data;
}

// Writes GGUF files, F32 tensors only.
class GgufWriter {
 public:
  explicit GgufWriter(uint32_t version = 3) : version_(version) {}
  template <class T>
  GgufWriter& Scalar(const std::string& key, uint32_t type, T value) {
    Key(key, type);
    AppendBytes(values_, value);
    return *this;
  }
  GgufWriter& Text(const std::string& key, const std::string& value) {
    Key(key, 8);
    String(values_, value);
    return *this;
  }
  GgufWriter& Strings(const std::string& key, const std::vector<std::string>& list) {
    Key(key, 9);
    AppendBytes(values_, uint32_t{8});
    AppendBytes(values_, uint64_t(list.size()));
    for (const auto& s : list) String(values_, s);
    return *this;
  }
  GgufWriter& Raw(const std::string& key, uint32_t type, const std::string& bytes) {
    Key(key, type);
    values_ += bytes;
    return *this;
  }
  GgufWriter& Tensor(const TestTensor& t) {
    String(infos_, t.name);
    AppendBytes(infos_, uint32_t(t.shape.size()));
    for (size_t i = t.shape.size(); i-- > 0;) AppendBytes(infos_, uint64_t(t.shape[i]));
    AppendBytes(infos_, uint32_t{0});
    AppendBytes(infos_, uint64_t(data_.size()));
    for (const float v : t.values) AppendBytes(data_, v);
    data_.resize((data_.size() + 31) / 32 * 32);
    ++tensors_;
    return *this;
  }
  std::string Bytes() const {
    std::string file = "GGUF";
    AppendBytes(file, version_);
    AppendBytes(file, tensors_);
    AppendBytes(file, count_);
    file += values_ + infos_;
    file.resize((file.size() + 31) / 32 * 32);
    return file + data_;
  }

 private:
  static void String(std::string& to, const std::string& s) {
    AppendBytes(to, uint64_t(s.size()));
    to += s;
  }
  void Key(const std::string& key, uint32_t type) {
    String(values_, key);
    AppendBytes(values_, type);
    ++count_;
  }
  uint32_t version_;
  uint64_t tensors_ = 0, count_ = 0;
  std::string values_, infos_, data_;
};

}  // namespace croquis::model
