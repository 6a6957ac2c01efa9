#include "croquis/attention/sage/quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace croquis::attention::sage {
namespace {

// Means of the columns.
void Means(const RowsView& rows, std::vector<float>& mean) {
  const auto dim = static_cast<size_t>(rows.dim);
  std::vector<double> sum(dim);
  std::vector<float> row(dim), part(dim);
  for (int64_t r = 0; r < rows.rows; ++r) {
    rows.Read(r, row.data());
    for (size_t i = 0; i < dim; ++i) part[i] += row[i];
    if (r % 64 != 63 && r + 1 < rows.rows) continue;
    for (size_t i = 0; i < dim; ++i) sum[i] += double(part[i]);
    std::fill(part.begin(), part.end(), 0.f);
  }
  for (size_t i = 0; i < dim; ++i) mean[i] = float(sum[i] / double(rows.rows));
}

}  // namespace

int Options::Most(int64_t dim) const {
  if (bits == 4) return 7;
  if (!wide_keys) return 127;
  return std::min(1023, int(std::sqrt(double(std::numeric_limits<int32_t>::max()) / double(dim))));
}

size_t QuantisedSet::Bytes(const Options& options, int64_t keys, int64_t dim, int64_t value_dim) {
  const simd::QuantisedLayout layout = options.Layout(dim, value_dim);
  return size_t((keys + simd::kTileKeys - 1) / simd::kTileKeys) * (layout.KeyBlockBytes() + layout.ValueBlockBytes());
}

QuantisedSet::QuantisedSet(const Options& options, int64_t keys, int64_t dim, int64_t value_dim)
    : options_(options),
      layout_(options.Layout(dim, value_dim)),
      keys_(keys),
      blocks_((keys + simd::kTileKeys - 1) / simd::kTileKeys),
      packed_(Bytes(options, keys, dim, value_dim)),
      scale_(size_t(blocks_ * simd::kTileKeys)),
      mean_(size_t(dim)),
      value_scale_(size_t(blocks_ * layout_.Width())),
      value_mean_(size_t(layout_.Width())),
      offset_(size_t(blocks_ * simd::kTileKeys)) {}

void QuantisedSet::Prepare(const RowsView& k, const RowsView& v) {
  if (options_.smooth_k) Means(k, mean_);
  Means(v, value_mean_);
}

void QuantisedSet::PackBlock(int64_t block, const RowsView& k, const RowsView& v) {
  const simd::QuantisedKernels& kernels = simd::QuantisedTiles();
  const int64_t first = block * simd::kTileKeys, n = std::min(simd::kTileKeys, keys_ - first), units = layout_.Units(),
                width = layout_.Width();
  std::byte* const keys = packed_.data() + size_t(block) * layout_.KeyBlockBytes();
  std::memset(keys, 0, layout_.KeyBlockBytes());
  std::vector<float> row(static_cast<size_t>(layout_.dim)), rows(static_cast<size_t>(n * width));
  std::vector<std::byte> numbers(size_t((layout_.dim + 15) / 16 * 16 * 2));
  for (int64_t t = 0; t < n; ++t) {
    k.Read(first + t, row.data());
    for (size_t i = 0; i < row.size(); ++i) row[i] -= mean_[i];
    scale_[size_t(first + t)] = kernels.round_row(row.data(), layout_.dim, layout_.wide, most(), numbers.data());
    for (int64_t u = 0; u < units; ++u) std::memcpy(keys + (u * simd::kTileKeys + t) * 4, numbers.data() + 4 * u, 4);
    int32_t sum = 0;
    for (int64_t i = 0; i < layout_.dim && !layout_.wide; ++i) sum += int8_t(numbers[size_t(i)]);
    offset_[size_t(first + t)] = -128 * sum;
    v.Read(first + t, rows.data() + t * width);
  }
  kernels.pack_values(
      layout_, rows.data(), value_mean_.data(), n, value_scale_.data() + block * width,
      packed_.data() + size_t(blocks_) * layout_.KeyBlockBytes() + size_t(block) * layout_.ValueBlockBytes());
}

}  // namespace croquis::attention::sage
