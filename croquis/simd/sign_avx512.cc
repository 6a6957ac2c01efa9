// Sign kernels for AVX-512: a word of bits becomes a mask, the mask sixteen fours of 0 and 1, and vpdpbusd adds the
// query's bytes where the bits are set.
#include <immintrin.h>

#include "croquis/simd/sign_inl.h"
#include "croquis/simd/sign_internal.h"

namespace croquis::simd {
namespace {

template <int kRows, int kBlocks>
void SumRows(const uint64_t* words, int64_t m, const SignQuery* query, float* out, int64_t out_stride) {
  __m512i high[kRows][kBlocks], low[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) high[r][b] = low[r][b] = _mm512_setzero_si512();
  }
  const __m512i one = _mm512_set1_epi8(1);
  for (int64_t k = 0; k < m / 4; ++k) {
    __m512i bits[kBlocks];
    for (int b = 0; b < kBlocks; ++b) bits[b] = _mm512_maskz_mov_epi8(__mmask64(words[b * m / 4 + k]), one);
    for (int r = 0; r < kRows; ++r) {
      const __m512i hi = _mm512_set1_epi32(FourBytes(query[r].hi + 4 * k));
      const __m512i lo = _mm512_set1_epi32(FourBytes(query[r].lo + 4 * k));
      for (int b = 0; b < kBlocks; ++b) {
        high[r][b] = _mm512_dpbusd_epi32(high[r][b], bits[b], hi);
        low[r][b] = _mm512_dpbusd_epi32(low[r][b], bits[b], lo);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) {
      const __m512i set = _mm512_add_epi32(_mm512_slli_epi32(high[r][b], 8), low[r][b]);
      const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(set, set), _mm512_set1_epi32(query[r].sum));
      _mm512_storeu_ps(out + r * out_stride + b * kSignTokens,
                       _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(query[r].step)));
    }
  }
}

template <int kBlocks>
void SumBlocks(const uint64_t* words, int64_t m, const SignQuery* query, int64_t rows, float* out, int64_t out_stride) {
  ForRowGroups<4>(rows, [&]<int kRows>(Fixed<kRows>, int64_t r) {
    SumRows<kRows, kBlocks>(words, m, query + r, out + r * out_stride, out_stride);
  });
}

void Sums(const uint64_t* words, int64_t blocks, int64_t m, const SignQuery* query, int64_t rows, float* out,
          int64_t out_stride) {
  if (blocks == 2) return SumBlocks<2>(words, m, query, rows, out, out_stride);
  if (blocks == 1) SumBlocks<1>(words, m, query, rows, out, out_stride);
}

struct Isa {
  static constexpr int kMostRows = 4;

  template <int kRows, int kBits>
  static void CodeRows(const std::byte* lines, int64_t n, const SignQuery* query, float* out, int64_t out_stride) {
    constexpr int kFields = 8 / kBits;
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    __m512i high[kRows], low[kRows];
    for (int r = 0; r < kRows; ++r) high[r] = low[r] = _mm512_setzero_si512();
    for (int64_t line = 0; line < n * kBits / 32; ++line) {
      const __m512i packed = _mm512_loadu_si512(lines + 64 * line);
      for (int f = 0; f < kFields; ++f) {
        const __m512i code = _mm512_and_si512(_mm512_srli_epi16(packed, unsigned(f * kBits)), mask);
        for (int r = 0; r < kRows; ++r) {
          const int64_t i = (line * kFields + f) * 4;
          high[r] = _mm512_dpbusd_epi32(high[r], code, _mm512_set1_epi32(FourBytes(query[r].hi + i)));
          low[r] = _mm512_dpbusd_epi32(low[r], code, _mm512_set1_epi32(FourBytes(query[r].lo + i)));
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r], 8), low[r]);
      _mm512_storeu_ps(out + r * out_stride, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(query[r].step)));
    }
  }
};

}  // namespace

const SignKernels& SignsAvx512() {
  static constexpr SignKernels kKernels = {"avx512-vnni", Target::kAvx512,     Combine, Quantise,
                                           Sums,          CodeSumsOf<Isa>::Run};
  return kKernels;
}

}  // namespace croquis::simd
