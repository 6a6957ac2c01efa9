#include "croquis/kvcache/unit_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace croquis::kvcache {
namespace {
// From this size on a Buffer is mapped and touched lazily.
constexpr size_t kLeastExtent = size_t{1} << 20;
constexpr size_t kSmallPage = 4096;

// Zeroes `bytes` at `data`; the whole small pages inside are given back to the system, which has the same effect.
void GiveBack(std::byte* data, size_t bytes) {
  const size_t begin = reinterpret_cast<size_t>(data), end = begin + bytes;
  const size_t from = (begin + kSmallPage - 1) / kSmallPage * kSmallPage, to = end / kSmallPage * kSmallPage;
  if (from >= to || madvise(data + (from - begin), to - from, MADV_DONTNEED) != 0) {
    std::memset(data, 0, bytes);
    return;
  }
  std::memset(data, 0, from - begin);
  std::memset(data + (to - begin), 0, end - to);
}
}  // namespace

Unit* UnitPool::New(size_t payload) {
  const size_t bytes = sizeof(Unit) + payload;
  std::lock_guard lock(mutex_);
  std::byte* at = nullptr;
  if (auto& spare = free_[bytes]; !spare.empty()) {
    at = spare.back();
    spare.pop_back();
  } else {
    if (extents_.empty() || extents_.back().size() - used_ < bytes) {
      extents_.emplace_back(std::max({reserve_, bytes, kLeastExtent}));
      used_ = 0;
    }
    at = extents_.back().data() + used_;
    used_ += bytes;
  }
  live_ += int64_t(bytes);
  Unit* unit = new (at) Unit;
  unit->bytes = int64_t(bytes);
  return unit;
}

void UnitPool::Drop(Unit* unit) {
  if (unit->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const size_t bytes = size_t(unit->bytes);
  live_ -= int64_t(bytes);
  std::byte* at = reinterpret_cast<std::byte*>(unit);
  GiveBack(at, bytes);
  std::lock_guard lock(mutex_);
  free_[bytes].push_back(at);
}

}  // namespace croquis::kvcache
