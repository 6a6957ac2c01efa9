#include "croquis/model/transformer_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace croquis::model {
namespace {

// e^x for x in [-87, 88], clamped to it: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' expf coefficients).
inline float Exp(float x) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  x = std::min(std::max(x, -87.f), 88.f);
  const float t = x * 1.44269504f + kMagic, n = t - kMagic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + (std::bit_cast<int32_t>(t) << 23));
}

constexpr int64_t kLanes = 16;  // independent sums, so that they may be vectorised without reordering

}  // namespace

void RmsNorm(const float* x, const float* w, double eps, int64_t n, float* out) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
  double sum = 0;
  for (const float lane : lanes) sum += double(lane);
  for (; i < n; ++i) sum += double(x[i]) * double(x[i]);
  const float scale = float(1 / std::sqrt(sum / double(n) + eps));
  for (i = 0; i < n; ++i) out[i] = x[i] * scale * w[i];
}

void Rope(const float* cos, const float* sin, int64_t pairs, bool interleaved, float* x) {
  if (interleaved) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
    return;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = x[i], b = x[i + pairs];
    x[i] = a * cos[i] - b * sin[i];
    x[i + pairs] = a * sin[i] + b * cos[i];
  }
}

void SiluMul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] / (1.f + Exp(-gate[i])) * up[i];
}

void AddTo(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

bool AllFinite(const float* x, int64_t n) {
  // The exponent field is all ones for NaN and infinities; the maximum of the fields vectorises.
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<uint32_t>(x[i]) & 0x7f800000u);
  return most != 0x7f800000u;
}

}  // namespace croquis::model
