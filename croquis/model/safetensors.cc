#include "croquis/model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "croquis/base/memory.h"

namespace croquis::model {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr size_t kMaxDims = 8;

int64_t DtypeBytes(std::string_view dtype) {
  for (const std::string_view one : {"BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"})
    if (dtype == one) return 1;
  for (const std::string_view two : {"F16", "BF16", "I16", "U16"})
    if (dtype == two) return 2;
  for (const std::string_view four : {"F32", "I32", "U32"})
    if (dtype == four) return 4;
  for (const std::string_view eight : {"F64", "I64", "U64", "C64"})
    if (dtype == eight) return 8;
  return 0;
}

// Names and messages of a file may hold anything; errors quote a readable piece of it.
std::string Quoted(std::string_view name) {
  std::string out = "'";
  for (const char c : name.substr(0, 80)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out + (name.size() > 80 ? "...'" : "'");
}

// Base of handlers for nlohmann's SAX parser: everything is refused unless a subclass takes it. A document object model
// would silently keep one of two members with the same name.
class Refusing {
 public:
  using number_integer_t = int64_t;
  using number_unsigned_t = uint64_t;
  using number_float_t = double;
  using string_t = std::string;
  using binary_t = nlohmann::json::binary_t;

  bool null() { return Fail("null where none belongs"); }
  bool boolean(bool) { return Fail("a boolean where none belongs"); }
  bool number_integer(int64_t) { return Fail("a negative number where none belongs"); }
  bool number_float(double, const std::string&) { return Fail("a fraction where none belongs"); }
  bool binary(binary_t&) { return Fail("binary data"); }
  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception&) {
    return Fail("not JSON at byte " + std::to_string(at));
  }
  bool Fail(std::string what) {
    if (!failed_) problem_ = std::move(what);
    failed_ = true;
    return false;
  }
  bool failed() const { return failed_; }
  const std::string& problem() const { return problem_; }

 private:
  bool failed_ = false;
  std::string problem_;
};

struct RawEntry {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_shape = false;
};

class HeaderHandler : public Refusing {
 public:
  std::vector<RawEntry> entries;

  bool start_object(size_t) {
    ++depth_;
    if (depth_ == 3 || array_ != nullptr) return Fail("an object nested too deeply");
    return true;
  }
  bool end_object() {
    --depth_;
    if (depth_ == 1 && !metadata_) {
      const RawEntry& e = entries.back();
      if (e.dtype.empty() || !e.has_shape || e.offsets.size() != 2)
        return Fail("tensor " + Quoted(e.name) + " lacks its dtype, shape or two data_offsets");
    }
    return true;
  }
  bool key(std::string& k) {
    key_ = k;
    if (depth_ != 1) return true;
    metadata_ = k == "__metadata__";
    if (!metadata_) entries.push_back({k, {}, {}, {}, false});
    return true;
  }
  bool string(std::string& s) {
    if (depth_ == 2 && metadata_) return true;
    if (depth_ != 2 || array_ != nullptr || key_ != "dtype" || !entries.back().dtype.empty())
      return Fail("text " + Quoted(s) + " where none belongs");
    if (DtypeBytes(s) == 0)
      return Fail("tensor " + Quoted(entries.back().name) + " has the unknown dtype " + Quoted(s));
    entries.back().dtype = s;
    return true;
  }
  bool start_array(size_t) {
    if (depth_ != 2 || metadata_ || array_ != nullptr) return Fail("an array where none belongs");
    RawEntry& e = entries.back();
    if (key_ == "shape" && !e.has_shape) {
      array_ = &shape_;
      e.has_shape = true;
    } else if (key_ == "data_offsets" && e.offsets.empty()) {
      array_ = &e.offsets;
    } else {
      return Fail("tensor " + Quoted(e.name) + " has " + Quoted(key_) + " twice or unknown");
    }
    shape_.clear();
    return true;
  }
  bool end_array() {
    if (array_ == &shape_) entries.back().shape.assign(shape_.begin(), shape_.end());
    array_ = nullptr;
    return true;
  }
  bool number_unsigned(uint64_t n) {
    if (array_ == nullptr) return Fail("a number where none belongs");
    if (n > uint64_t{1} << 60) return Fail("the size " + std::to_string(n));
    if (array_->size() >= kMaxDims) return Fail("more than " + std::to_string(kMaxDims) + " dimensions");
    array_->push_back(n);
    return true;
  }

 private:
  int depth_ = 0;
  bool metadata_ = false;
  std::string key_;
  std::vector<uint64_t> shape_;
  std::vector<uint64_t>* array_ = nullptr;
};

class IndexHandler : public Refusing {
 public:
  std::vector<std::pair<std::string, std::string>> tensors;

  bool start_object(size_t) {
    ++depth_;
    return depth_ > 8 ? Fail("an object nested too deeply") : true;
  }
  bool end_object() {
    --depth_;
    return true;
  }
  bool key(std::string& k) {
    if (depth_ == 1) in_map_ = k == "weight_map";
    key_ = k;
    return true;
  }
  bool string(std::string& s) {
    if (!in_map_) return true;
    if (depth_ != 2) return Fail("weight_map is not an object of file names");
    tensors.emplace_back(key_, s);
    return true;
  }
  bool Other() { return in_map_ ? Fail("weight_map is not an object of file names") : true; }
  bool null() { return Other(); }
  bool boolean(bool) { return Other(); }
  bool number_integer(int64_t) { return Other(); }
  bool number_unsigned(uint64_t) { return Other(); }
  bool number_float(double, const std::string&) { return Other(); }
  bool start_array(size_t) { return ++arrays_ > 8 ? Fail("an array nested too deeply") : Other(); }
  bool end_array() {
    --arrays_;
    return true;
  }

 private:
  int depth_ = 0, arrays_ = 0;
  bool in_map_ = false;
  std::string key_;
};

Status CheckEntries(std::vector<RawEntry>& entries, uint64_t data_bytes) {
  std::sort(entries.begin(), entries.end(), [](const RawEntry& a, const RawEntry& b) { return a.offsets < b.offsets; });
  uint64_t end = 0;
  for (const RawEntry& e : entries) {
    const std::string name = "tensor " + Quoted(e.name);
    if (e.offsets[0] > e.offsets[1] || e.offsets[1] > data_bytes)
      return Corrupt(name + " claims bytes " + std::to_string(e.offsets[0]) + " to " + std::to_string(e.offsets[1]) +
                     " of " + std::to_string(data_bytes));
    if (e.offsets[0] != end)
      return Corrupt(name + " begins at byte " + std::to_string(e.offsets[0]) + ", but the one before ends at " +
                     std::to_string(end) + ": tensors may not overlap or leave holes");
    end = e.offsets[1];
    std::optional<int64_t> size = DtypeBytes(e.dtype);
    for (const int64_t n : e.shape) size = size ? CheckedMul(*size, n) : size;
    if (!size || uint64_t(*size) != e.offsets[1] - e.offsets[0])
      return Corrupt(name + " has " + std::to_string(e.offsets[1] - e.offsets[0]) +
                     " bytes, but its shape and dtype say " +
                     (size ? std::to_string(*size) : "more than fits 64 bits"));
  }
  if (end != data_bytes)
    return Corrupt(std::to_string(data_bytes - end) +
                   " bytes after the last tensor: the file is not what its header says");
  return {};
}

}  // namespace

Result<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::span<const std::byte> file) {
  uint64_t length = 0;
  if (file.size() < sizeof length) return Corrupt("not a safetensors file: " + std::to_string(file.size()) + " bytes");
  std::memcpy(&length, file.data(), sizeof length);
  const uint64_t rest = file.size() - sizeof length;
  if (length > std::min(rest, kMaxHeader))
    return Corrupt("not a safetensors file, or cut short: a header of " + std::to_string(length) + " bytes, " +
                   std::to_string(rest) + " bytes left in the file (and at most " + std::to_string(kMaxHeader) +
                   " are allowed)");
  const char* text = reinterpret_cast<const char*>(file.data()) + sizeof length;
  HeaderHandler handler;
  if (length == 0 || text[0] != '{') return Corrupt("not a safetensors file: the header does not begin with '{'");
  nlohmann::json::sax_parse(text, text + length, &handler, nlohmann::json::input_format_t::json, true);
  if (handler.failed()) return Corrupt("safetensors header: " + handler.problem());

  CROQUIS_CHECK_OK(CheckEntries(handler.entries, rest - length));
  std::vector<SafetensorsEntry> table;
  table.reserve(handler.entries.size());
  const auto data = file.subspan(sizeof length + size_t(length));
  for (RawEntry& e : handler.entries)
    table.push_back({std::move(e.name), std::move(e.dtype), std::move(e.shape),
                     data.subspan(size_t(e.offsets[0]), size_t(e.offsets[1] - e.offsets[0]))});
  std::sort(table.begin(), table.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  for (size_t i = 1; i < table.size(); ++i)
    if (table[i].name == table[i - 1].name) return Corrupt("tensor " + Quoted(table[i].name) + " is there twice");
  return table;
}

Result<SafetensorsIndex> ParseSafetensorsIndex(std::string_view text) {
  IndexHandler handler;
  nlohmann::json::sax_parse(text.begin(), text.end(), &handler, nlohmann::json::input_format_t::json, true);
  if (handler.failed()) return Corrupt("safetensors index: " + handler.problem());
  if (handler.tensors.empty()) return Corrupt("safetensors index: it has no weight_map");
  auto& tensors = handler.tensors;
  std::sort(tensors.begin(), tensors.end());
  SafetensorsIndex index;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string& file = tensors[i].second;
    if (file.empty() || file[0] == '.' || file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      return Corrupt("safetensors index: " + Quoted(file) + " is not the plain name of a file in the same folder");
    if (i > 0 && tensors[i].first == tensors[i - 1].first)
      return Corrupt("safetensors index: tensor " + Quoted(tensors[i].first) + " is there twice");
    index.files.push_back(file);
  }
  std::sort(index.files.begin(), index.files.end());
  index.files.erase(std::unique(index.files.begin(), index.files.end()), index.files.end());
  for (auto& [name, file] : tensors) {
    const auto at = std::lower_bound(index.files.begin(), index.files.end(), file);
    index.tensors.emplace_back(std::move(name), size_t(at - index.files.begin()));
  }
  return index;
}

}  // namespace croquis::model
