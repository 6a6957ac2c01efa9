// Products of a query with sign bits, and with small codes whose scale is folded into the query: the hot loops of
// sketches that keep one bit a projection (qjl) and of codes that are scaled by channel (kivi's keys).
//
// A sign block is 16 tokens x m projections, m a multiple of 64: m / 4 words of 64 bits, where bit 4 t + j % 4 of word
// j / 4 is set when projection j of token t is positive. A word expanded to bytes is 16 tokens x 4 projections, one
// operand of a dot product over fours.
//
// A code block is 16 tokens x n dims, n a multiple of 16, codes of 2 or 4 bits: 2 n bits bytes in lines of 64. With
// f = 8 / bits, code (token t, dim i) is byte 4 t + i % 4 of line i / 4 / f, bits bits * (i / 4 % f) and up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/simd/target.h"

namespace croquis::simd {

inline constexpr int64_t kSignTokens = 16;
inline constexpr int64_t kMaxProjections = 1024;

// One row of a query, quantised to 16 bits in two signed bytes: v[j] ~ step * (256 hi[j] + lo[j]).
struct SignQuery {
  const int8_t* hi = nullptr;
  const int8_t* lo = nullptr;
  float step = 0;
  int32_t sum = 0;  // of 256 hi + lo over all j
};

// The same bits on every target: float sums are in a fixed order without fused operations, the rest is integers.
struct SignKernels {
  std::string_view name;
  Target target;

  // out[j] = base[j] + sum over c < count, in order, of coef[c] * table[index[c] * m + j]; j < m. base null: 0;
  // index null: c. m a multiple of 64. out may be base.
  void (*combine)(const float* base, const float* coef, const uint8_t* index, int64_t count, const float* table,
                  int64_t m, float* out);
  // Quantises v[0..m) into hi[0..m), lo[0..m) (any m); the largest magnitude becomes 32639. All 0 when that is below
  // 1e-30.
  SignQuery (*quantise)(const float* v, int64_t m, int8_t* hi, int8_t* lo);
  // out[row * out_stride + 16 b + t] = sum_j +-v[row][j], + where the bit of token t of block b is set. Block b starts
  // at words + b * m / 4. blocks <= 2.
  void (*sums)(const uint64_t* words, int64_t blocks, int64_t m, const SignQuery* query, int64_t rows, float* out,
               int64_t out_stride);
  // out[row * out_stride + 16 b + t] = sum_i v[row][i] * code(b, t, i), i < n. Block b starts at codes + b * 2 n bits.
  void (*code_sums)(const std::byte* codes, int bits, int64_t blocks, int64_t n, const SignQuery* query, int64_t rows,
                    float* out, int64_t out_stride);
};

// Kernels of the active target, and of a given reachable one.
const SignKernels& Signs();
const SignKernels& Signs(Target target);

}  // namespace croquis::simd
