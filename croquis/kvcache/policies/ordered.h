// Rows in order of position, each with some numbers: what policies that keep or drop whole tokens work on.
#pragma once

#include <cstring>
#include <span>

#include "croquis/kvcache/policies/policy.h"

namespace croquis::kvcache {

// Drops the rows of every part in `parts` for which drop(row) is true, keeping the order of the others. Returns the
// rows that are left of `rows`.
template <class Drop>
int64_t DropRows(PolicyState& state, std::span<const size_t> parts, int64_t rows, const Drop& drop) {
  int64_t to = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (drop(r)) continue;
    for (const size_t p : parts) {
      const int64_t bytes = state.layout().parts[p].item_bytes;
      std::byte* items = state.Part<std::byte>(p);
      if (to != r) std::memmove(items + to * bytes, items + r * bytes, size_t(bytes));
    }
    ++to;
  }
  for (const size_t p : parts) {
    const int64_t bytes = state.layout().parts[p].item_bytes;
    std::memset(state.Part<std::byte>(p) + to * bytes, 0, size_t((rows - to) * bytes));
  }
  return to;
}

// Writes a run's keys and values as rows `at` .. + kPolicyRun.
inline void PutRun(const PolicyRun& run, int64_t row_bytes, int64_t at, std::byte* k, std::byte* v) {
  std::memcpy(k + at * row_bytes, run.k, size_t(kPolicyRun * row_bytes));
  std::memcpy(v + at * row_bytes, run.v, size_t(kPolicyRun * row_bytes));
}

}  // namespace croquis::kvcache
