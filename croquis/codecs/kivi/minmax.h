// Asymmetric min/max quantisation of a small group: x = scale * code + zero, zero = min, scale = (max - min) / top.
#pragma once

#include <cstdint>

#include "croquis/base/dtype.h"

namespace croquis::codecs {

// The group's scale and zero as stored: f16, finite whatever x holds. Codes must be taken against these.
struct MinMax {
  f16 scale = 0, zero = 0;
};
MinMax MinMaxOf(float lo, float hi, int top);
// code[i * stride] of n numbers x[i * stride], 0..top, nearest.
void MinMaxCodes(const MinMax& m, int top, const float* x, int64_t n, int64_t stride, uint8_t* code);

// E (x - x^)^2 of standard normal groups of n numbers with codes 0..top, scale and zero exact. By integration over
// the joint density of the extremes, given which the other n - 2 are truncated normals; computed once for each
// argument, thread-safe. n 1..128, top 1..31.
double MinMaxGaussianMse(int top, int64_t n);

}  // namespace croquis::codecs
