#include "croquis/attention/hyper/hash.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "croquis/simd/dense_kernels.h"

namespace croquis::attention::hyper {
namespace {

// Orthonormal columns, left to right; columns without a direction of their own become zero.
void Orthonormalise(std::vector<float>& g, int64_t dim) {
  for (int c = 0; c < kDirections; ++c) {
    for (int before = 0; before < c; ++before) {
      double dot = 0;
      for (int64_t i = 0; i < dim; ++i)
        dot += double(g[size_t(i * kDirections + c)]) * g[size_t(i * kDirections + before)];
      for (int64_t i = 0; i < dim; ++i)
        g[size_t(i * kDirections + c)] -= float(dot) * g[size_t(i * kDirections + before)];
    }
    double squares = 0;
    for (int64_t i = 0; i < dim; ++i) squares += std::pow(double(g[size_t(i * kDirections + c)]), 2);
    const float inverse = squares > 1e-24 ? float(1 / std::sqrt(squares)) : 0.f;
    for (int64_t i = 0; i < dim; ++i) g[size_t(i * kDirections + c)] *= inverse;
  }
}

// Covariance [dim, dim] of up to 512 evenly spaced keys.
std::vector<float> Covariance(const RowsView& k, Range keys) {
  constexpr int64_t kSample = 512;
  const int64_t n = std::min(kSample, keys.size()), dim = k.dim;
  std::vector<float> rows(size_t(n * dim)), columns(size_t(n * dim)), mean(static_cast<size_t>(dim));
  for (int64_t s = 0; s < n; ++s) {
    float* const row = rows.data() + s * dim;
    ReadRows(k, keys.first + s * keys.size() / n, 1, row);
    for (int64_t i = 0; i < dim; ++i) mean[size_t(i)] += row[i] / float(n);
  }
  for (int64_t s = 0; s < n; ++s)
    for (int64_t i = 0; i < dim; ++i) {
      float& x = rows[size_t(s * dim + i)];
      x -= mean[size_t(i)];
      columns[size_t(i * n + s)] = x / float(n);
    }
  std::vector<float> covariance(size_t(dim * dim));
  simd::Dense().small_gemm(columns.data(), n, rows.data(), dim, covariance.data(), dim, dim, dim, n);
  return covariance;
}

}  // namespace

void ReadRows(const RowsView& from, int64_t first, int64_t n, float* to) {
  for (int64_t r = 0; r < n; ++r, to += from.dim) {
    const std::byte* const row = from.Row(first + r);
    if (from.type == simd::RowType::kF32) {
      std::copy_n(reinterpret_cast<const float*>(row), from.dim, to);
    } else if (from.type == simd::RowType::kBf16) {
      const auto* const x = reinterpret_cast<const uint16_t*>(row);
      for (int64_t i = 0; i < from.dim; ++i) to[i] = std::bit_cast<float>(uint32_t(x[i]) << 16);
    } else {
      from.Read(first + r, to);
    }
  }
}

void AddRows(const RowsView& from, std::span<const int32_t> index, float* buffer, float* sum) {
  const int64_t dim = from.dim;
  size_t at = 0;
  if (from.type == simd::RowType::kBf16) {
    const auto row = [&](size_t i) { return reinterpret_cast<const uint16_t*>(from.Row(index[i])); };
    const auto wide = [](uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); };
    for (; at + 4 <= index.size(); at += 4) {  // four at once: the sums are read and written less often
      const uint16_t *a = row(at), *b = row(at + 1), *c = row(at + 2), *d = row(at + 3);
      for (int64_t i = 0; i < dim; ++i) sum[i] += (wide(a[i]) + wide(b[i])) + (wide(c[i]) + wide(d[i]));
    }
  }
  for (; at < index.size(); ++at) {
    const float* x = buffer;
    if (from.type == simd::RowType::kF32)
      x = reinterpret_cast<const float*>(from.Row(index[at]));
    else
      ReadRows(from, index[at], 1, buffer);
    simd::Dense().add(x, dim, sum);
  }
}

std::vector<float> RandomDirections(int64_t dim, const Stream& random) {
  std::vector<float> g(size_t(dim * kDirections));
  for (size_t i = 0; i < g.size(); ++i) g[i] = random.Gaussian(i);
  return g;
}

std::vector<float> PrincipalDirections(const RowsView& k, Range keys, const Stream& random) {
  constexpr int kSteps = 5;
  const int64_t dim = k.dim;
  const std::vector<float> covariance = Covariance(k, keys);
  std::vector<float> g = RandomDirections(dim, random), next(g.size());
  for (int step = 0; step < kSteps; ++step) {
    std::fill(next.begin(), next.end(), 0.f);
    simd::Dense().small_gemm(covariance.data(), dim, g.data(), kDirections, next.data(), kDirections, dim, kDirections,
                             dim);
    g.swap(next);
    Orthonormalise(g, dim);
  }
  return g;
}

}  // namespace croquis::attention::hyper
