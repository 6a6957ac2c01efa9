// The reference of the sign kernels.
#include "croquis/simd/sign_inl.h"
#include "croquis/simd/sign_internal.h"

namespace croquis::simd {
namespace {

void Sums(const uint64_t* words, int64_t blocks, int64_t m, const SignQuery* query, int64_t rows, float* out,
          int64_t out_stride) {
  for (int64_t b = 0; b < blocks; ++b) {
    const uint64_t* w = words + b * m / 4;
    for (int64_t row = 0; row < rows; ++row) {
      const SignQuery& q = query[row];
      int32_t sum[kSignTokens] = {};
      for (int64_t j = 0; j < m; ++j) {
        const int32_t v = 256 * q.hi[j] + q.lo[j];
        for (int64_t t = 0; t < kSignTokens; ++t) sum[t] += (w[j / 4] >> (4 * t + j % 4) & 1) != 0 ? v : 0;
      }
      for (int64_t t = 0; t < kSignTokens; ++t) {
        out[row * out_stride + b * kSignTokens + t] = float(2 * sum[t] - q.sum) * q.step;
      }
    }
  }
}

void CodeSums(const std::byte* codes, int bits, int64_t blocks, int64_t n, const SignQuery* query, int64_t rows,
              float* out, int64_t out_stride) {
  const int64_t fields = 8 / bits;
  for (int64_t b = 0; b < blocks; ++b) {
    const std::byte* lines = codes + b * 2 * n * bits;
    for (int64_t row = 0; row < rows; ++row) {
      const SignQuery& q = query[row];
      int32_t sum[kSignTokens] = {};
      for (int64_t i = 0; i < n; ++i) {
        const int32_t v = 256 * q.hi[i] + q.lo[i];
        const std::byte* line = lines + i / 4 / fields * 64 + i % 4;
        const int shift = int(i / 4 % fields) * bits;
        for (int64_t t = 0; t < kSignTokens; ++t) {
          sum[t] += v * ((std::to_integer<int>(line[4 * t]) >> shift) & ((1 << bits) - 1));
        }
      }
      for (int64_t t = 0; t < kSignTokens; ++t) out[row * out_stride + b * kSignTokens + t] = float(sum[t]) * q.step;
    }
  }
}

}  // namespace

const SignKernels& SignsScalar() {
  static constexpr SignKernels kKernels = {"scalar", Target::kScalar, Combine, Quantise, Sums, CodeSums};
  return kKernels;
}

}  // namespace croquis::simd
