// Rows that an eviction policy keeps in place of the tokens that have left the ring, as attention reads them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace croquis::kvcache {

// Keys and values in f16, [rows, head_dim], each standing for 2^log2_weight tokens of the softmax sum.
struct KeptRows {
  // Estimators whose numerator and denominator are sampled apart have rows that count in one of the two only.
  enum class Use : uint8_t { kBoth, kMass, kValues };
  const std::byte *k = nullptr, *v = nullptr;  // v: null with kMass
  const float* log2_weight = nullptr;          // [rows]; null: all 0
  int64_t rows = 0;
  Use use = Use::kBoth;
};
using KeptView = std::array<KeptRows, 2>;

// What a policy wants to know of each call of attention.
enum class Sees : uint8_t { kNothing, kQueries, kMass };

// What one call of attention saw of a head. Sums over all query rows of the call that share the kv head, in their
// order.
struct Observation {
  // Softmax weight: by kept row, by ring token from the oldest, by chunk token. Empty with Sees::kQueries.
  std::vector<float> kept, ring, chunk;
  std::vector<float> query_energy;  // [head_dim]: (scale * q_i)^2, natural-log units
  int64_t queries = 0;              // rows summed; 0: nothing was observed
};

}  // namespace croquis::kvcache
