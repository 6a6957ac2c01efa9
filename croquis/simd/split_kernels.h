// Products of many query rows with pages of f32, f16 or bf16 rows on tiles of bf16, exact to f32: every number is cut
// into parts of eight bits (an f32 is the sum of three bf16, an f16 of two), and the products of parts that an f32 sum
// can feel are added up. On AMX six bf16 products take less than half the time of one f32 product.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/view.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/target.h"

namespace croquis::simd {

// Attention of many query rows to a run of pages of plain rows. Logits are base 2 here. With f16 or bf16 rows, queries
// and weights are rounded to 17 bits: the products that remain are above 2^-17, and rows have 11 bits at most.
struct SplitCall {
  RowType key_type = RowType::kF32, value_type = RowType::kF32;
  const std::byte* query = nullptr;  // from prepare: `rows` rows
  int64_t rows = 0;
  int64_t pages = 0;
  // One of each a page; then those of pages that the next call begins with, which are fetched meanwhile (two are
  // enough).
  const std::byte *const *keys = nullptr, *const *values = nullptr;
  int64_t ahead = 0;  // how many those are
  // Row r sees tokens [first[r], last[r]) of the 128 * pages (maybe none); null: all of them.
  const int32_t *first = nullptr, *last = nullptr;
  // State, taken in and given back: sums [rows, dim] relative to 2^max, masses likewise; max kMasked and mass 0 before
  // anything was seen.
  MatView<float> sums;
  float *max = nullptr, *mass = nullptr;
  std::byte* scratch = nullptr;  // attend_bytes
};

// Pages hold 128 rows of `dim` numbers, one after the other. Queries and scratch are 64-byte aligned.
struct SplitKernels {
  std::string_view name;
  int64_t least_rows;  // query rows from which on they are faster than the kernels of dense_kernels.h

  // Bytes of prepared queries, and of scratch (multiples of 64). dim: at most 256.
  size_t (*query_bytes)(int64_t rows, int64_t dim);
  size_t (*scratch_bytes)(int64_t rows, int64_t dim);
  // q: [rows, dim] f32, already scaled.
  void (*prepare)(MatView<const float> q, std::byte* query);
  // logits[row * 128 + t] = <q[row], k[t]> for all 128 rows of the page. `next` (may be null) points at `next_bytes`
  // bytes that are read next; they are prefetched meanwhile.
  void (*score)(RowType type, const std::byte* k, const std::byte* query, int64_t rows, int64_t dim,
                const std::byte* next, size_t next_bytes, float* logits, std::byte* scratch);
  // acc[row][i] += p_scale[row] * sum_t p[row * 128 + t] * v[t][i].
  void (*accumulate)(RowType type, const std::byte* v, const float* p, const float* p_scale, const std::byte* next,
                     size_t next_bytes, MatView<float> acc, std::byte* scratch);
  // Both and the softmax between them, page after page: vectors work while tiles do.
  size_t (*attend_bytes)(int64_t rows, int64_t dim);
  void (*attend)(const SplitCall& call);
};

// Those of a target (of the active one), or null where it has no such tiles.
const SplitKernels* Split(Target target);
const SplitKernels* Split();

}  // namespace croquis::simd
