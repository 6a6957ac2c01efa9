// What the AVX-512 and AMX files share: the register groups of query rows, and the arguments of one group's kernels.
#pragma once

#include "croquis/simd/page_kernels.h"
#include "croquis/simd/pages_internal.h"

namespace croquis::simd::avx512 {

inline constexpr int kMaxGroup = 8;  // rows that one pass over the codes serves

// Keys. A prepared group of G rows: int32 q[dim/4][1 or 2][G] (four dims a word; high bytes, then low ones when fine),
// off[runs][G] = -128 * sum of the run's integers (undoes the unsigned levels), f32 s[G], then f32 m[runs][G] with
// mins.
struct ScoreArgs {
  const uint16_t* scales;
  const uint8_t* codes;
  const int8_t* level;
  const int32_t* q;
  const int32_t* off;
  const float* s;
  float plane_weight;
  bool add;    // to what is in logits, from the second plane on
  int blocks;  // of 32 dims
  int rows;    // of the group that exist; the others are zero and not written
  Upcoming next;
  float* logits;
};

// Values. Quantised weights of a group for one run of scales.
struct alignas(64) RunWeights {
  uint8_t hi[kMaxGroup][128], lo[kMaxGroup][128];  // lo only when fine; s8 when any scale is negative
  float unit[kMaxGroup];                           // max|w| / top
  int32_t off[kMaxGroup];                          // -128 * sum of the integers, when signed
};
struct SumArgs {
  const uint8_t* codes;
  const int8_t* level;
  const RunWeights* weights;  // [runs]
  int runs;
  float step;  // times the weight of the plane
  const float* p_scale;
  int blocks;
  int rows;
  Upcoming next;
  float* acc;
  int64_t stride;
};

using ScoreFn = void (*)(const ScoreArgs&);
using SumFn = void (*)(const SumArgs&);
// form: 1..9 of pages_codes_avx512.h; width: 1, 2, 4 or 8 rows. Split in files by form to keep compile time even.
ScoreFn ScoreOf(int form, int width, bool fine, bool runs);
SumFn SumOf(int form, int width, bool fine, bool is_signed);

// The table's entries, also used by the AMX table.
size_t QueryBytes(const PageLayout&, const Levels&, Precision, int64_t rows);
size_t ScratchBytes(const PageLayout&, const Levels&, Precision, int64_t rows);
void Prepare(const PageLayout&, const Levels&, Precision, MatView<const float> q, float scale, std::byte* query);
void Score(const PageLayout&, const Levels&, Precision, const std::byte* page, const std::byte* query, int64_t rows,
           const Upcoming& next, float* logits, std::byte* scratch);
void Accumulate(const PageLayout&, const Levels&, Precision, const std::byte* page, const float* p,
                const float* p_scale, int64_t rows, const Upcoming& next, MatView<float> acc, std::byte* scratch);
void PackKeys(const PageLayout&, const uint8_t* codes, int64_t block, std::byte* page);
void PackValues(const PageLayout&, const uint8_t* codes, int64_t block, std::byte* page);
void Fwht(float* x, int64_t n);
float Nearest(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
              uint8_t* codes);
void F16ToF32(const uint16_t* x, int64_t n, float* y);
void F32ToF16(const float* x, int64_t n, uint16_t* y);
void Bf16ToF32(const uint16_t* x, int64_t n, float* y);
void F32ToBf16(const float* x, int64_t n, uint16_t* y);

}  // namespace croquis::simd::avx512
