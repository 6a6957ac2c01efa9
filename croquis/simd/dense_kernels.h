// The other hot loops of attention: 16- and 32-bit rows, softmax of a tile, the centring correction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/view.h"
#include "croquis/simd/target.h"

namespace croquis::simd {

enum class RowType : uint8_t { kF32, kF16, kBf16 };
constexpr int64_t RowTypeBytes(RowType t) { return t == RowType::kF32 ? 4 : 2; }

struct DenseKernels {
  std::string_view name;
  Target target;

  // logits[row * logit_stride + t] = <q[row], k[t]> for t < tokens. q: [rows, dim] f32, already scaled.
  // k: token t starts at k + t * stride_bytes. Reads ahead (prefetch only) past the end.
  void (*score_rows)(RowType type, MatView<const float> q, const std::byte* k, int64_t stride_bytes, int64_t tokens,
                     float* logits, int64_t logit_stride);
  // acc[row][i] += p_scale[row] * sum_t p[row * p_stride + t] * v[t][i].
  void (*accumulate_rows)(RowType type, const float* p, int64_t p_stride, const float* p_scale, int64_t rows,
                          const std::byte* v, int64_t stride_bytes, int64_t tokens, MatView<float> acc);
  // One tile of softmax in base 2 for each row, in place: max[r] = the largest of x[r * stride + t], t < n; then
  // x = 2^(x - max[r]), and sum[r] is their sum. n = 0 or all masked (x <= kMasked/2): max kMasked, sum 0, x = 0.
  void (*softmax_tiles)(float* x, int64_t stride, int64_t rows, int64_t n, float* max, float* sum);
  // x[r * stride + t] = 2^d, d = x - at[r] but at least -126, and sum[r] is their sum over t < n: softmax against a
  // maximum found before. Where d is above 126, x is anything from 2^126 on, infinity too.
  void (*exp2_tiles)(float* x, int64_t stride, int64_t rows, int64_t n, const float* at, float* sum);
  // x[i] *= s for i < n.
  void (*scale)(float* x, int64_t n, float s);
  // Adds sums of waves to rows of 64 numbers, each given by its value re and its slope im in their middle: for b in
  // [0, 32) x[row * 64 + 32 + b] += still[row] + A - B and x[row * 64 + 31 - b] += still[row] + A + B, with
  // A = sum_s re[s] waves[s * 64 + b], B = sum_s im[s] waves[s * 64 + 32 + b] over s < n; re = z + row * 2 n, im =
  // re + n. Where waves are cos(w (b + 1/2)) and sin(w (b + 1/2)) this is Re sum_s (re + i im) e^{i w (t - 31.5)} in
  // half the products.
  void (*add_waves)(const float* z, const float* still, int64_t rows, const float* waves, int64_t n, float* x);
  // y[i] += x[i].
  void (*add)(const float* x, int64_t n, float* y);
  // False when any x is NaN, infinite or of magnitude above `limit`.
  bool (*all_below)(const float* x, int64_t n, float limit);
  // c[m][n] += a[m][k] * b[k][n], row-major f32, for small products.
  void (*small_gemm)(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m,
                     int64_t n, int64_t k);
};

// What a masked logit holds: low enough to vanish, never infinite, so that differences stay defined.
inline constexpr float kMasked = -1e30f;

const DenseKernels& Dense();
const DenseKernels& Dense(Target target);

}  // namespace croquis::simd
