#include "croquis/eval/bandwidth.h"

#include <chrono>
#include <vector>

namespace croquis::eval {
namespace {

constexpr int64_t kSlice = int64_t(1) << 20;

// Eight independent sums: no addition waits for the one before it. `ahead` bytes are prefetched (0: none).
uint64_t SumSlice(const uint64_t* x, int64_t bytes, int64_t ahead) {
  uint64_t s[8] = {};
  const int64_t n = bytes / 8;
  for (int64_t i = 0; i < n; i += 8) {
    if (ahead > 0) __builtin_prefetch(reinterpret_cast<const char*>(x + i) + ahead);
    for (int64_t j = 0; j < 8; j++) s[j] += x[i + j];
  }
  return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

}  // namespace

ReadProbe::ReadProbe(Executor& executor, int64_t bytes)
    : executor_(executor), buffer_(size_t((bytes + kSlice - 1) / kSlice * kSlice)) {
  auto* words = reinterpret_cast<uint64_t*>(buffer_.data());
  const int64_t slices = int64_t(buffer_.size()) / kSlice;
  executor_.ParallelFor(slices, [&](int64_t s, int) {  // touched by the threads that read it
    for (int64_t i = s * kSlice / 8; i < (s + 1) * kSlice / 8; i++) words[i] = uint64_t(i) * 0x9E3779B97F4A7C15ull;
  });
}

double ReadProbe::Pass() {
  const auto* words = reinterpret_cast<const uint64_t*>(buffer_.data());
  const int64_t slices = int64_t(buffer_.size()) / kSlice;
  const int64_t ahead = passes_++ % 2 == 0 ? 0 : 2048;
  std::vector<uint64_t> sums(size_t(executor_.threads()) * 8);  // a cache line apart
  const auto start = std::chrono::steady_clock::now();
  executor_.ParallelFor(slices, [&](int64_t s, int worker) {
    sums[size_t(worker) * 8] += SumSlice(words + s * kSlice / 8, kSlice, ahead);
  });
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (uint64_t s : sums) checksum_ += s;
  return double(buffer_.size()) / seconds;
}

}  // namespace croquis::eval
