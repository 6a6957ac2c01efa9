// Lloyd-Max codebooks of the standard normal distribution with integer levels.
#pragma once

#include <array>
#include <vector>

#include "croquis/simd/page_kernels.h"

namespace croquis::codecs {

// The 2^bits centroids of the optimal scalar quantiser of N(0, 1), ascending, symmetric, to 1e-12: each is the mean
// of its cell, cells end at midpoints (Lloyd 1957, Max 1960). bits 1..8.
std::vector<double> LloydMax(int bits);

// What rows are really quantised with: the integer levels are normative, value = step * L, so that integer
// kernels agree on every instruction set; thresholds are midpoints of those values.
struct Codebook {
  int bits = 0;
  simd::Levels levels;
  std::array<float, 256> value{};      // 2^bits, ascending
  std::array<float, 255> threshold{};  // 2^bits - 1, ascending; threshold[2^(bits-1) - 1] = 0
  double mse = 0;                      // E(z - value)^2 for z ~ N(0, 1)
};

// One plane of 8-bit levels for 1..5 bits, two (128 * hi + lo) for 6..8 where rounding to one costs more than 2 % of
// the error. Computed once, thread-safe. bits 1..8.
const Codebook& GaussianCodebook(int bits);

// E[(z - value)^2] under N(0, 1) for ascending values with cells ending at midpoints.
double GaussianMse(const std::vector<double>& values);

}  // namespace croquis::codecs
