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

}  // namespace

const SignKernels& SignsScalar() {
  static constexpr SignKernels kKernels = {"scalar", Target::kScalar, Combine, Quantise, Sums};
  return kKernels;
}

}  // namespace croquis::simd
