// Counter-based randomness: every number is a function of (seed, purpose, index), so the number of
// threads, slicing and order never change a value. The generator is Random123's Philox4x32-10
// (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
#pragma once

#include <Random123/philox.h>

#include <cmath>
#include <cstdint>
#include <numbers>

namespace croquis {

// FNV-1a of a purpose such as "rotation.signs": the purpose is part of the key, so adding a consumer
// never shifts another one's numbers.
constexpr uint64_t Purpose(const char* s) {
  uint64_t h = 1469598103934665603ull;
  while (*s) h = (h ^ uint8_t(*s++)) * 1099511628211ull;
  return h;
}

struct Stream {  // 16 bytes, trivially copyable, no state to advance
  uint64_t seed = 0, purpose = 0;

  // The i-th 32-bit word.
  uint32_t U32(uint64_t i) const {
    const uint64_t block = i >> 2;
    const r123::Philox4x32::ctr_type c = {
        {uint32_t(block), uint32_t(block >> 32), uint32_t(purpose), uint32_t(purpose >> 32)}};
    const r123::Philox4x32::key_type k = {{uint32_t(seed), uint32_t(seed >> 32)}};
    return r123::Philox4x32()(c, k)[i & 3];
  }
  // Uniform in [0, 1), 24 bits, exact in float.
  float Uniform(uint64_t i) const { return float(U32(i) >> 8) * 0x1p-24f; }
  // +1 or -1.
  float Sign(uint64_t i) const { return (U32(i) & 1) ? -1.f : 1.f; }
  // Standard normal by Box-Muller from words 2i and 2i + 1.
  float Gaussian(uint64_t i) const {
    const double u = (double(U32(2 * i)) + 1) * 0x1p-32, a = double(U32(2 * i + 1)) * 0x1p-32;
    return float(std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * a));
  }
  // A child stream, independent of this one and of its siblings.
  constexpr Stream Sub(uint64_t j) const {
    return {seed, purpose ^ (j * 0xBF58476D1CE4E5B9ull + 0x9E3779B97F4A7C15ull + (purpose << 6) + (purpose >> 2))};
  }
};

}  // namespace croquis
