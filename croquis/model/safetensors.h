// The safetensors format (github.com/huggingface/safetensors, README "Format"): an 8-byte little-endian header length,
// a JSON header, then the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as written: "F32", "BF16", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // into the memory that was parsed
};

// The table of a file, sorted by name. Errors (kCorrupt, kUnsupported): a header length beyond the file or 100 MB, a
// header that is not the JSON of the format, unknown dtypes, duplicate names, shapes that overflow or do not match
// their bytes, offsets outside the file, overlapping, or leaving holes.
Result<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::span<const std::byte> file);

// The shard files of a model.safetensors.index.json, sorted, and each tensor's shard. Errors: not that JSON, names of
// files that are not plain names in the same folder, duplicate tensors.
struct SafetensorsIndex {
  std::vector<std::string> files;
  std::vector<std::pair<std::string, size_t>> tensors;  // name, index into files; sorted by name
};
Result<SafetensorsIndex> ParseSafetensorsIndex(std::string_view text);

}  // namespace croquis::model
