// Memory that will be read later, told to those who work before.
#pragma once

#include <cstddef>
#include <cstdint>

namespace croquis::simd {

// Memory that the caller will read later, of which a call prefetches its share: number `share` of `shares` equal ones.
struct Upcoming {
  const std::byte* data = nullptr;  // null: nothing
  size_t bytes = 0;
  int32_t share = 0, shares = 1;

  // The share as a stretch of memory.
  const std::byte* Share() const { return data == nullptr ? nullptr : data + Before(share); }
  size_t ShareBytes() const { return data == nullptr ? 0 : Before(share + 1) - Before(share); }

 private:
  size_t Before(int32_t n) const { return bytes / 64 * size_t(n) / size_t(shares) * 64; }
};

}  // namespace croquis::simd
