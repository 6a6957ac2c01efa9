// Portable form of the dense kernels: the reference of the vector forms, and what runs on other machines.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "croquis/base/dtype.h"
#include "croquis/simd/dense_internal.h"

namespace croquis::simd {
namespace {

constexpr int64_t kChunk = 256;  // dims converted at a time, once for all rows
constexpr int kLanes = 8;        // partial sums of a dot product: shorter chains of rounding than one

void LoadRow(RowType type, const std::byte* x, int64_t n, float* y) {
  if (type == RowType::kF32) {
    std::memcpy(y, x, size_t(n) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint16_t h;
    std::memcpy(&h, x + 2 * i, sizeof h);
    y[i] = type == RowType::kF16 ? F16ToFloat(h) : Bf16ToFloat(h);
  }
}

float Dot(const float* a, const float* b, int64_t n) {
  float s[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) s[l] += a[i + l] * b[i + l];
  for (; i < n; ++i) s[i % kLanes] += a[i] * b[i];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

void ScoreRows(RowType type, MatView<const float> q, const std::byte* k, int64_t stride_bytes, int64_t tokens,
               float* logits, int64_t logit_stride) {
  float row[kChunk];
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < q.rows; ++r) logits[r * logit_stride + t] = 0;
    for (int64_t i = 0; i < q.cols; i += kChunk) {
      const int64_t n = std::min(kChunk, q.cols - i);
      LoadRow(type, k + t * stride_bytes + i * RowTypeBytes(type), n, row);
      for (int64_t r = 0; r < q.rows; ++r) logits[r * logit_stride + t] += Dot(q.data + r * q.stride + i, row, n);
    }
  }
}

// Sums kBlock tokens in registers before they are scaled, as the contract has it, without a buffer for all rows.
void AccumulateRows(RowType type, const float* p, int64_t p_stride, const float* p_scale, int64_t rows,
                    const std::byte* v, int64_t stride_bytes, int64_t tokens, MatView<float> acc) {
  constexpr int64_t kBlock = 16;
  float x[kBlock][kChunk], sum[kChunk];
  for (int64_t t0 = 0; t0 < tokens; t0 += kBlock) {
    const int64_t block = std::min(kBlock, tokens - t0);
    for (int64_t i = 0; i < acc.cols; i += kChunk) {
      const int64_t n = std::min(kChunk, acc.cols - i);
      for (int64_t t = 0; t < block; ++t) LoadRow(type, v + (t0 + t) * stride_bytes + i * RowTypeBytes(type), n, x[t]);
      for (int64_t r = 0; r < rows; ++r) {
        std::fill_n(sum, n, 0.f);
        for (int64_t t = 0; t < block; ++t) {
          const float w = p[r * p_stride + t0 + t];
          for (int64_t j = 0; j < n; ++j) sum[j] += w * x[t][j];
        }
        float* out = acc.data + r * acc.stride + i;
        for (int64_t j = 0; j < n; ++j) out[j] += p_scale[r] * sum[j];
      }
    }
  }
}

void SoftmaxTiles(float* x, int64_t stride, int64_t rows, int64_t n, float* max, float* sum) {
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    float top = kMasked;
    for (int64_t i = 0; i < n; ++i) top = std::max(top, x[i]);
    sum[r] = 0;
    if (top <= kMasked / 2) {
      std::fill_n(x, n, 0.f);
      max[r] = kMasked;
      continue;
    }
    for (int64_t i = 0; i < n; ++i) {
      const float d = x[i] - top;
      x[i] = d < -126.f ? 0.f : std::exp2(d);  // below: nothing beside the 1 of the maximum, and slow denormals
      sum[r] += x[i];
    }
    max[r] = top;
  }
}

void Exp2Tiles(float* x, int64_t stride, int64_t rows, int64_t n, const float* at, float* sum) {
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    sum[r] = 0;
    for (int64_t i = 0; i < n; ++i) {
      x[i] = std::exp2(std::clamp(x[i] - at[r], -126.f, 126.f));
      sum[r] += x[i];
    }
  }
}

void Scale(float* x, int64_t n, float s) {
  for (int64_t i = 0; i < n; ++i) x[i] *= s;
}

void Add(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

void AddWaves(const float* z, const float* still, int64_t rows, const float* waves, int64_t n, float* x) {
  for (int64_t r = 0; r < rows; ++r, z += 2 * n, x += 64)
    for (int64_t b = 0; b < 32; ++b) {
      float even = still[r], odd = 0;
      for (int64_t s = 0; s < n; ++s) {
        even += z[s] * waves[s * 64 + b];
        odd += z[n + s] * waves[s * 64 + 32 + b];
      }
      x[32 + b] += even - odd;
      x[31 - b] += even + odd;
    }
}

bool AllBelow(const float* x, int64_t n, float limit) {
  const float bound = std::min(limit, std::numeric_limits<float>::max());
  for (int64_t i = 0; i < n; ++i)
    if (!(std::fabs(x[i]) <= bound)) return false;
  return true;
}

void SmallGemm(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n,
               int64_t k) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t l = 0; l < k; ++l) {
      const float s = a[i * lda + l];
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += s * b[l * ldb + j];
    }
}

}  // namespace

const DenseKernels& DenseScalar() {
  static constexpr DenseKernels kKernels = {"scalar",     Target::kScalar, ScoreRows, AccumulateRows,
                                            SoftmaxTiles, Exp2Tiles,       Scale,     AddWaves,
                                            Add,          AllBelow,        SmallGemm};
  return kKernels;
}

}  // namespace croquis::simd
