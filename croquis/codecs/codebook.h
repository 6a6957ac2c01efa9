// Lloyd-Max codebooks of the standard normal distribution with integer levels.
#pragma once

#include <array>
#include <cstdint>
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

// Up to here levels are 8-bit integers in one plane; above, two planes (128 * hi + lo), at half the speed. Integer
// levels in one plane raise the error by 0.00, 0.00, 0.00, 0.06, 0.75, 2.0, 11 % at 1 to 7 bits (codebook_test.cc pins
// them).
inline constexpr int kOnePlaneBits = 6;

// Computed once, thread-safe. bits 1..8.
const Codebook& GaussianCodebook(int bits);

// E[(z - value)^2] under N(0, 1) for ascending values with cells ending at midpoints.
double GaussianMse(const std::vector<double>& values);

// What the codebook does to a row x of dim numbers that is rotated to y, scaled to z = y sqrt(dim) / |y| and coded
// as c. Means over rotations: z is a uniform point of the sphere of radius sqrt(dim). Second order in 1/dim.
struct RotatedMoments {
  double zc = 0, cc = 0;    // E[z c], E[c^2] of one coordinate
  double unbiased_mse = 0;  // |x - x^|^2 / |x|^2 with S = |y|^2 / <y, c>
  double raw_mse = 0;       // with S = |y| / sqrt(dim)
};
RotatedMoments MomentsOnSphere(const Codebook& book, int64_t dim);

}  // namespace croquis::codecs
