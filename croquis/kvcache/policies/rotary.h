// RoPE's pairs of a head, and keys turned back to position 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include "croquis/kvcache/cache.h"

namespace croquis::kvcache {

class Rotary {
 public:
  Rotary(RopeInfo rope, int64_t head_dim) : rope_(std::move(rope)), pairs_(head_dim / 2) {}

  int64_t pairs() const { return pairs_; }
  // The two dims that turn together; those that do not turn are paired with their neighbours. An odd last dim is in
  // none.
  std::pair<int64_t, int64_t> Dims(int64_t pair) const {
    const auto turning = int64_t(rope_.inv_freq.size());
    if (pair >= turning || rope_.interleaved) return {2 * pair, 2 * pair + 1};
    return {pair, pair + turning};
  }
  // x [head_dim], after RoPE at `position`, to what it was before.
  void TurnBack(int64_t position, float* x) const {
    for (size_t p = 0; p < rope_.inv_freq.size(); ++p) {
      const auto [a, b] = Dims(int64_t(p));
      const double angle = rope_.inv_freq[p] * double(position), c = std::cos(angle), s = std::sin(angle);
      const double re = double(x[a]), im = double(x[b]);
      x[a] = float(re * c + im * s);
      x[b] = float(im * c - re * s);
    }
  }

 private:
  RopeInfo rope_;
  int64_t pairs_;
};

}  // namespace croquis::kvcache
