#include "croquis/base/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>

namespace croquis {
namespace {
constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kMapFrom = size_t{1} << 20;
constexpr size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

std::optional<int64_t> ReadNumber(const char* path) {
  std::ifstream in(path);
  int64_t v = 0;
  if (in >> v) return v;
  return std::nullopt;
}
}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  if (bytes < kMapFrom) {
    data_ = static_cast<std::byte*>(std::aligned_alloc(64, RoundUp(bytes, 64)));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
    return;
  }
  if (bytes > std::numeric_limits<size_t>::max() - 2 * kHuge) throw std::bad_alloc();
  map_size_ = RoundUp(bytes, 4096) + kHuge;
  map_ = mmap(nullptr, map_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map_ == MAP_FAILED) {
    map_ = nullptr;
    throw std::bad_alloc();
  }
  const size_t address = reinterpret_cast<size_t>(map_);
  data_ = static_cast<std::byte*>(map_) + (RoundUp(address, kHuge) - address);
  madvise(data_, RoundUp(bytes, 4096), MADV_HUGEPAGE);
}

void Buffer::Release() noexcept {
  if (map_)
    munmap(map_, map_size_);
  else
    std::free(data_);
  data_ = nullptr;
  map_ = nullptr;
  size_ = map_size_ = 0;
}

Buffer::~Buffer() { Release(); }

Buffer::Buffer(Buffer&& o) noexcept { *this = std::move(o); }

Buffer& Buffer::operator=(Buffer&& o) noexcept {
  if (this == &o) return *this;
  Release();
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(map_, o.map_);
  std::swap(map_size_, o.map_size_);
  return *this;
}

std::optional<int64_t> CheckedMul(int64_t a, int64_t b) {
  int64_t r = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}

int64_t AvailableMemory() {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream in("/proc/meminfo");
  for (std::string key, rest; in >> key;) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && in >> kib) available = kib * 1024;
    std::getline(in, rest);
  }
  const auto limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const auto used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit && used) available = std::min(available, std::max<int64_t>(0, *limit - *used));
  return available;
}

Status CheckMemory(int64_t bytes, const std::string& what) {
  const int64_t available = AvailableMemory();
  if (bytes <= available) return {};
  return NoMemory(what + " needs " + HumanBytes(double(bytes)) + ", but only " + HumanBytes(double(available)) +
                  " of memory are free; use a shorter context, fewer bits, or a smaller model");
}

std::string HumanBytes(double bytes) {
  const char* unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  int u = 0;
  while (bytes >= 1024 && u < 6) bytes /= 1024, ++u;
  char text[32];
  std::snprintf(text, sizeof text, u == 0 || bytes >= 100 ? "%.0f %s" : "%.1f %s", bytes, unit[u]);
  return text;
}

}  // namespace croquis
