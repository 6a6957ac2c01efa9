// The loops of attention with linear states beside its matrix products: feature maps of tiles, even powers of scores,
// sums of features, rank-one updates.
#pragma once

#include <cstdint>
#include <string_view>

#include "croquis/simd/target.h"

namespace croquis::simd {

// Rows of features are written, and inputs read, in whole vectors: buffers have this many floats more than they hold.
inline constexpr int64_t kFeatureSlack = 16;

struct FeatureKernels {
  std::string_view name;
  Target target;

  // Products x_u x_v, u <= v, of each row of x [rows, n], for u in [u_begin, u_end): out[r] = (x_u x_u, x_u x_{u+1},
  // .., x_u x_{n-1}), one u after the other. x and out need kFeatureSlack floats past the last row's end; what lies
  // between the end of a row of out and the next row is overwritten.
  void (*square_rows)(const float* x, int64_t ldx, int64_t rows, int64_t n, int64_t u_begin, int64_t u_end, float* out,
                      int64_t ldo);
  // The same, transposed, for x^T [n, columns], columns a multiple of 16 (padded with zeros): out[f] holds the products
  // of all columns times `same` where u = v and `other` elsewhere; sums[f] += the sum of row f.
  void (*square_columns)(const float* xt, int64_t ldx, int64_t columns, int64_t n, int64_t u_begin, int64_t u_end,
                         float same, float other, float* out, int64_t ldo, float* sums);
  // t[r][c] = t[r][c]^power for c < last[r] and 0 for last[r] <= c < cols; mass[r] += the row's sum. power is even, 2
  // to 16; 0 <= last[r] <= cols.
  void (*even_powers)(float* t, int64_t ld, int64_t rows, int64_t cols, int power, const int32_t* last, float* mass);
  // out[i] = s * a[i] * b[i].
  void (*product)(const float* a, const float* b, float s, int64_t n, float* out);
  // out[r] += sum_i a[r][i] z[i].
  void (*row_dots)(const float* a, int64_t lda, int64_t rows, int64_t n, const float* z, float* out);
  // out[r] += sum_i a[r][i].
  void (*row_sums)(const float* a, int64_t lda, int64_t rows, int64_t n, float* out);
  // Exclusive prefix sums, one step: (x, carry) := (carry, carry + x).
  void (*scan_step)(float* x, float* carry, int64_t n);
  // x = e^x in place, relative error below 3e-7; 0 below -87, e^88 from 88 on.
  void (*exp)(float* x, int64_t n);
  // Each row of x [rows, n], without gaps: x = factor * (x - mean) / sqrt(variance + eps).
  void (*layer_norm)(float* x, int64_t rows, int64_t n, float eps, float factor);
  // a[f][i] += u[f] v[i], a [features, n] without gaps.
  void (*rank_one)(const float* u, int64_t features, const float* v, int64_t n, float* a);
  // out[i] += sum_f u[f] a[f][i] b[f][i], both [features, n] without gaps.
  void (*triple_sums)(const float* u, int64_t features, const float* a, const float* b, int64_t n, float* out);
};

const FeatureKernels& FeatureLoops();
const FeatureKernels& FeatureLoops(Target target);

}  // namespace croquis::simd
