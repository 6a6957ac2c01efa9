// Rows that are gathered by index: read in f32, summed, measured, hashed by signs. What methods that sort tokens spend
// their time on outside of tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/target.h"

namespace croquis::simd {

struct RowKernels {
  std::string_view name;
  Target target;

  // Rows index[0 .. n) of x [.., dim] in f32, [n, dim] without gaps; index null: rows 0 .. n. Strides are in numbers.
  void (*widen)(RowType type, const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim,
                float* out);
  // sum[dim] += those rows, one after the other.
  void (*add_rows)(RowType type, const std::byte* x, int64_t stride, const int32_t* index, int64_t n, int64_t dim,
                   float* sum);
  // out[r] = |x_r|^2 in f32, for rows 0 .. n.
  void (*squares)(RowType type, const std::byte* x, int64_t stride, int64_t n, int64_t dim, float* out);
  // Bit t of codes[r] is z_r[t] > threshold[t], t < 16.
  void (*sign_bits)(const float* z, int64_t stride, int64_t n, const float* threshold, uint16_t* codes);
  // y[i] = (y[i] + a x[i]) b.
  void (*add_scaled)(const float* x, int64_t n, float a, float b, float* y);
};

const RowKernels& RowLoops();
const RowKernels& RowLoops(Target target);

}  // namespace croquis::simd
