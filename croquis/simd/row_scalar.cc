// Portable form of the row kernels: the reference of the vector forms, and what runs on other machines.
#include "croquis/simd/number_scalar.h"
#include "croquis/simd/row_internal.h"

namespace croquis::simd {
namespace {

void Widen(RowType type, const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim, float* out) {
  for (int64_t r = 0; r < n; ++r) {
    const std::byte* const row = x + (index != nullptr ? index[r] : r) * stride * RowTypeBytes(type);
    for (int64_t i = 0; i < dim; ++i) out[r * dim + i] = Number(type, row, i);
  }
}

void AddRows(RowType type, const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim,
             float* sum) {
  for (int64_t r = 0; r < n; ++r) {
    const std::byte* const row = x + (index != nullptr ? index[r] : r) * stride * RowTypeBytes(type);
    for (int64_t i = 0; i < dim; ++i) sum[i] += Number(type, row, i);
  }
}

void Squares(RowType type, const std::byte* x, int64_t stride, int64_t n, int64_t dim, float* out) {
  for (int64_t r = 0; r < n; ++r, x += stride * RowTypeBytes(type)) {
    float sum[8] = {};
    for (int64_t i = 0; i < dim; ++i) {
      const float number = Number(type, x, i);
      sum[i % 8] += number * number;
    }
    out[r] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
}

void SignBits(const float* z, int64_t stride, int64_t n, const float* threshold, uint16_t* codes) {
  for (int64_t r = 0; r < n; ++r) {
    uint32_t code = 0;
    for (int64_t t = 0; t < 16; ++t) code |= uint32_t(z[r * stride + t] > threshold[t]) << t;
    codes[r] = uint16_t(code);
  }
}

void AddScaled(const float* x, int64_t n, float a, float b, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = (y[i] + a * x[i]) * b;
}

}  // namespace

const RowKernels& RowsScalar() {
  static constexpr RowKernels kKernels = {"scalar", Target::kScalar, Widen, AddRows, Squares, SignBits, AddScaled};
  return kKernels;
}

}  // namespace croquis::simd
