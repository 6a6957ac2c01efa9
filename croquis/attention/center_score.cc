#include "croquis/attention/center_score.h"

#include <algorithm>
#include <cstring>

#include "croquis/attention/workspace.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {
constexpr int64_t kPage = codecs::kPageTokens;
}  // namespace

// 64 rows of 128 sums are 32 KiB: they stay in the first-level cache's neighbourhood until they are used.
int64_t CenterScore::Batch(int64_t rows) { return std::max<int64_t>(1, 64 / rows); }

size_t CenterQuery::Bytes(int64_t rows, int64_t head_dim) {
  return Round64(size_t(rows * head_dim) * 4) + Round64(size_t(rows) * 4) + size_t(head_dim) * kPage * 4;
}

CenterQuery::CenterQuery(const kvcache::HeadView& head, MatView<const float> q, std::byte* memory) : rows(q.rows) {
  const kvcache::Center& center = *head.center;
  const kvcache::RopeTable& rope = *head.rope;
  turning = center.Turning(rope);
  Pieces pieces(memory);
  table = pieces.Take<float>(size_t(2 * turning * kPage));
  still = pieces.Take<float>(size_t(rows));
  z = pieces.Take<float>(size_t(rows * 2 * turning));
  for (int64_t s = 0; s < turning; ++s) {
    const int64_t pair = center.pair[size_t(s)];
    std::memcpy(table + s * kPage, rope.Cos(pair), kPage * 4);
    std::memcpy(table + (turning + s) * kPage, rope.MinusSin(pair), kPage * 4);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* to = z + r * 2 * turning;
    still[r] = 0;
    for (int64_t s = 0; s < center.pairs; ++s) {
      const auto [a, b] = rope.Dims(center.pair[size_t(s)]);
      const float re = F16ToFloat(center.mu[size_t(2 * s)]), im = F16ToFloat(center.mu[size_t(2 * s + 1)]);
      if (s < turning) {
        to[s] = q(r, a) * re + q(r, b) * im;
        to[turning + s] = q(r, a) * im - q(r, b) * re;
      } else {
        still[r] += q(r, a) * re + q(r, b) * im;
      }
    }
  }
}

size_t CenterScore::Bytes(int64_t rows, int64_t head_dim) {
  const size_t batch = size_t(Batch(rows) * rows);
  return Round64(batch * size_t(head_dim) * 4) + batch * kPage * 4 +
         2 * Round64(size_t(head_dim) / 2 * sizeof(std::complex<double>));
}

CenterScore::CenterScore(const kvcache::HeadView& head, const CenterQuery& query, int64_t first_page, int64_t last_page,
                         std::byte* memory)
    : query_(query), last_page_(last_page), begin_(first_page), end_(first_page) {
  const kvcache::RopeTable& rope = *head.rope;
  const size_t batch = size_t(Batch(query.rows) * query.rows), phases = size_t(query.turning);
  Pieces pieces(memory);
  coefficients_ = pieces.Take<float>(batch * 2 * phases);
  sums_ = pieces.Take<float>(batch * kPage);
  phase_ = pieces.Take<std::complex<double>>(phases);
  step_ = pieces.Take<std::complex<double>>(phases);
  for (int64_t s = 0; s < query.turning; ++s) {
    const int64_t pair = head.center->pair[size_t(s)];
    phase_[s] = std::polar(1.0, rope.Frequency(pair) * double(head.sinks + kPage * first_page));
    step_[s] = rope.Step(pair);
  }
}

void CenterScore::Fill() {
  begin_ = end_;
  end_ = std::min(last_page_, begin_ + Batch(query_.rows));
  const int64_t n = query_.turning, rows = query_.rows;
  for (int64_t page = begin_; page < end_; ++page) {
    alignas(64) float c[128], s[128];
    for (int64_t i = 0; i < n; ++i) {
      c[i] = float(phase_[i].real()), s[i] = float(phase_[i].imag());
      const double re = phase_[i].real() * step_[i].real() - phase_[i].imag() * step_[i].imag();
      const double im = phase_[i].real() * step_[i].imag() + phase_[i].imag() * step_[i].real();
      phase_[i] = {re, im};
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = (page - begin_) * rows + r;
      const float* __restrict z = query_.z + r * 2 * n;
      float* __restrict out = coefficients_ + row * 2 * n;
      for (int64_t i = 0; i < n; ++i) out[i] = z[i] * c[i] - z[n + i] * s[i];
      for (int64_t i = 0; i < n; ++i) out[n + i] = z[i] * s[i] + z[n + i] * c[i];
      std::fill_n(sums_ + row * kPage, kPage, query_.still[r]);
    }
  }
  simd::Dense().small_gemm(coefficients_, 2 * n, query_.table, kPage, sums_, kPage, (end_ - begin_) * rows, kPage,
                           2 * n);
}

void CenterScore::Add(int64_t page, float* logits) {
  while (page >= end_) Fill();
  simd::Dense().add(sums_ + (page - begin_) * query_.rows * kPage, query_.rows * kPage, logits);
}

}  // namespace croquis::attention
