// Memory of the pages. One unit holds what 128 tokens of one layer take: the key and the value page of every head.
//
// Units are cut one after another from address space that is reserved once and touched as used, so a cache has no
// slack beyond the unit being filled; in large pages, because streams over 4 KiB pages lose 5 to 10 %.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "croquis/base/memory.h"

namespace croquis::kvcache {

// Header of a unit; the pages follow.
struct alignas(64) Unit {
  std::atomic<int64_t> refs{1};
  int64_t bytes = 0;  // header included

  std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(this + 1); }
};
static_assert(sizeof(Unit) == 64);

// Shared by a cache and its branches; safe to call from several threads.
class UnitPool {
 public:
  // `reserve`: bytes of address space taken at a time; nothing is touched.
  explicit UnitPool(size_t reserve) : reserve_(reserve) {}

  // A unit with `payload` zero bytes (a multiple of 64) and one reference. May throw std::bad_alloc.
  Unit* New(size_t payload);
  static void Share(Unit* unit) { unit->refs.fetch_add(1, std::memory_order_relaxed); }
  // Drops a reference; the memory of the last one goes back to the system and the space is used again.
  void Drop(Unit* unit);
  // Bytes of the units that are alive.
  int64_t live_bytes() const { return live_.load(); }

 private:
  const size_t reserve_;
  std::mutex mutex_;
  std::vector<Buffer> extents_;
  size_t used_ = 0;  // of the last extent
  std::map<size_t, std::vector<std::byte*>> free_;
  std::atomic<int64_t> live_{0};
};

}  // namespace croquis::kvcache
