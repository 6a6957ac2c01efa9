#include "croquis/attention/sage/quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace croquis::attention::sage {
namespace {

constexpr float kSmallest = 1e-30f;  // magnitudes below are zeros: their inverse could overflow

// Rounds to the nearest integer, ties to even, by adding what shifts the fraction out; |x| below 2^22.
int32_t Nearest(float x) {
  constexpr float kShift = 0x1.8p23f;
  return int32_t((x + kShift) - kShift);
}

float Largest(const float* x, int64_t n) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  return largest;
}

// Means of the columns.
void Means(const RowsView& rows, std::vector<float>& mean) {
  std::vector<double> sum(static_cast<size_t>(rows.dim));
  std::vector<float> row(static_cast<size_t>(rows.dim)), part(static_cast<size_t>(rows.dim));
  for (int64_t r = 0; r < rows.rows; ++r) {
    rows.Read(r, row.data());
    for (size_t i = 0; i < row.size(); ++i) part[i] += row[i];
    if (r % 64 != 63 && r + 1 < rows.rows) continue;
    for (size_t i = 0; i < row.size(); ++i) sum[i] += double(part[i]);
    std::fill(part.begin(), part.end(), 0.f);
  }
  for (size_t i = 0; i < sum.size(); ++i) mean[i] = float(sum[i] / double(rows.rows));
}

}  // namespace

float Quantise(std::span<const float> x, int most, int8_t* out) {
  const float largest = Largest(x.data(), int64_t(x.size()));
  if (largest < kSmallest) {
    std::memset(out, 0, x.size());
    return 0;
  }
  const float inverse = float(most) / largest;
  for (size_t i = 0; i < x.size(); ++i) out[i] = int8_t(Nearest(x[i] * inverse));
  return largest / float(most);
}

size_t QuantisedSet::Bytes(const Options& options, int64_t keys, int64_t dim, int64_t value_dim) {
  const simd::QuantisedLayout layout{dim, value_dim, options.narrow_values};
  return size_t((keys + simd::kTileKeys - 1) / simd::kTileKeys) * (layout.KeyBlockBytes() + layout.ValueBlockBytes());
}

QuantisedSet::QuantisedSet(const Options& options, int64_t keys, int64_t dim, int64_t value_dim)
    : options_(options),
      layout_{dim, value_dim, options.narrow_values},
      keys_(keys),
      blocks_((keys + simd::kTileKeys - 1) / simd::kTileKeys),
      packed_(Bytes(options, keys, dim, value_dim)),
      scale_(size_t(blocks_ * simd::kTileKeys)),
      mean_(size_t(dim)),
      value_scale_(size_t(value_dim)),
      value_mean_(size_t(value_dim)),
      offset_(size_t(blocks_ * simd::kTileKeys)) {}

void QuantisedSet::Prepare(const RowsView& k, const RowsView& v) {
  if (options_.smooth_k) Means(k, mean_);
  Means(v, value_mean_);
  std::vector<float> row(static_cast<size_t>(v.dim)), largest(static_cast<size_t>(v.dim));
  for (int64_t r = 0; r < v.rows; ++r) {
    v.Read(r, row.data());
    for (size_t i = 0; i < row.size(); ++i) largest[i] = std::max(largest[i], std::abs(row[i] - value_mean_[i]));
  }
  const float most = options_.narrow_values ? 127 : simd::kQuantisedValues;
  for (size_t i = 0; i < largest.size(); ++i) value_scale_[i] = largest[i] < kSmallest ? 0 : largest[i] / most;
}

void QuantisedSet::PackBlock(int64_t block, const RowsView& k, const RowsView& v) {
  const int64_t first = block * simd::kTileKeys, n = std::min(simd::kTileKeys, keys_ - first), dim = layout_.dim,
                value_dim = layout_.value_dim, width = layout_.Width();
  std::byte* const keys = packed_.data() + size_t(block) * layout_.KeyBlockBytes();
  std::byte* const values =
      packed_.data() + size_t(blocks_) * layout_.KeyBlockBytes() + size_t(block) * layout_.ValueBlockBytes();
  std::memset(keys, 0, layout_.KeyBlockBytes());
  std::memset(values, 0, layout_.ValueBlockBytes());
  std::vector<float> row(static_cast<size_t>(std::max(dim, value_dim)));
  std::vector<int8_t> small(static_cast<size_t>(layout_.Units() * 4));
  std::vector<float> inverse(static_cast<size_t>(value_dim));
  for (size_t i = 0; i < inverse.size(); ++i) inverse[i] = value_scale_[i] == 0 ? 0 : 1 / value_scale_[i];
  for (int64_t t = 0; t < n; ++t) {
    k.Read(first + t, row.data());
    for (int64_t i = 0; i < dim; ++i) row[size_t(i)] -= mean_[size_t(i)];
    scale_[size_t(first + t)] = Quantise({row.data(), size_t(dim)}, options_.bits == 4 ? 7 : 127, small.data());
    int32_t sum = 0;
    for (int64_t u = 0; u < layout_.Units(); ++u) {
      std::memcpy(keys + (u * simd::kTileKeys + t) * 4, small.data() + 4 * u, 4);
      for (int64_t i = 0; i < 4; ++i) sum += small[size_t(4 * u + i)];
    }
    offset_[size_t(first + t)] = -128 * sum;
    v.Read(first + t, row.data());
    const int64_t together = layout_.narrow ? 4 : 2, at = t / together * width * together + t % together;
    for (int64_t i = 0; i < value_dim; ++i) {
      const int32_t x = Nearest((row[size_t(i)] - value_mean_[size_t(i)]) * inverse[size_t(i)]);
      if (layout_.narrow)
        reinterpret_cast<int8_t*>(values)[at + i * together] = int8_t(x);
      else
        reinterpret_cast<int16_t*>(values)[at + i * together] = int16_t(x);
    }
  }
}

}  // namespace croquis::attention::sage
