// The loops that compilers vectorise by themselves, compiled once for each instruction set. Internal linkage, so that
// no copy can be picked for another instruction set's file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "croquis/simd/sign_kernels.h"

namespace croquis::simd {
namespace {

using Lanes [[gnu::vector_size(64)]] = float;  // lowered to what the instruction set has

inline void Load(const float* p, Lanes& v) { std::memcpy(&v, p, sizeof v); }
inline void Store(const Lanes& v, float* p) { std::memcpy(p, &v, sizeof v); }

void Combine(const float* base, const float* coef, const uint8_t* index, int64_t count, const float* table, int64_t m,
             float* out) {
  for (int64_t j = 0; j < m; j += 64) {
    Lanes a0{}, a1{}, a2{}, a3{};
    if (base) Load(base + j, a0), Load(base + j + 16, a1), Load(base + j + 32, a2), Load(base + j + 48, a3);
    for (int64_t c = 0; c < count; ++c) {
      const float* row = table + (index ? index[c] : c) * m + j;
      Lanes r0, r1, r2, r3;
      Load(row, r0), Load(row + 16, r1), Load(row + 32, r2), Load(row + 48, r3);
      const float k = coef[c];
      a0 += r0 * k, a1 += r1 * k, a2 += r2 * k, a3 += r3 * k;
    }
    Store(a0, out + j), Store(a1, out + j + 16), Store(a2, out + j + 32), Store(a3, out + j + 48);
  }
}

SignQuery Quantise(const float* v, int64_t m, int8_t* hi, int8_t* lo) {
  constexpr int32_t kTop = 32639;     // 256 * 127 + 127
  constexpr float kTiny = 1e-30f;     // its inverse is still finite
  constexpr float kRound = 12582912;  // 1.5 * 2^23: adding it rounds to nearest even
  int32_t top = 0;
  for (int64_t j = 0; j < m; ++j) {
    int32_t bits;
    std::memcpy(&bits, v + j, 4);
    bits &= 0x7fffffff;
    top = bits > top ? bits : top;
  }
  float magnitude;
  std::memcpy(&magnitude, &top, 4);
  if (!(magnitude >= kTiny && magnitude <= 3e38f)) {
    std::memset(hi, 0, size_t(m));
    std::memset(lo, 0, size_t(m));
    return {hi, lo, 0, 0};
  }
  const float inverse = float(kTop) / magnitude;
  int32_t sum = 0;
  for (int64_t j = 0; j < m; ++j) {
    const int32_t k = int32_t((v[j] * inverse + kRound) - kRound);
    const int32_t upper = (k + 128) >> 8;
    hi[j] = int8_t(upper);
    lo[j] = int8_t(k - 256 * upper);
    sum += k;
  }
  return {hi, lo, magnitude / float(kTop), sum};
}

inline int32_t FourBytes(const int8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// A number known when compiling, as an argument.
template <int kValue>
struct Fixed {};

// f(Fixed<k>(), first) for runs of k query rows that share what is read: kMost, then 2, then 1.
template <int kMost, class F>
void ForRowGroups(int64_t rows, const F& f) {
  int64_t r = 0;
  for (; r + kMost <= rows; r += kMost) f(Fixed<kMost>(), r);
  if constexpr (kMost > 2) {
    for (; r + 2 <= rows; r += 2) f(Fixed<2>(), r);
  }
  for (; r < rows; ++r) f(Fixed<1>(), r);
}

// SignKernels::code_sums from Isa::CodeRows<kRows, kBits>(lines of a block, n, query, out, out_stride).
template <class Isa>
struct CodeSumsOf {
  template <int kBits>
  static void Blocks(const std::byte* codes, int64_t blocks, int64_t n, const SignQuery* query, int64_t rows,
                     float* out, int64_t out_stride) {
    for (int64_t b = 0; b < blocks; ++b) {
      const std::byte* lines = codes + b * 2 * n * kBits;
      float* o = out + b * kSignTokens;
      ForRowGroups<Isa::kMostRows>(rows, [&]<int kRows>(Fixed<kRows>, int64_t r) {
        Isa::template CodeRows<kRows, kBits>(lines, n, query + r, o + r * out_stride, out_stride);
      });
    }
  }

  static void Run(const std::byte* codes, int bits, int64_t blocks, int64_t n, const SignQuery* query, int64_t rows,
                  float* out, int64_t out_stride) {
    if (bits == 2) return Blocks<2>(codes, blocks, n, query, rows, out, out_stride);
    if (bits == 4) Blocks<4>(codes, blocks, n, query, rows, out, out_stride);
  }
};

}  // namespace
}  // namespace croquis::simd
