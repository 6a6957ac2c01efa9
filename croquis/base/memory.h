// Owning aligned memory, and the size checks that come before taking any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "croquis/base/result.h"

namespace croquis {

// Zero-filled memory. Blocks of 1 MiB and more are mapped on a 2 MiB boundary with huge pages asked for
// (streams over 4 KiB pages lose 5 to 10 %) and are touched lazily; smaller ones are 64-byte aligned.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);  // throws std::bad_alloc; check sizes first with CheckMemory
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void Release() noexcept;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  void* map_ = nullptr;
  size_t map_size_ = 0;
};

// a * b, or nothing if it does not fit an int64_t or a factor is negative.
std::optional<int64_t> CheckedMul(int64_t a, int64_t b);
// Memory that could still be taken without swapping (MemAvailable, capped by the cgroup), in bytes.
int64_t AvailableMemory();
// An error that names `what`, the bytes wanted and the bytes free when `bytes` exceeds AvailableMemory().
Status CheckMemory(int64_t bytes, const std::string& what);
// "1.5 GiB", "532 KiB".
std::string HumanBytes(double bytes);

}  // namespace croquis
