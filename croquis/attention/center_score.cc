#include "croquis/attention/center_score.h"

#include <algorithm>
#include <cstring>

#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {
constexpr int64_t kPage = codecs::kPageTokens;
constexpr size_t Round64(size_t n) { return (n + 63) / 64 * 64; }
}  // namespace

// 64 rows of 128 sums are 32 KiB: they stay in the first-level cache's neighbourhood until they are used.
int64_t CenterScore::Batch(int64_t rows) { return std::max<int64_t>(1, 64 / rows); }

size_t CenterScore::Bytes(int64_t rows, int64_t head_dim) {
  const size_t columns = size_t(head_dim) + 1, batch = size_t(Batch(rows) * rows);
  return Round64(size_t(rows) * columns * 4) + columns * kPage * 4 + Round64(batch * columns * 4) + batch * kPage * 4 +
         2 * Round64(size_t(head_dim) / 2 * sizeof(std::complex<double>));
}

CenterScore::CenterScore(const kvcache::HeadView& head, MatView<const float> q, int64_t first_page, int64_t last_page,
                         std::byte* memory)
    : rows_(q.rows), last_page_(last_page), begin_(first_page), end_(first_page) {
  const kvcache::Center& center = *head.center;
  const kvcache::RopeTable& rope = *head.rope;
  turning_ = center.Turning(rope);
  const bool constant = turning_ < center.pairs;
  columns_ = 2 * turning_ + (constant ? 1 : 0);
  const size_t batch = size_t(Batch(rows_) * rows_), columns = size_t(columns_);
  const auto take = [&memory](size_t bytes) {
    std::byte* at = memory;
    memory += Round64(bytes);
    return at;
  };
  z_ = reinterpret_cast<float*>(take(size_t(rows_) * columns * 4));
  table_ = reinterpret_cast<float*>(take(columns * kPage * 4));
  coefficients_ = reinterpret_cast<float*>(take(batch * columns * 4));
  sums_ = reinterpret_cast<float*>(take(batch * kPage * 4));
  phase_ = reinterpret_cast<std::complex<double>*>(take(size_t(turning_) * sizeof(std::complex<double>)));
  step_ = reinterpret_cast<std::complex<double>*>(take(size_t(turning_) * sizeof(std::complex<double>)));

  for (int64_t s = 0; s < turning_; ++s) {
    const int64_t pair = center.pair[size_t(s)];
    std::memcpy(table_ + s * kPage, rope.Cos(pair), kPage * 4);
    std::memcpy(table_ + (turning_ + s) * kPage, rope.MinusSin(pair), kPage * 4);
    phase_[s] = std::polar(1.0, rope.Frequency(pair) * double(head.sinks + kPage * first_page));
    step_[s] = rope.Step(pair);
  }
  if (constant) std::fill_n(table_ + 2 * turning_ * kPage, kPage, 1.f);
  for (int64_t r = 0; r < rows_; ++r) {
    float* z = z_ + r * columns_;
    float still = 0;
    for (int64_t s = 0; s < center.pairs; ++s) {
      const auto [a, b] = rope.Dims(center.pair[size_t(s)]);
      const float re = F16ToFloat(center.mu[size_t(2 * s)]), im = F16ToFloat(center.mu[size_t(2 * s + 1)]);
      if (s < turning_) {
        z[s] = q(r, a) * re + q(r, b) * im;
        z[turning_ + s] = q(r, a) * im - q(r, b) * re;
      } else {
        still += q(r, a) * re + q(r, b) * im;
      }
    }
    if (constant) z[2 * turning_] = still;
  }
}

void CenterScore::Fill() {
  begin_ = end_;
  end_ = std::min(last_page_, begin_ + Batch(rows_));
  const int64_t n = turning_;
  for (int64_t page = begin_; page < end_; ++page) {
    alignas(64) float c[128], s[128];
    for (int64_t i = 0; i < n; ++i) {
      c[i] = float(phase_[i].real()), s[i] = float(phase_[i].imag());
      const double re = phase_[i].real() * step_[i].real() - phase_[i].imag() * step_[i].imag();
      const double im = phase_[i].real() * step_[i].imag() + phase_[i].imag() * step_[i].real();
      phase_[i] = {re, im};
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const float* z = z_ + r * columns_;
      float* out = coefficients_ + ((page - begin_) * rows_ + r) * columns_;
      for (int64_t i = 0; i < n; ++i) {
        out[i] = z[i] * c[i] - z[n + i] * s[i];
        out[n + i] = z[i] * s[i] + z[n + i] * c[i];
      }
      if (columns_ > 2 * n) out[2 * n] = z[2 * n];
    }
  }
  const int64_t rows = (end_ - begin_) * rows_;
  std::memset(sums_, 0, size_t(rows * kPage) * 4);
  simd::Dense().small_gemm(coefficients_, columns_, table_, kPage, sums_, kPage, rows, kPage, columns_);
}

void CenterScore::Add(int64_t page, float* logits) {
  while (page >= end_) Fill();
  simd::Dense().add(sums_ + (page - begin_) * rows_ * kPage, rows_ * kPage, logits);
}

}  // namespace croquis::attention
