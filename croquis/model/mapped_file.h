// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "croquis/base/result.h"

namespace croquis::model {

// Pages are read when touched and belong to the system's file cache, not to the process. Changing or truncating the
// file while it is mapped is outside of what can be checked, as for every program that maps files.
class MappedFile {
 public:
  // Errors: no such file, not a regular file, no permission, empty.
  static Result<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// The whole of a small text file (a config, an index). Errors: as Open, and more than `limit` bytes.
Result<std::string> ReadTextFile(const std::string& path, int64_t limit = int64_t(256) << 20);

}  // namespace croquis::model
