#include "croquis/attention/center_score.h"

#include <algorithm>
#include <complex>
#include <cstring>

#include "croquis/attention/workspace.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {
constexpr int64_t kPage = codecs::kPageTokens, kHalf = kPage / 2;
constexpr int64_t kRows = 4;         // query rows whose halves go through a kernel together
constexpr int64_t kMostPairs = 128;  // head_dim 256
}  // namespace

size_t CenterQuery::Bytes(int64_t rows, int64_t head_dim) {
  return Round64(size_t(rows * head_dim) * 4) + Round64(size_t(rows) * 4) + size_t(head_dim / 2 * kHalf) * 4;
}

CenterQuery::CenterQuery(const kvcache::HeadView& head, MatView<const float> q, std::byte* memory) : rows(q.rows) {
  const kvcache::Center& center = *head.center;
  const kvcache::RopeTable& rope = *head.rope;
  turning = center.Turning(rope);
  Pieces pieces(memory);
  waves = pieces.Take<float>(size_t(turning * kHalf));
  still = pieces.Take<float>(size_t(rows));
  z = pieces.Take<float>(size_t(rows * 2 * turning));
  for (int64_t s = 0; s < turning; ++s) std::memcpy(waves + s * kHalf, rope.Waves(center.pair[size_t(s)]), kHalf * 4);
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

size_t CenterScore::Bytes(int64_t head_dim) { return 6 * Round64(size_t(head_dim / 2) * sizeof(double)); }

CenterScore::CenterScore(const kvcache::HeadView& head, const CenterQuery& query, int64_t first_page, std::byte* memory)
    : query_(query), page_(first_page) {
  const kvcache::RopeTable& rope = *head.rope;
  Pieces pieces(memory);
  for (Phase* p : {&phase_[0], &phase_[1], &step_})
    p->re = pieces.Take<double>(size_t(query.turning)), p->im = pieces.Take<double>(size_t(query.turning));
  const double middle = double(head.sinks + kPage * first_page) + double(kHalf - 1) / 2;
  for (int64_t s = 0; s < query.turning; ++s) {
    const int64_t pair = head.center->pair[size_t(s)];
    const auto phase = std::polar(1.0, rope.Frequency(pair) * middle), step = rope.Step(pair);
    phase_[0].re[s] = phase.real(), phase_[0].im[s] = phase.imag();
    step_.re[s] = step.real(), step_.im[s] = step.imag();
  }
  Turn(phase_[0], phase_[1]);
}

void CenterScore::Turn(const Phase& by, const Phase& to) const {
  for (int64_t s = 0; s < query_.turning; ++s) {
    const double re = by.re[s] * step_.re[s] - by.im[s] * step_.im[s];
    const double im = by.re[s] * step_.im[s] + by.im[s] * step_.re[s];
    to.re[s] = re, to.im[s] = im;
  }
}

void CenterScore::Add(int64_t page, float* logits) {
  for (; page_ < page; ++page_) {
    Turn(phase_[1], phase_[0]);
    Turn(phase_[0], phase_[1]);
  }
  const int64_t n = query_.turning;
  alignas(64) float re[2][kMostPairs], im[2][kMostPairs];
  for (int half = 0; half < 2; ++half)
    for (int64_t s = 0; s < n; ++s) re[half][s] = float(phase_[half].re[s]), im[half][s] = float(phase_[half].im[s]);
  alignas(64) float turned[2 * kRows * 2 * kMostPairs], still[2 * kRows];
  for (int64_t first = 0; first < query_.rows; first += kRows) {
    const int64_t rows = std::min(kRows, query_.rows - first);
    for (int64_t row = 0; row < 2 * rows; ++row) {
      const float* __restrict z = query_.z + (first + row / 2) * 2 * n;
      const float* __restrict c = re[row % 2], * __restrict w = im[row % 2];
      float* __restrict to = turned + row * 2 * n;
      for (int64_t s = 0; s < n; ++s) to[s] = z[s] * c[s] - z[n + s] * w[s];
      for (int64_t s = 0; s < n; ++s) to[n + s] = z[s] * w[s] + z[n + s] * c[s];
      still[row] = query_.still[first + row / 2];
    }
    simd::Dense().add_waves(turned, still, 2 * rows, query_.waves, n, logits + first * kPage);
  }
}

}  // namespace croquis::attention
