// For tests of dense methods: random tensors, and a problem with the memory it stands on.
#pragma once

#include <cmath>
#include <vector>

#include "croquis/attention/method.h"
#include "croquis/attention/reference.h"
#include "croquis/base/dtype.h"
#include "croquis/base/rng.h"

namespace croquis::attention::testing {

// Gaussian numbers [heads, rows, dim], rounded to a type.
class RandomTensor {
 public:
  RandomTensor(uint64_t seed, int64_t heads, int64_t rows, int64_t dim, simd::RowType type = simd::RowType::kF32,
               float size = 1)
      : type_(type), heads_(heads), rows_(rows), dim_(dim), data_(size_t(heads * rows * dim * 4)) {
    const Stream random{seed, Purpose("attention.test_problem")};
    for (int64_t i = 0; i < heads * rows * dim; ++i) Set(i, size * random.Gaussian(uint64_t(i)));
  }
  // Number i, head after head.
  void Set(int64_t i, float x) {
    if (type_ == simd::RowType::kF32)
      reinterpret_cast<float*>(data_.data())[i] = x;
    else
      reinterpret_cast<uint16_t*>(data_.data())[i] = type_ == simd::RowType::kF16 ? FloatToF16(x) : FloatToBf16(x);
  }
  float* f32() { return reinterpret_cast<float*>(data_.data()); }
  TensorView View() const { return {data_.data(), type_, heads_, rows_, dim_, rows_ * dim_, dim_}; }

 private:
  simd::RowType type_;
  int64_t heads_, rows_, dim_;
  std::vector<std::byte> data_;
};

struct Case {
  int64_t heads = 1, kv_heads = 1, nq = 64, nk = 64, dim = 64, value_dim = 64;
  simd::RowType type = simd::RowType::kF32;
  bool causal = false;
  int64_t window = 0;
  float size = 1;  // standard deviation of queries and keys
};

struct RandomProblem {
  RandomTensor q, k, v;
  Problem problem;
  explicit RandomProblem(const Case& c, uint64_t seed = 1)
      : q(3 * seed, c.heads, c.nq, c.dim, c.type, c.size),
        k(3 * seed + 1, c.kv_heads, c.nk, c.dim, c.type, c.size),
        v(3 * seed + 2, c.kv_heads, c.nk, c.value_dim, c.type),
        problem{q.View(), k.View(), v.View(), float(1 / std::sqrt(double(c.dim))), {c.causal, c.nk - c.nq, c.window}} {}
};

// An answer and its log-sum-exps.
struct Answer {
  std::vector<float> out, lse;
  int64_t rows, value_dim;
  explicit Answer(const Problem& p)
      : out(size_t(p.q.heads * p.q.rows * p.v.dim)),
        lse(size_t(p.q.heads * p.q.rows)),
        rows(p.q.rows),
        value_dim(p.v.dim) {}
  Output View() { return {out.data(), rows * value_dim, value_dim, lse.data()}; }
};

}  // namespace croquis::attention::testing
