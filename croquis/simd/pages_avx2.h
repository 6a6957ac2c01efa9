// What the AVX2 and AVX-VNNI tables share. Both multiply 16-bit integers (vpmaddwd, vpdpwssd): a query or weight of 16
// bits is one product, not two of 8 bits, nothing saturates, and sums agree with every other target bit for bit.
// vpmaddubsw on 7-bit halves, tried first, saturates unless queries are coarser, and at full precision took twice as
// long (22 against 11 ns a token and four query rows of 128).
#pragma once

#include "croquis/simd/page_kernels.h"
#include "croquis/simd/pages_internal.h"

namespace croquis::simd::avx2 {

// Quads: integers in groups of four (dims of a key unit, tokens of a value unit) stored in the order 0, 2, 1, 3: the
// bytes of a dword of codes are widened as its even bytes (0, 2) and its odd bytes (1, 3).

// A prepared query: int16 quads [rows][dim], then f32 s[rows], then f32 m[rows][runs] with mins.
struct QueryAt {
  size_t s, m, end;
};
QueryAt QueryParts(const PageLayout& layout, int64_t rows);

inline constexpr int64_t kMaxRows = 32;  // rows whose weights are quantised together, before the codes are expanded
inline constexpr int kAtomWords = 512;   // codes of an atom, as int16

// Scratch: expanded codes, then weights of up to kMaxRows rows: int16 quads [runs][rows][128], f32 unit[runs][rows].
struct ScratchAt {
  size_t weights, units, end;
};
ScratchAt ScratchParts(const PageLayout& layout, int64_t rows);

size_t QueryBytes(const PageLayout&, const Levels&, Precision, int64_t rows);
size_t ScratchBytes(const PageLayout&, const Levels&, Precision, int64_t rows);
void Prepare(const PageLayout&, const Levels&, Precision, MatView<const float> q, float scale, std::byte* query);

// How the weights of a page are held: signed when a scale is negative; offset by -32768 where 65535 would not fit.
struct WeightForm {
  float top;
  int32_t offset;
};
WeightForm FormOf(const PageLayout&, Precision, const std::byte* page);
// p * S of one row and run to integers (plus form.offset), as quads; returns max|p * S| / top, 0 when nothing weighs.
float QuantiseWeights(const WeightForm& form, const float* p, const uint16_t* scales, int16_t* out);
// logits[128] += sum over runs of M[r][t] * m[r].
void AddKeyMins(const uint16_t* mins, int runs, const float* m, float* logits);
// acc += p_scale * sum_t p[t] * M[r][t], over the dims of each run.
void AddValueMins(const uint16_t* mins, int runs, int run_dims, const float* p, float p_scale, float* acc);

void PackKeys(const PageLayout&, const uint8_t* codes, int64_t block, std::byte* page);
void PackValues(const PageLayout&, const uint8_t* codes, int64_t block, std::byte* page);
void Fwht(float* x, int64_t n);
float Nearest(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
              uint8_t* codes);
void F16ToF32(const uint16_t* x, int64_t n, float* y);
void F32ToF16(const float* x, int64_t n, uint16_t* y);
void Bf16ToF32(const uint16_t* x, int64_t n, float* y);
void F32ToBf16(const float* x, int64_t n, uint16_t* y);

}  // namespace croquis::simd::avx2
