// GGUF files, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md): metadata and tensor table, read in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

enum class GgufType : uint32_t { kU8 = 0, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// One metadata entry. `bytes` is the value as it stands in the file: a scalar, the characters of a string, or the
// elements of an array one after another (strings with their 8-byte lengths), all checked to lie in the file.
struct GgufValue {
  std::string_view key;
  GgufType type = GgufType::kU8;  // of the value, or of an array's elements
  bool is_array = false;
  int64_t count = 1;  // elements
  std::span<const std::byte> bytes;
};

struct GgufTensor {
  std::string_view name;
  std::vector<int64_t> shape;        // row-major, slowest first: [out, in] for a matrix (the file stores it reversed)
  uint32_t type = 0;                 // number of ggml's type
  std::span<const std::byte> bytes;  // blocks, row after row
};

// A parsed file. All views are into the memory that was parsed, which must outlive this.
class GgufFile {
 public:
  uint32_t version() const { return version_; }
  const std::vector<GgufValue>& values() const { return values_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  const GgufValue* Find(std::string_view key) const;
  const GgufTensor* FindTensor(std::string_view name) const;

  // Scalars by key; nothing when the key is absent or of another kind (an integer is also a Real; a value that does
  // not fit int64_t is absent).
  std::optional<int64_t> Int(std::string_view key) const;
  std::optional<double> Real(std::string_view key) const;
  std::optional<bool> Bool(std::string_view key) const;
  std::optional<std::string_view> String(std::string_view key) const;
  // Arrays by key; nothing when absent or of another element kind.
  std::optional<std::vector<std::string_view>> Strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> Ints(std::string_view key) const;
  std::optional<std::vector<double>> Reals(std::string_view key) const;

 private:
  friend Result<GgufFile> ParseGguf(std::span<const std::byte> file);
  uint32_t version_ = 0;
  std::vector<GgufValue> values_;    // sorted by key
  std::vector<GgufTensor> tensors_;  // sorted by name
};

// Errors (kCorrupt, kUnsupported): magic, version, byte order, counts and lengths beyond the file, unknown value types,
// nested arrays, duplicate keys or tensors, bad alignment, sizes that overflow, tensors outside the file or
// overlapping, tensor types this build does not read.
Result<GgufFile> ParseGguf(std::span<const std::byte> file);

}  // namespace croquis::model
