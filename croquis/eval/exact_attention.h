// Attention in double over plain rows: what kernels are held against.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "croquis/base/view.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::eval {

// Softmax attention of a few query rows over keys and values that come in blocks, everything in double.
class ExactAttention {
 public:
  // q [rows, dim], logits are scale * <q, k>.
  ExactAttention(const float* q, int64_t rows, int64_t dim, double scale);
  // k, v [n, dim].
  void Add(MatView<const float> k, MatView<const float> v);
  // out [rows, dim]: zeros when nothing was added.
  void Finish(double* out) const;

 private:
  int64_t rows_, dim_;
  std::vector<double> q_, max_, mass_, sum_;
};

// Calls use(first position, keys, values) for blocks of at most 128 tokens that together are all that the view holds,
// as decoded by the codecs' reference path, with the common part of the keys added back.
void ForEachStoredBlock(const kvcache::HeadView& view, int64_t head_dim,
                        const std::function<void(int64_t, MatView<const float>, MatView<const float>)>& use);

// |x - y| / |y| over all entries; 0 when both are 0.
double RelativeError(std::span<const float> x, std::span<const double> y);

}  // namespace croquis::eval
