// Random rotation of one head: y = R x with R orthonormal, so that every coordinate of y is close to Gaussian
// whatever x was, and inner products are kept.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/base/rng.h"
#include "croquis/base/view.h"

namespace croquis::transforms {

// One round is y = (Q_m (x) H_{2^k} / sqrt(2^k)) D x on the zero-padded vector: D random signs, H the Walsh-Hadamard
// matrix, Q_m the orthonormal Hartley matrix cas(2 pi i j / m) / sqrt(m). padded = 2^k * m is the next multiple of
// 32 and m its odd part, so that the whole head is always mixed and 80, 96, 112, 192 numbers are not padded to a power
// of two. Both factors are symmetric and their own inverse.
// Two rounds restore unbiased estimates for sparse rows at 1 and 2 bits (spec kv-cache 0.3, 0.5).
// The same bits on every instruction set: only additions in a fixed order and products that are rounded separately.
class Rotation {
 public:
  static constexpr int64_t kMaxDim = 512;

  // head_dim 1..512, rounds 1 or 2; errors otherwise. `seed` fixes the signs.
  static Result<Rotation> Make(int64_t head_dim, int rounds, uint64_t seed);
  // The next multiple of 32.
  static constexpr int64_t Padded(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

  int64_t HeadDim() const { return head_dim_; }
  int64_t PaddedDim() const { return padded_; }
  int Rounds() const { return rounds_; }

  // y [PaddedDim] = R x, x [HeadDim]. x and y may not overlap.
  void Apply(const float* x, float* y) const noexcept;
  // x [HeadDim] = R^T y, y [PaddedDim]. x and y may not overlap.
  void Inverse(const float* y, float* x) const noexcept;
  // The same for each row.
  void Apply(MatView<const float> x, MatView<float> y) const noexcept;
  void Inverse(MatView<const float> y, MatView<float> x) const noexcept;

 private:
  Rotation() = default;
  void Mix(float* y) const noexcept;

  int64_t head_dim_ = 0, padded_ = 0, block_ = 0;  // block_ = 2^k
  int odd_ = 1, rounds_ = 1;
  std::vector<float> signs_;    // [rounds, padded]: +-1/sqrt(2^k)
  std::vector<float> hartley_;  // [m, m]
};

}  // namespace croquis::transforms
