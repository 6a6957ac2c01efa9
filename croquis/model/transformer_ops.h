// The small operations between matrix products. Plain loops that compilers vectorise: beside the products and attention
// they take a few microseconds a token.
#pragma once

#include <cstdint>

namespace croquis::model {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]; out may be x. (Zhang and Sennrich, arXiv 1910.07467.)
void RmsNorm(const float* x, const float* w, double eps, int64_t n, float* out);
// Rotates one head of 2 * pairs numbers by the angles whose cosines and sines are given. Pairs are (i, i + pairs), or
// (2i, 2i + 1) when interleaved. (Su et al., arXiv 2104.09864.)
void Rope(const float* cos, const float* sin, int64_t pairs, bool interleaved, float* x);
// out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]. Error of the exponential: below 2e-7 relative.
void SiluMul(const float* gate, const float* up, int64_t n, float* out);
// y[i] += x[i].
void AddTo(const float* x, int64_t n, float* y);
// False when any number is NaN or infinite.
bool AllFinite(const float* x, int64_t n);

}  // namespace croquis::model
