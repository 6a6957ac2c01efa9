// AMX int8 tiles: preparing queries, and the table. Below LeastRows the vector kernels of AVX-512 are faster and run
// instead. An expanded page is made of B tiles as they lie.
#include "croquis/simd/pages_amx.h"

#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/tiles_amx.h"

namespace croquis::simd {
namespace amx {

ThreadTiles& MyTiles() {
  static thread_local constinit ThreadTiles tiles;
  return tiles;
}

namespace {

// Fewest rows for which tiles pay: a product takes as long for one row as for sixteen, and fast precision makes half as
// many vector products a row as fine.
int64_t LeastRows(const PageLayout& layout, Precision precision) {
  const bool fine = precision == Precision::kFine;
  return layout.runs > 1 ? (fine ? 5 : 9) : (fine ? 3 : 5);
}
bool UsesTiles(const PageLayout& layout, Precision precision, int64_t rows) {
  return rows >= LeastRows(layout, precision);
}

size_t QueryBytes(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows) {
  if (!UsesTiles(layout, precision, rows)) return avx512::QueryBytes(layout, levels, precision, rows);
  return QueryAt(layout, Groups(rows, precision == Precision::kFine, layout.runs == 1), rows).end;
}

size_t ScratchBytes(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows) {
  if (!UsesTiles(layout, precision, rows)) return avx512::ScratchBytes(layout, levels, precision, rows);
  return ScratchAt(layout, levels).end;
}

void Prepare(const PageLayout& layout, const Levels& levels, Precision precision, MatView<const float> q, float scale,
             std::byte* query) {
  if (!UsesTiles(layout, precision, q.rows)) return avx512::Prepare(layout, levels, precision, q, scale, query);
  const bool fine = precision == Precision::kFine;
  const Groups groups(q.rows, fine, layout.runs == 1);
  const QueryAt at(layout, groups, q.rows);
  __builtin_memset(query, 0, at.s);
  auto* s = reinterpret_cast<float*>(query + at.s);
  auto* m = reinterpret_cast<float*>(query + at.m);
  const float top = fine ? 32639.f : 127.f;
  const int steps = Steps(layout), run_dims = layout.dim / layout.runs;
  for (int64_t row = 0; row < q.rows; ++row) {
    const float* x = q.data + row * q.stride;
    std::byte* to = query + size_t(row / groups.rows) * at.group + size_t(row % groups.rows) * 64;
    const float max = avx512::MaxAbs(x, layout.dim);
    const __m512 inverse = _mm512_set1_ps(max < kTiny ? 0.f : top / max);
    for (int i = 0; i < layout.dim; i += 16) {
      const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
      const __m128i high = _mm512_cvtepi32_epi8(fine ? avx512::HighByte(v) : v), low = _mm512_cvtepi32_epi8(v);
      for (int k = 0; k < groups.share; ++k) {
        std::byte* bytes = to + size_t(k * steps + i / 64) * kTile + k * groups.height * 64 + i % 64;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), high);
        if (fine) _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 64 * groups.rows), low);
      }
    }
    s[row] = max < kTiny ? 0.f : (max / top) * (scale * levels.step);
    for (int r = 0; layout.mins && r < layout.runs; ++r) {
      m[row * layout.runs + r] = scale * avx512::SumOfRun(x + r * run_dims, run_dims);
    }
  }
}

void Score(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
           const std::byte* query, int64_t rows, const Upcoming& next, float* logits, std::byte* scratch) {
  if (!UsesTiles(layout, precision, rows)) {
    return avx512::Score(layout, levels, precision, page, query, rows, next, logits, scratch);
  }
  ScoreTiles(layout, levels, precision == Precision::kFine, page, query, rows, next, logits, scratch);
}

void Accumulate(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                const float* p, const float* p_scale, int64_t rows, const Upcoming& next, MatView<float> acc,
                std::byte* scratch) {
  if (!UsesTiles(layout, precision, rows)) {
    return avx512::Accumulate(layout, levels, precision, page, p, p_scale, rows, next, acc, scratch);
  }
  SumTiles(layout, levels, precision == Precision::kFine, page, p, p_scale, rows, next, acc, scratch);
}

void Enter() { ++MyTiles().scopes; }
void Leave() {
  if (--MyTiles().scopes == 0) ReleaseTiles(MyTiles());
}

}  // namespace
}  // namespace amx

const PageKernels& PagesAmx() {
  static constexpr PageKernels kKernels = {
      .name = "amx-int8 from 3 rows (fast: 5), avx512-vnni below",
      .target = Target::kAmx,
      .enter = amx::Enter,
      .leave = amx::Leave,
      .query_bytes = amx::QueryBytes,
      .scratch_bytes = amx::ScratchBytes,
      .prepare = amx::Prepare,
      .score = amx::Score,
      .accumulate = amx::Accumulate,
      .pack_keys = avx512::PackKeys,
      .pack_values = avx512::PackValues,
      .fwht = avx512::Fwht,
      .nearest = avx512::Nearest,
      .f16_to_f32 = avx512::F16ToF32,
      .f32_to_f16 = avx512::F32ToF16,
      .bf16_to_f32 = avx512::Bf16ToF32,
      .f32_to_bf16 = avx512::F32ToBf16,
  };
  return kKernels;
}

}  // namespace croquis::simd
