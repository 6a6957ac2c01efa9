// Heads on which methods of sparse attention are compared: queries and keys in different cones (each has a mean of its
// own), values that depend on keys.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "croquis/attention/test_problem.h"

namespace croquis::attention::testing {

enum class Head {
  kPlanted,   // each query is a noisy copy of a key: a few heavy entries a row
  kFlat,      // independent queries and keys
  kClusters,  // 24 clusters
  kSinks      // planted, and three keys along the mean query with tiny values
};

// One head of n queries and keys. copy: how much of its key a planted query holds.
class HeadData {
 public:
  HeadData(Head head, int64_t n, int64_t dim, uint64_t seed, simd::RowType type = simd::RowType::kF32, float copy = 1)
      : dim_(dim), random_{seed, Purpose("attention.hyper.test_data")}, q_(Noise(n, 1)), k_(Noise(n, 1)) {
    std::vector<int64_t> partner(static_cast<size_t>(n));
    std::iota(partner.begin(), partner.end(), 0);
    for (int64_t i = n - 1; i > 0; --i) std::swap(partner[size_t(i)], partner[size_t(Below(i + 1))]);
    const std::vector<float> key_mean = Noise(1, 1.5f), query_mean = Noise(1, 1.5f), mix = Noise(dim, 1);
    if (head == Head::kPlanted || head == Head::kSinks) {
      const std::vector<float> noise = Noise(n, .6f);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < dim; ++c)
          At(q_, i, c) = copy * At(k_, partner[size_t(i)], c) + noise[size_t(i * dim + c)];
    }
    if (head == Head::kClusters) {
      std::vector<float> centres = Noise(24, 1);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t a = Below(24), b = Below(24);
        for (int64_t c = 0; c < dim; ++c) {
          At(k_, i, c) = At(centres, a, c) + .5f * At(k_, i, c);
          At(q_, i, c) = At(centres, b, c) + .5f * At(q_, i, c);
        }
      }
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < dim; ++c) At(q_, i, c) += query_mean[size_t(c)], At(k_, i, c) += key_mean[size_t(c)];
    v_ = Noise(n, .5f);
    const float size = 1 / std::sqrt(float(dim));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t a = 0; a < dim; ++a)
        for (int64_t c = 0; c < dim; ++c) At(v_, i, c) += size * At(k_, i, a) * mix[size_t(a * dim + c)];
    if (head == Head::kSinks)
      for (int64_t i = 0; i < 3; ++i)
        for (int64_t c = 0; c < dim; ++c)
          At(k_, i, c) = key_mean[size_t(c)] + .9f * query_mean[size_t(c)], At(v_, i, c) *= .05f;
    for (const auto* from : {&q_, &k_, &v_}) {
      tensors_.emplace_back(0, 1, n, dim, type, 0.f);
      for (size_t i = 0; i < from->size(); ++i) tensors_.back().Set(int64_t(i), (*from)[i]);
    }
  }
  Problem Get(bool causal) const {
    return {tensors_[0].View(), tensors_[1].View(), tensors_[2].View(), 1 / std::sqrt(float(dim_)), {causal, 0, 0}};
  }

 private:
  std::vector<float> Noise(int64_t rows, float size) {
    std::vector<float> x(size_t(rows * dim_));
    const Stream mine = random_.Sub(used_++);
    for (size_t i = 0; i < x.size(); ++i) x[i] = size * mine.Gaussian(i);
    return x;
  }
  int64_t Below(int64_t n) { return int64_t((uint64_t(random_.Sub(used_++).U32(0)) * uint64_t(n)) >> 32); }
  float& At(std::vector<float>& x, int64_t row, int64_t c) const { return x[size_t(row * dim_ + c)]; }

  int64_t dim_;
  Stream random_;
  uint64_t used_ = 0;
  std::vector<float> q_, k_, v_;
  std::vector<RandomTensor> tensors_;
};

}  // namespace croquis::attention::testing
