// Portable form of the feature kernels: the reference of the vector forms, and what runs on other machines.
#include <cmath>

#include "croquis/simd/feature_internal.h"

namespace croquis::simd {
namespace {

constexpr int kLanes = 8;  // partial sums: shorter chains of rounding than one, and vectors where there are any

template <class At>
float Sum(int64_t n, const At& at) {
  float s[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) s[l] += at(i + l);
  for (; i < n; ++i) s[i % kLanes] += at(i);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

void SquareRows(const float* x, int64_t ldx, int64_t rows, int64_t n, int64_t u_begin, int64_t u_end, float* out,
                int64_t ldo) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, out += ldo) {
    float* to = out;
    for (int64_t u = u_begin; u < u_end; to += n - u, ++u)
      for (int64_t v = u; v < n; ++v) to[v - u] = x[u] * x[v];
  }
}

void SquareColumns(const float* xt, int64_t ldx, int64_t columns, int64_t n, int64_t u_begin, int64_t u_end, float same,
                   float other, float* out, int64_t ldo, float* sums) {
  for (int64_t u = u_begin; u < u_end; ++u)
    for (int64_t v = u; v < n; ++v, out += ldo, ++sums) {
      const float *a = xt + u * ldx, *b = xt + v * ldx, w = u == v ? same : other;
      for (int64_t t = 0; t < columns; ++t) out[t] = w * a[t] * b[t];
      *sums += Sum(columns, [&](int64_t t) { return out[t]; });
    }
}

void EvenPowers(float* t, int64_t ld, int64_t rows, int64_t cols, int power, const int32_t* last, float* mass) {
  for (int64_t r = 0; r < rows; ++r, t += ld) {
    for (int64_t c = 0; c < cols; ++c) {
      const float square = t[c] * t[c];
      float y = 1;
      for (int i = 0; i < power; i += 2) y *= square;
      t[c] = c < last[r] ? y : 0.f;
    }
    mass[r] += Sum(cols, [&](int64_t c) { return t[c]; });
  }
}

void Product(const float* a, const float* b, float s, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = s * a[i] * b[i];
}

void RowDots(const float* a, int64_t lda, int64_t rows, int64_t n, const float* z, float* out) {
  for (int64_t r = 0; r < rows; ++r) out[r] += Sum(n, [&](int64_t i) { return a[r * lda + i] * z[i]; });
}

void RowSums(const float* a, int64_t lda, int64_t rows, int64_t n, float* out) {
  for (int64_t r = 0; r < rows; ++r) out[r] += Sum(n, [&](int64_t i) { return a[r * lda + i]; });
}

void ScanStep(float* x, float* carry, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float before = carry[i];
    carry[i] = before + x[i];
    x[i] = before;
  }
}

void Exp(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] < -87.f ? 0.f : std::exp(std::fmin(x[i], 88.f));
}

void LayerNorm(float* x, int64_t rows, int64_t n, float eps, float factor) {
  for (int64_t r = 0; r < rows; ++r, x += n) {
    const float mean = Sum(n, [&](int64_t i) { return x[i]; }) / float(n);
    const float variance = Sum(n, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / float(n);
    const float scale = factor / std::sqrt(variance + eps);
    for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - mean) * scale;
  }
}

void RankOne(const float* u, int64_t features, const float* v, int64_t n, float* a) {
  for (int64_t f = 0; f < features; ++f, a += n)
    for (int64_t i = 0; i < n; ++i) a[i] += u[f] * v[i];
}

void TripleSums(const float* u, int64_t features, const float* a, const float* b, int64_t n, float* out) {
  for (int64_t f = 0; f < features; ++f, a += n, b += n)
    for (int64_t i = 0; i < n; ++i) out[i] += u[f] * a[i] * b[i];
}

}  // namespace

const FeatureKernels& FeaturesScalar() {
  static constexpr FeatureKernels kKernels = {"scalar",  Target::kScalar, SquareRows, SquareColumns, EvenPowers,
                                              Product,   RowDots,         RowSums,    ScanStep,      Exp,
                                              LayerNorm, RankOne,         TripleSums};
  return kKernels;
}

}  // namespace croquis::simd
