#include "croquis/transforms/rotation.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "croquis/simd/page_kernels.h"

namespace croquis::transforms {
namespace {

// y = Q x over the m blocks of `block` numbers that x is made of, in place.
template <int M>
void MixBlocks(const float* q, int64_t block, float* x) {
  for (int64_t j = 0; j < block; ++j) {
    float in[M];
    for (int c = 0; c < M; ++c) in[c] = x[c * block + j];
    for (int r = 0; r < M; ++r) {
      float sum = 0;
      for (int c = 0; c < M; ++c) sum += q[r * M + c] * in[c];
      x[r * block + j] = sum;
    }
  }
}

void MixBlocksAny(int m, const float* q, int64_t block, float* x) {
  float in[Rotation::kMaxDim / 32];
  for (int64_t j = 0; j < block; ++j) {
    for (int c = 0; c < m; ++c) in[c] = x[c * block + j];
    for (int r = 0; r < m; ++r) {
      float sum = 0;
      for (int c = 0; c < m; ++c) sum += q[r * m + c] * in[c];
      x[r * block + j] = sum;
    }
  }
}

}  // namespace

Result<Rotation> Rotation::Make(int64_t head_dim, int rounds, uint64_t seed) {
  if (head_dim < 1 || head_dim > kMaxDim)
    return OutOfRange("rotation: head_dim must be 1 to " + std::to_string(kMaxDim) + ", got " +
                      std::to_string(head_dim));
  if (rounds < 1 || rounds > 2) return OutOfRange("rotation: rounds must be 1 or 2, got " + std::to_string(rounds));
  Rotation r;
  r.head_dim_ = head_dim;
  r.padded_ = Padded(head_dim);
  r.rounds_ = rounds;
  r.block_ = r.padded_ & -r.padded_;
  r.odd_ = int(r.padded_ / r.block_);
  const float unit = float(1 / std::sqrt(double(r.block_)));
  const Stream signs{seed, Purpose("rotation.signs")};
  r.signs_.resize(size_t(rounds * r.padded_));
  for (size_t i = 0; i < r.signs_.size(); ++i) r.signs_[i] = unit * signs.Sign(i);
  const auto m = size_t(r.odd_);
  r.hartley_.resize(m * m);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < m; ++j) {
      const double a = 2 * std::numbers::pi * double(i * j % m) / double(m);
      r.hartley_[i * m + j] = float((std::cos(a) + std::sin(a)) / std::sqrt(double(m)));
    }
  return r;
}

// y = (Q (x) H) y, unnormalised in H: the signs carry 1/sqrt(2^k).
void Rotation::Mix(float* y) const noexcept {
  const auto fwht = simd::Pages().fwht;
  for (int c = 0; c < odd_; ++c) fwht(y + c * block_, block_);
  switch (odd_) {
    case 1:
      return;
    case 3:
      return MixBlocks<3>(hartley_.data(), block_, y);
    case 5:
      return MixBlocks<5>(hartley_.data(), block_, y);
    case 7:
      return MixBlocks<7>(hartley_.data(), block_, y);
    default:
      return MixBlocksAny(odd_, hartley_.data(), block_, y);
  }
}

void Rotation::Apply(const float* x, float* y) const noexcept {
  const float* s = signs_.data();
  for (int64_t i = 0; i < head_dim_; ++i) y[i] = x[i] * s[i];
  std::fill(y + head_dim_, y + padded_, 0.f);
  Mix(y);
  if (rounds_ == 1) return;
  s += padded_;
  for (int64_t i = 0; i < padded_; ++i) y[i] *= s[i];
  Mix(y);
}

void Rotation::Inverse(const float* y, float* x) const noexcept {
  alignas(64) float t[kMaxDim];
  std::copy_n(y, padded_, t);
  for (int round = rounds_ - 1; round >= 0; --round) {
    const float* s = signs_.data() + round * padded_;
    Mix(t);
    for (int64_t i = 0; i < padded_; ++i) t[i] *= s[i];
  }
  std::copy_n(t, head_dim_, x);
}

void Rotation::Apply(MatView<const float> x, MatView<float> y) const noexcept {
  for (int64_t r = 0; r < x.rows; ++r) Apply(x.Row(r), y.Row(r));
}

void Rotation::Inverse(MatView<const float> y, MatView<float> x) const noexcept {
  for (int64_t r = 0; r < y.rows; ++r) Inverse(y.Row(r), x.Row(r));
}

}  // namespace croquis::transforms
