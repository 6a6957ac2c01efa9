#include "croquis/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "croquis/base/memory.h"
#include "croquis/codecs/ggml/blocks.h"

namespace croquis::model {
namespace {

constexpr uint64_t kMaxDims = 4;

std::string Quoted(std::string_view name) {
  std::string out = "'";
  for (const char c : name.substr(0, 80)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out + (name.size() > 80 ? "...'" : "'");
}

// Bytes of a scalar type; 0 for strings, arrays and unknown types.
uint64_t ScalarBytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

template <class T>
T Load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Reads from the front of the file; once something does not fit, everything after fails too.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> file) : file_(file) {}

  uint64_t left() const { return file_.size() - at_; }
  uint64_t at() const { return at_; }
  bool ok() const { return ok_; }

  std::span<const std::byte> Bytes(uint64_t n) {
    if (!ok_ || n > left()) {
      ok_ = false;
      return {};
    }
    const auto bytes = file_.subspan(at_, size_t(n));
    at_ += size_t(n);
    return bytes;
  }
  template <class T>
  T Number() {
    const auto bytes = Bytes(sizeof(T));
    return ok_ ? Load<T>(bytes.data()) : T{};
  }
  std::string_view String() {
    const auto bytes = Bytes(Number<uint64_t>());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> file_;
  size_t at_ = 0;
  bool ok_ = true;
};

Error CutShort(const std::string& where) { return Corrupt("GGUF: the file ends inside " + where); }

Result<GgufValue> ReadValue(Reader& in, uint64_t index) {
  GgufValue v;
  v.key = in.String();
  auto type = in.Number<uint32_t>();
  if (!in.ok()) return CutShort("metadata entry " + std::to_string(index));
  const std::string where = "the metadata value " + Quoted(v.key);
  uint64_t count = 1;
  if (type == uint32_t(GgufType::kArray)) {
    v.is_array = true;
    type = in.Number<uint32_t>();
    count = in.Number<uint64_t>();
    if (!in.ok()) return CutShort(where);
    if (type == uint32_t(GgufType::kArray)) return Unsupported("GGUF: " + where + " is an array of arrays");
  }
  if (type > uint32_t(GgufType::kF64))
    return Corrupt("GGUF: " + where + " has the unknown type " + std::to_string(type));
  v.type = GgufType(type);
  // Every element takes at least one byte (a string eight), so a count beyond the bytes left is a lie.
  const uint64_t least = v.type == GgufType::kString ? (v.is_array ? 8 : 1) : ScalarBytes(v.type);
  if (v.is_array && count > in.left() / least)
    return Corrupt("GGUF: " + where + " claims " + std::to_string(count) + " elements, but " +
                   std::to_string(in.left()) + " bytes are left");
  v.count = int64_t(count);
  if (v.type != GgufType::kString) {
    v.bytes = in.Bytes(count * least);
  } else if (!v.is_array) {
    const auto s = in.String();
    v.bytes = {reinterpret_cast<const std::byte*>(s.data()), s.size()};
  } else {
    Reader elements = in;
    for (uint64_t i = 0; i < count && elements.ok(); ++i) elements.String();
    if (!elements.ok()) return CutShort(where);
    v.bytes = in.Bytes(elements.at() - in.at());
  }
  if (!in.ok()) return CutShort(where);
  return v;
}

struct RawTensor {
  GgufTensor tensor;
  uint64_t offset = 0, size = 0;
};

Result<RawTensor> ReadTensor(Reader& in, uint64_t index) {
  RawTensor t;
  t.tensor.name = in.String();
  const auto dims = in.Number<uint32_t>();
  if (!in.ok()) return CutShort("tensor " + std::to_string(index));
  const std::string where = "tensor " + Quoted(t.tensor.name);
  if (dims > kMaxDims)
    return Corrupt("GGUF: " + where + " has " + std::to_string(dims) + " dimensions, at most 4 are allowed");
  std::optional<int64_t> numbers = 1;
  for (uint32_t d = 0; d < dims; ++d) {
    const auto n = in.Number<uint64_t>();
    if (n > uint64_t{1} << 60) return Corrupt("GGUF: " + where + " has a dimension of " + std::to_string(n));
    t.tensor.shape.insert(t.tensor.shape.begin(), int64_t(n));
    numbers = numbers ? CheckedMul(*numbers, int64_t(n)) : numbers;
  }
  t.tensor.type = in.Number<uint32_t>();
  t.offset = in.Number<uint64_t>();
  if (!in.ok()) return CutShort(where);
  const auto type = codecs::GgmlType(t.tensor.type);
  const int64_t block = codecs::BlockSize(type);
  if (block == 0)
    return Unsupported("GGUF: " + where + " has the tensor type number " + std::to_string(t.tensor.type) +
                       "; those read are F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, IQ4_NL, Q4_K, Q6_K");
  const int64_t row = t.tensor.shape.empty() ? 1 : t.tensor.shape.back();
  const auto bytes = numbers ? CheckedMul(*numbers / block, int64_t(codecs::BlockBytes(type))) : std::nullopt;
  if (!bytes || row % block != 0)
    return Corrupt("GGUF: the shape of " + where + " does not fit its type " + std::string(codecs::Name(type)));
  t.size = uint64_t(*bytes);
  return t;
}

// Offsets count from `data`. Fills in the tensors' bytes.
Status PlaceTensors(std::vector<RawTensor>& tensors, std::span<const std::byte> data, uint64_t alignment) {
  for (auto& t : tensors) {
    const std::string name = "GGUF: tensor " + Quoted(t.tensor.name);
    if (t.offset % alignment != 0)
      return Corrupt(name + " begins at " + std::to_string(t.offset) + ", no multiple of " + std::to_string(alignment));
    if (t.offset > data.size() || t.size > data.size() - t.offset)
      return Corrupt(name + " needs " + std::to_string(t.size) + " bytes at " + std::to_string(t.offset) + " of " +
                     std::to_string(data.size()) + "; the file was cut short or is damaged");
    t.tensor.bytes = data.subspan(size_t(t.offset), size_t(t.size));
  }
  std::sort(tensors.begin(), tensors.end(), [](const RawTensor& a, const RawTensor& b) { return a.offset < b.offset; });
  uint64_t end = 0;
  for (const auto& t : tensors) {
    if (t.size > 0 && t.offset < end) return Corrupt("GGUF: tensor " + Quoted(t.tensor.name) + " overlaps another");
    end = std::max(end, t.offset + t.size);
  }
  return {};
}

template <class T, class Out>
std::optional<Out> Exact(const std::byte* p) {
  const T v = Load<T>(p);
  if constexpr (std::is_same_v<T, uint64_t> && std::is_same_v<Out, int64_t>)
    if (v >> 63) return std::nullopt;
  return Out(v);
}

// Element i of a value as an integer or a real number.
template <class Out>
std::optional<Out> NumberAt(const GgufValue& v, int64_t i) {
  const std::byte* p = v.bytes.data() + size_t(i) * ScalarBytes(v.type);
  switch (v.type) {
    case GgufType::kU8:
      return Exact<uint8_t, Out>(p);
    case GgufType::kI8:
      return Exact<int8_t, Out>(p);
    case GgufType::kU16:
      return Exact<uint16_t, Out>(p);
    case GgufType::kI16:
      return Exact<int16_t, Out>(p);
    case GgufType::kU32:
      return Exact<uint32_t, Out>(p);
    case GgufType::kI32:
      return Exact<int32_t, Out>(p);
    case GgufType::kU64:
      return Exact<uint64_t, Out>(p);
    case GgufType::kI64:
      return Exact<int64_t, Out>(p);
    // NOLINTNEXTLINE(bugprone-branch-clone): only where Out is no floating-point type
    case GgufType::kF32:
      if constexpr (std::is_same_v<Out, double>) return Exact<float, Out>(p);
      return std::nullopt;
    case GgufType::kF64:
      if constexpr (std::is_same_v<Out, double>) return Exact<double, Out>(p);
      return std::nullopt;
    case GgufType::kBool:
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return std::nullopt;
}

template <class Out>
std::optional<std::vector<Out>> Numbers(const GgufValue* v) {
  if (v == nullptr || !v->is_array) return std::nullopt;
  std::vector<Out> out;
  out.reserve(size_t(v->count));
  for (int64_t i = 0; i < v->count; ++i) {
    const auto n = NumberAt<Out>(*v, i);
    if (!n) return std::nullopt;
    out.push_back(*n);
  }
  return out;
}

}  // namespace

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto it = std::lower_bound(values_.begin(), values_.end(), key,
                                   [](const GgufValue& v, std::string_view k) { return v.key < k; });
  return it != values_.end() && it->key == key ? &*it : nullptr;
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const GgufTensor& t, std::string_view n) { return t.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

std::optional<int64_t> GgufFile::Int(std::string_view key) const {
  const auto* v = Find(key);
  return v != nullptr && !v->is_array ? NumberAt<int64_t>(*v, 0) : std::nullopt;
}
std::optional<double> GgufFile::Real(std::string_view key) const {
  const auto* v = Find(key);
  return v != nullptr && !v->is_array ? NumberAt<double>(*v, 0) : std::nullopt;
}
std::optional<bool> GgufFile::Bool(std::string_view key) const {
  const auto* v = Find(key);
  if (v == nullptr || v->is_array || v->type != GgufType::kBool) return std::nullopt;
  return Load<uint8_t>(v->bytes.data()) != 0;
}
std::optional<std::string_view> GgufFile::String(std::string_view key) const {
  const auto* v = Find(key);
  if (v == nullptr || v->is_array || v->type != GgufType::kString) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(v->bytes.data()), v->bytes.size());
}
std::optional<std::vector<std::string_view>> GgufFile::Strings(std::string_view key) const {
  const auto* v = Find(key);
  if (v == nullptr || !v->is_array || v->type != GgufType::kString) return std::nullopt;
  std::vector<std::string_view> out;
  out.reserve(size_t(v->count));
  Reader in(v->bytes);
  for (int64_t i = 0; i < v->count; ++i) out.push_back(in.String());
  return out;
}
std::optional<std::vector<int64_t>> GgufFile::Ints(std::string_view key) const { return Numbers<int64_t>(Find(key)); }
std::optional<std::vector<double>> GgufFile::Reals(std::string_view key) const { return Numbers<double>(Find(key)); }

Result<GgufFile> ParseGguf(std::span<const std::byte> file) {
  Reader in(file);
  const auto magic = in.Bytes(4);
  if (!in.ok() || std::memcmp(magic.data(), "GGUF", 4) != 0)
    return Corrupt("not a GGUF file: it does not begin with 'GGUF'");
  GgufFile out;
  out.version_ = in.Number<uint32_t>();
  if (out.version_ == 0x02000000u || out.version_ == 0x03000000u)
    return Unsupported("GGUF: the file is big-endian; convert it to little-endian");
  if (out.version_ != 2 && out.version_ != 3)
    return Unsupported("GGUF: version " + std::to_string(out.version_) + "; versions 2 and 3 are read");
  const auto tensors = in.Number<uint64_t>(), values = in.Number<uint64_t>();
  if (!in.ok()) return CutShort("its header");
  // A value takes at least 13 bytes, a tensor at least 24.
  if (values > in.left() / 13 || tensors > in.left() / 24)
    return Corrupt("GGUF: the header claims " + std::to_string(values) + " metadata values and " +
                   std::to_string(tensors) + " tensors in " + std::to_string(file.size()) + " bytes");
  for (uint64_t i = 0; i < values; ++i) {
    CROQUIS_TRY(GgufValue value, ReadValue(in, i));
    out.values_.push_back(value);
  }
  std::sort(out.values_.begin(), out.values_.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  for (size_t i = 1; i < out.values_.size(); ++i)
    if (out.values_[i].key == out.values_[i - 1].key)
      return Corrupt("GGUF: the metadata value " + Quoted(out.values_[i].key) + " is there twice");

  std::vector<RawTensor> raw;
  for (uint64_t i = 0; i < tensors; ++i) {
    CROQUIS_TRY(RawTensor tensor, ReadTensor(in, i));
    raw.push_back(std::move(tensor));
  }
  const int64_t alignment = out.Int("general.alignment").value_or(32);
  if (alignment < 1 || alignment > (1 << 20) || !std::has_single_bit(uint64_t(alignment)))
    return Corrupt("GGUF: general.alignment is " + std::to_string(alignment) + ", not a power of two up to 1 MiB");
  const uint64_t begin = (in.at() + uint64_t(alignment) - 1) / uint64_t(alignment) * uint64_t(alignment);
  const auto data = begin <= file.size() ? file.subspan(size_t(begin)) : std::span<const std::byte>{};
  CROQUIS_CHECK_OK(PlaceTensors(raw, data, uint64_t(alignment)));
  out.tensors_.reserve(raw.size());
  for (auto& t : raw) out.tensors_.push_back(std::move(t.tensor));
  std::sort(out.tensors_.begin(), out.tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  for (size_t i = 1; i < out.tensors_.size(); ++i)
    if (out.tensors_[i].name == out.tensors_[i - 1].name)
      return Corrupt("GGUF: tensor " + Quoted(out.tensors_[i].name) + " is there twice");
  return out;
}

}  // namespace croquis::model
