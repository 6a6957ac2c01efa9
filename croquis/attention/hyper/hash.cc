#include "croquis/attention/hyper/hash.h"

#include <algorithm>
#include <cmath>

#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/row_kernels.h"

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

std::vector<uint16_t> RankTable(int bits) {
  std::vector<uint16_t> table(size_t(1) << bits);
  for (uint32_t signs = 0; signs < table.size(); ++signs) {
    uint32_t code = 0;
    for (int t = 0; t < bits; ++t) code = code * 2 + (signs >> t & 1);
    table[signs] = uint16_t(GrayRank(code));
  }
  return table;
}

void ReadRows(const RowsView& from, int64_t first, int64_t n, float* to) {
  simd::RowLoops().widen(from.type, from.Row(first), from.stride, nullptr, n, from.dim, to);
}

void AddRows(const RowsView& from, std::span<const int32_t> index, float* sum) {
  simd::RowLoops().add_rows(from.type, from.data, from.stride, index.data(), int64_t(index.size()), from.dim, sum);
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
