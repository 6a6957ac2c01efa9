// Queries, keys and values in small integers, for the kernels of simd/tile_quantised.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/problem.h"
#include "croquis/base/memory.h"
#include "croquis/base/view.h"
#include "croquis/simd/tile_quantised.h"

namespace croquis::attention::sage {

struct Options {
  int bits = 8;          // of queries and keys: numbers up to 127, or 7
  bool smooth_k = true;  // the mean key is taken off all keys
  bool smooth_q = true;  // a tile's mean query is taken off its queries
  bool narrow_values = false;
  bool wide_keys = false;  // queries and keys in 16 bits, as QuantisedKernels::wide asks for

  // The largest integer of queries and keys: 16-bit ones keep three bits more, as long as sums over dim fit 32 bits.
  int Most(int64_t dim) const;
  simd::QuantisedLayout Layout(int64_t dim, int64_t value_dim) const {
    return {dim, value_dim, wide_keys, narrow_values};
  }
};

// Keys and values of one kv head.
class QuantisedSet {
 public:
  // Room for `keys` keys. The caller checks Bytes() first (CheckMemory).
  QuantisedSet(const Options& options, int64_t keys, int64_t dim, int64_t value_dim);
  static size_t Bytes(const Options& options, int64_t keys, int64_t dim, int64_t value_dim);

  int64_t blocks() const { return blocks_; }
  // First the means, then the blocks, also from different threads.
  void Prepare(const RowsView& k, const RowsView& v);
  void PackBlock(int64_t block, const RowsView& k, const RowsView& v);

  bool smooth_q() const { return options_.smooth_q; }
  int most() const { return options_.Most(layout_.dim); }  // of queries and keys
  const simd::QuantisedLayout& layout() const { return layout_; }
  const std::byte* keys() const { return packed_.data(); }
  const std::byte* values() const { return packed_.data() + size_t(blocks_) * layout_.KeyBlockBytes(); }
  const float* key_scale() const { return scale_.data(); }
  const int32_t* key_offset() const { return offset_.data(); }
  std::span<const float> mean() const { return mean_; }             // of the keys; zeros without smooth_k
  const float* value_scale() const { return value_scale_.data(); }  // [blocks, Width()]
  // What is added to answers: the mean value.
  std::span<const float> value_mean() const { return value_mean_; }

 private:
  Options options_;
  simd::QuantisedLayout layout_;
  int64_t keys_, blocks_;
  Buffer packed_;
  std::vector<float> scale_, mean_, value_scale_, value_mean_;
  std::vector<int32_t> offset_;
};

}  // namespace croquis::attention::sage
