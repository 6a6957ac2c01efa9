// AVX2: queries and softmax weights to integers, and the `mins` terms (the arithmetic stated in pages_internal.h).
#include <immintrin.h>

#include "croquis/simd/pages_avx2.h"

namespace croquis::simd::avx2 {
namespace {

constexpr int kTokens = 128;

size_t Align64(size_t n) { return (n + 63) / 64 * 64; }
__m256 LoadHalf(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
__m256 Abs(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), x); }

float MaxOf(__m256 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// Partial sums 0..7 and 8..15 to one, in the order of TreeSum.
float TreeSum(__m256 low, __m256 high) {
  const __m256 eight = _mm256_add_ps(low, high);
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// To the nearest integer; what is not a number becomes 0.
__m256i Round(__m256 x) { return _mm256_cvtps_epi32(_mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q))); }

// Sixteen integers in order to int16 quads (0, 2, 1, 3), saturated.
__m256i Quads(__m256i a, __m256i b) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8);
}

}  // namespace

QueryAt QueryParts(const PageLayout& layout, int64_t rows) {
  QueryAt at;
  at.s = Align64(size_t(rows) * size_t(layout.dim) * 2);
  at.m = Align64(at.s + size_t(rows) * 4);
  at.end = Align64(at.m + (layout.mins ? size_t(rows) * size_t(layout.runs) * 4 : 0));
  return at;
}

ScratchAt ScratchParts(const PageLayout& layout, int64_t rows) {
  const int atoms = layout.dim > 256 ? layout.dim / 32 : 8;  // of a block of keys, or of a strip of values
  const size_t held = size_t(rows < kMaxRows ? rows : kMaxRows) * size_t(layout.runs);
  ScratchAt at;
  at.weights = size_t(atoms) * kAtomWords * 2;
  at.units = at.weights + held * kTokens * 2;
  at.end = Align64(at.units + held * 4);
  return at;
}

size_t QueryBytes(const PageLayout& layout, const Levels&, Precision, int64_t rows) {
  return QueryParts(layout, rows).end;
}
size_t ScratchBytes(const PageLayout& layout, const Levels&, Precision, int64_t rows) {
  return ScratchParts(layout, rows).end;
}

void Prepare(const PageLayout& layout, const Levels& levels, Precision precision, MatView<const float> q, float scale,
             std::byte* query) {
  const QueryAt at = QueryParts(layout, q.rows);
  const int dim = layout.dim, run_dims = dim / layout.runs;
  const float top = precision == Precision::kFine ? 32639.f : 127.f;
  for (int64_t row = 0; row < q.rows; ++row) {
    const float* x = q.data + row * q.stride;
    auto* v = reinterpret_cast<int16_t*>(query) + row * dim;
    __m256 m = _mm256_setzero_ps();
    for (int i = 0; i < dim; i += 8) m = _mm256_max_ps(Abs(_mm256_loadu_ps(x + i)), m);  // NaN: keeps m
    const float max = MaxOf(m);
    const __m256 inverse = _mm256_set1_ps(max < kTiny ? 0.f : top / max);
    for (int i = 0; i < dim; i += 16) {
      const __m256i quads = Quads(Round(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse)),
                                  Round(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), inverse)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(v + i), quads);
    }
    reinterpret_cast<float*>(query + at.s)[row] = max < kTiny ? 0.f : (max / top) * (scale * levels.step);
    for (int r = 0; layout.mins && r < layout.runs; ++r) {
      __m256 low = _mm256_setzero_ps(), high = low;
      for (int i = r * run_dims; i < (r + 1) * run_dims; i += 16) {
        low = _mm256_add_ps(low, _mm256_loadu_ps(x + i));
        high = _mm256_add_ps(high, _mm256_loadu_ps(x + i + 8));
      }
      reinterpret_cast<float*>(query + at.m)[row * layout.runs + r] = scale * TreeSum(low, high);
    }
  }
}

WeightForm FormOf(const PageLayout& layout, Precision precision, const std::byte* page) {
  __m256i any = _mm256_setzero_si256();
  for (int i = 0; i < layout.runs * 256; i += 32) {
    any = _mm256_or_si256(any, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(page + i)));
  }
  const bool negative = (_mm256_movemask_epi8(any) & int(0xAAAAAAAAu)) != 0;
  if (precision == Precision::kFast) return {negative ? 127.f : 255.f, 0};
  if (negative) return {32639.f, 0};
  return {65535.f, -32768};
}

float QuantiseWeights(const WeightForm& form, const float* p, const uint16_t* scales, int16_t* out) {
  __m256 w[kTokens / 8], m = _mm256_setzero_ps();
  for (int i = 0; i < kTokens / 8; ++i) {
    w[i] = _mm256_mul_ps(_mm256_loadu_ps(p + 8 * i), LoadHalf(scales + 8 * i));
    m = _mm256_max_ps(Abs(w[i]), m);
  }
  const float max = MaxOf(m);
  const __m256 inverse = _mm256_set1_ps(max < kTiny ? 0.f : form.top / max);
  const __m256i offset = _mm256_set1_epi32(form.offset);
  for (int i = 0; i < kTokens / 8; i += 2) {
    const __m256i a = _mm256_add_epi32(Round(_mm256_mul_ps(w[i], inverse)), offset);
    const __m256i b = _mm256_add_epi32(Round(_mm256_mul_ps(w[i + 1], inverse)), offset);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8 * i), Quads(a, b));
  }
  return max < kTiny ? 0.f : max / form.top;
}

void AddKeyMins(const uint16_t* mins, int runs, const float* m, float* logits) {
  for (int t = 0; t < kTokens; t += 8) {
    __m256 x = _mm256_loadu_ps(logits + t);
    for (int r = 0; r < runs; ++r) x = _mm256_fmadd_ps(LoadHalf(mins + r * kTokens + t), _mm256_set1_ps(m[r]), x);
    _mm256_storeu_ps(logits + t, x);
  }
}

void AddValueMins(const uint16_t* mins, int runs, int run_dims, const float* p, float p_scale, float* acc) {
  for (int r = 0; r < runs; ++r) {
    __m256 low = _mm256_setzero_ps(), high = low;
    for (int t = 0; t < kTokens; t += 16) {
      low = _mm256_fmadd_ps(_mm256_loadu_ps(p + t), LoadHalf(mins + r * kTokens + t), low);
      high = _mm256_fmadd_ps(_mm256_loadu_ps(p + t + 8), LoadHalf(mins + r * kTokens + t + 8), high);
    }
    const __m256 add = _mm256_set1_ps(TreeSum(low, high)), scale = _mm256_set1_ps(p_scale);
    for (int i = r * run_dims; i < (r + 1) * run_dims; i += 8) {
      _mm256_storeu_ps(acc + i, _mm256_fmadd_ps(scale, add, _mm256_loadu_ps(acc + i)));
    }
  }
}

}  // namespace croquis::simd::avx2
