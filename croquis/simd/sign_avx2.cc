// Sign kernels for AVX2: 32 bits are spread to bytes of 0 or -1 that select the query's bytes; pairs are added in 16
// bits, which 128 words cannot overflow.
#include <immintrin.h>

#include "croquis/simd/sign_inl.h"
#include "croquis/simd/sign_internal.h"

namespace croquis::simd {
namespace {

constexpr int64_t kFlush = 128;  // words: 128 * 2 * -128 = -2^15

// Byte i of the result is -1 where bit i is set.
__m256i Spread(uint32_t bits) {
  const __m256i byte_of =
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit_of = _mm256_set1_epi64x(int64_t(0x8040201008040201ull));
  const __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32(int32_t(bits)), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(v, bit_of), bit_of);
}

// One block of 16 tokens: halves 0 and 1 are its tokens 0-7 and 8-15.
template <int kRows>
void SumRows(const uint64_t* words, int64_t m, const SignQuery* query, float* out, int64_t out_stride) {
  const __m256i one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
  __m256i high[kRows][2], low[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < 2; ++h) high[r][h] = low[r][h] = _mm256_setzero_si256();
  }
  for (int64_t begin = 0; begin < m / 4; begin += kFlush) {
    const int64_t end = begin + kFlush < m / 4 ? begin + kFlush : m / 4;
    __m256i high16[kRows][2], low16[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) high16[r][h] = low16[r][h] = _mm256_setzero_si256();
    }
    for (int64_t k = begin; k < end; ++k) {
      const __m256i set[2] = {Spread(uint32_t(words[k])), Spread(uint32_t(words[k] >> 32))};
      for (int r = 0; r < kRows; ++r) {
        const __m256i hi = _mm256_set1_epi32(FourBytes(query[r].hi + 4 * k));
        const __m256i lo = _mm256_set1_epi32(FourBytes(query[r].lo + 4 * k));
        for (int h = 0; h < 2; ++h) {
          high16[r][h] = _mm256_add_epi16(high16[r][h], _mm256_maddubs_epi16(one8, _mm256_and_si256(set[h], hi)));
          low16[r][h] = _mm256_add_epi16(low16[r][h], _mm256_maddubs_epi16(one8, _mm256_and_si256(set[h], lo)));
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) {
        high[r][h] = _mm256_add_epi32(high[r][h], _mm256_madd_epi16(high16[r][h], one16));
        low[r][h] = _mm256_add_epi32(low[r][h], _mm256_madd_epi16(low16[r][h], one16));
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int h = 0; h < 2; ++h) {
      const __m256i set = _mm256_add_epi32(_mm256_slli_epi32(high[r][h], 8), low[r][h]);
      const __m256i sum = _mm256_sub_epi32(_mm256_add_epi32(set, set), _mm256_set1_epi32(query[r].sum));
      _mm256_storeu_ps(out + r * out_stride + h * 8,
                       _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(query[r].step)));
    }
  }
}

void Sums(const uint64_t* words, int64_t blocks, int64_t m, const SignQuery* query, int64_t rows, float* out,
          int64_t out_stride) {
  for (int64_t b = 0; b < blocks; ++b) {
    const uint64_t* w = words + b * m / 4;
    float* o = out + b * kSignTokens;
    ForRowGroups<2>(rows, [&]<int kRows>(Fixed<kRows>, int64_t r) {
      SumRows<kRows>(w, m, query + r, o + r * out_stride, out_stride);
    });
  }
}

struct Isa {
  static constexpr int kMostRows = 2;

  // Half h of a line is tokens 8h to 8h + 7.
  template <int kRows, int kBits>
  static void CodeRows(const std::byte* lines, int64_t n, const SignQuery* query, float* out, int64_t out_stride) {
    constexpr int kFields = 8 / kBits;
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1), one16 = _mm256_set1_epi16(1);
    __m256i high[kRows][2], low[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) high[r][h] = low[r][h] = _mm256_setzero_si256();
    }
    for (int64_t line = 0; line < n * kBits / 32; ++line) {
      for (int h = 0; h < 2; ++h) {
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lines + 64 * line + 32 * h));
        for (int f = 0; f < kFields; ++f) {
          const __m256i code = _mm256_and_si256(_mm256_srli_epi16(packed, f * kBits), mask);
          for (int r = 0; r < kRows; ++r) {
            const int64_t i = (line * kFields + f) * 4;
            const __m256i hi = _mm256_maddubs_epi16(code, _mm256_set1_epi32(FourBytes(query[r].hi + i)));
            const __m256i lo = _mm256_maddubs_epi16(code, _mm256_set1_epi32(FourBytes(query[r].lo + i)));
            high[r][h] = _mm256_add_epi32(high[r][h], _mm256_madd_epi16(hi, one16));
            low[r][h] = _mm256_add_epi32(low[r][h], _mm256_madd_epi16(lo, one16));
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) {
        const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high[r][h], 8), low[r][h]);
        _mm256_storeu_ps(out + r * out_stride + h * 8,
                         _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(query[r].step)));
      }
    }
  }
};

}  // namespace

const SignKernels& SignsAvx2() {
  static constexpr SignKernels kKernels = {"avx2", Target::kAvx2, Combine, Quantise, Sums, CodeSumsOf<Isa>::Run};
  return kKernels;
}

}  // namespace croquis::simd
