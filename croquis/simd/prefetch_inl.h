// Prefetching the pages to come. Included by kernel files, each of which gets machine code of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "croquis/simd/upcoming.h"

namespace croquis::simd {
namespace {

// Prefetches one call's share of what is read later (see Upcoming), a few lines at a time, into the second cache.
//
// Where memory takes 200 ns and a line is wanted every 5, some 40 must be under way. A prefetch instruction holds one
// of a core's sixteen fill buffers until its line arrives; hardware prefetchers hold none, but run only about twenty
// lines ahead of what is asked for within each 4 KiB. So lines are taken in turn from several places, each of which the
// hardware follows: this is 7 % faster than line after line at 2 and at 4 bits. Slower are bursts of more lines, every
// second line alone, and places made to begin with a block of 4 KiB, all at once or one after the other. Few
// instructions a line: each takes a turn from the two ports that products run on.
class Ahead {
 public:
  Ahead() = default;
  // The share of `next` over `steps` calls of Step.
  Ahead(const Upcoming& next, int steps) {
    const auto lines = int64_t(next.bytes / 64);
    if (next.data == nullptr || lines == 0) return;
    // Each step takes the next line of every place of one of two sets.
    const int64_t all_steps = int64_t(steps) * next.shares, each = (lines + all_steps / 2) / all_steps;
    places_ = each > 1 ? int(each) : 1;
    const int64_t place_lines = (lines + 2 * places_ - 1) / (2 * places_);
    const int64_t first = 2 * place_lines * next.share / next.shares;
    const int64_t last = 2 * place_lines * (next.share + 1) / next.shares;
    apart_ = place_lines * 64;
    const char* const even = reinterpret_cast<const char*>(next.data) + (first + 1) / 2 * 64;
    const char* const odd = reinterpret_cast<const char*>(next.data) + places_ * apart_ + first / 2 * 64;
    at_ = first % 2 == 0 ? even : odd;
    other_ = first % 2 == 0 ? odd : even;
    left_ = int(last - first);
    for (int extra = left_ - steps; extra > 0; --extra) Step();
  }
  [[gnu::always_inline]] void Step() {
    if (--left_ < 0) return;
    const char* line = at_;
    at_ = other_;
    other_ = line + 64;
    __builtin_prefetch(line, 0, 2);
    if (places_ == 1) return;
    __builtin_prefetch(line + apart_, 0, 2);
    for (int i = 2; i < places_; ++i) __builtin_prefetch(line + i * apart_, 0, 2);
  }

 private:
  const char *at_ = nullptr, *other_ = nullptr;
  int64_t apart_ = 0;
  int places_ = 1, left_ = 0;  // places of a set; steps
};

}  // namespace
}  // namespace croquis::simd
