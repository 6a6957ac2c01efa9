// How the module's working memory is cut into pieces.
#pragma once

#include <cstddef>
#include <utility>

namespace croquis::attention {

constexpr size_t Round64(size_t n) { return (n + 63) / 64 * 64; }

// Hands out pieces of a block of memory, 64-byte aligned; the block's size is the caller's to know.
class Pieces {
 public:
  explicit Pieces(std::byte* memory) : at_(memory) {}
  template <class T>
  T* Take(size_t count) {
    return reinterpret_cast<T*>(std::exchange(at_, at_ + Round64(count * sizeof(T))));
  }
  std::byte* rest() const { return at_; }

 private:
  std::byte* at_;
};

}  // namespace croquis::attention
