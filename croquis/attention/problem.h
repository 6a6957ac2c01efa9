// Attention on tensors: what goes in, what comes out, who sees whom.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "croquis/base/view.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {

// Rows of one head, f32, f16 or bf16. Not owned.
struct RowsView {
  const std::byte* data = nullptr;
  simd::RowType type = simd::RowType::kF32;
  int64_t rows = 0, dim = 0, stride = 0;  // stride in numbers

  RowsView() = default;
  RowsView(const std::byte* d, simd::RowType t, int64_t r, int64_t c, int64_t s)
      : data(d), type(t), rows(r), dim(c), stride(s) {}
  RowsView(MatView<const float> m)  // NOLINT(google-explicit-constructor): a view of the same thing
      : RowsView(reinterpret_cast<const std::byte*>(m.data), simd::RowType::kF32, m.rows, m.cols, m.stride) {}

  const std::byte* Row(int64_t r) const { return data + r * stride * simd::RowTypeBytes(type); }
  RowsView Rows(int64_t begin, int64_t n) const { return {Row(begin), type, n, dim, stride}; }
  // Row r in f32.
  void Read(int64_t r, float* out) const;
};

// [heads, rows, dim] with any strides between heads and rows (in numbers); a row's numbers are contiguous.
struct TensorView {
  const std::byte* data = nullptr;
  simd::RowType type = simd::RowType::kF32;
  int64_t heads = 0, rows = 0, dim = 0;
  int64_t head_stride = 0, row_stride = 0;

  // Heads [first, first + n).
  TensorView Heads(int64_t first, int64_t n) const {
    TensorView some = *this;
    some.data = Head(first).data, some.heads = n;
    return some;
  }
  RowsView Head(int64_t h) const {
    return {data + h * head_stride * simd::RowTypeBytes(type), type, rows, dim, row_stride};
  }
};

// Which keys a query sees. Query i stands at position offset + i among the keys.
struct Mask {
  bool causal = false;  // keys up to the query's position
  int64_t offset = 0;   // usually keys - queries: the last query stands at the last key
  int64_t window = 0;   // 0: all; otherwise keys in (position - window, ..]
};

struct Range {
  int64_t first = 0, last = 0;  // half-open
  int64_t size() const { return std::max<int64_t>(0, last - first); }
};

// q [heads, nq, dim], k [kv_heads, nk, dim], v [kv_heads, nk, value_dim]; heads is a multiple of kv_heads and query
// head h uses kv head h / (heads / kv_heads). Logits are scale * <q, k>.
struct Problem {
  TensorView q, k, v;
  float scale = 1;
  Mask mask;
  int64_t key_length = -1;  // keys that count, from the first on; -1: all
  // Third-order attention (tensor) only: the second keys [kv_heads, nk, dim] and values [kv_heads, nk, value_dim], and
  // logits are scale * sum_x q_x k_x k2_x. Without data: the same as k and v.
  TensorView k2 = {}, v2 = {};

  const TensorView& SecondKeys() const { return k2.data == nullptr ? k : k2; }
  const TensorView& SecondValues() const { return v2.data == nullptr ? v : v2; }
  int64_t Keys() const { return key_length < 0 ? k.rows : key_length; }
  int64_t Group() const { return q.heads / k.heads; }
  // Keys that query i sees.
  Range Visible(int64_t i) const {
    const int64_t at = mask.offset + i, n = Keys();
    const int64_t last = mask.causal ? std::clamp<int64_t>(at + 1, 0, n) : n;
    const int64_t first = mask.window > 0 ? std::clamp<int64_t>(at - mask.window + 1, 0, n) : 0;
    return {std::min(first, last), last};
  }
  // Keys that some of queries [first, first + n) sees, and those between; {0, 0} where there are none.
  Range Seen(int64_t first, int64_t n) const;
  // Pairs that exact attention evaluates, over all heads.
  double Pairs() const;
  // Query head h with its kv head alone.
  Problem OneHead(int64_t h) const;
};

// out [heads, nq, value_dim] and, where lse is not null, the natural log-sum-exp of each row's logits, [heads, nq].
// A row that sees no key gets zeros and kEmptyMax (partial.h).
struct Output {
  float* out = nullptr;
  int64_t head_stride = 0, row_stride = 0;
  float* lse = nullptr;  // head h, row i at lse[h * nq + i]

  MatView<float> Head(int64_t h, int64_t rows, int64_t value_dim) const {
    return {out + h * head_stride, rows, value_dim, row_stride};
  }
  // Head h alone, of `rows` rows.
  Output OneHead(int64_t h, int64_t rows) const {
    return {out + h * head_stride, head_stride, row_stride, lse == nullptr ? nullptr : lse + h * rows};
  }
};

}  // namespace croquis::attention
