#include "croquis/attention/stream.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <optional>

#include "croquis/attention/center_score.h"
#include "croquis/attention/partial.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
// A page whose largest logit is 30 (natural) below the running maximum of every row adds less than 128 e^-30 = 1.2e-11
// of the mass, far below half a unit in the last place of a float (6e-8): leaving it out changes nothing.
constexpr float kNegligible = float(30 * std::numbers::log2e);

constexpr size_t Round64(size_t n) { return (n + 63) / 64 * 64; }

size_t ScratchBytes(const kvcache::HeadView& head, int64_t rows) {
  return Round64(std::max(head.key->ScratchBytes(rows), head.value->ScratchBytes(rows)));
}

}  // namespace

size_t Stream::Bytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim) {
  const size_t n = size_t(rows);
  return Round64(n * size_t(head.value->AccDim()) * 4) + Round64(n * size_t(head_dim) * 4) + 3 * Round64(n * 4) +
         n * kDenseTile * 4 + Round64(head.key->QueryBytes(rows)) + ScratchBytes(head, rows) +
         (head.center ? CenterScore::Bytes(rows, head_dim) : 0);
}

Stream::Stream(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible,
               std::byte* memory)
    : head_(head), q_(q), visible_(visible) {
  const auto take = [&memory](size_t bytes) {
    std::byte* at = memory;
    memory += Round64(bytes);
    return at;
  };
  const size_t n = size_t(q.rows);
  const int64_t acc_dim = head.value->AccDim();
  acc_ = {reinterpret_cast<float*>(take(n * size_t(acc_dim) * 4)), q.rows, acc_dim};
  out_ = {reinterpret_cast<float*>(take(n * size_t(q.cols) * 4)), q.rows, q.cols};
  m_ = reinterpret_cast<float*>(take(n * 4));
  l_ = reinterpret_cast<float*>(take(n * 4));
  p_scale_ = reinterpret_cast<float*>(take(n * 4));
  logits_ = reinterpret_cast<float*>(take(n * kDenseTile * 4));
  query_ = take(head.key->QueryBytes(q.rows));
  scratch_ = take(ScratchBytes(head, q.rows));
  center_ = memory;
  std::memset(out_.data, 0, n * size_t(q.cols) * 4);
  std::fill_n(m_, n, simd::kMasked);
  std::fill_n(l_, n, 0.f);
  first_visible_ = visible[0].first, last_visible_ = visible[0].last;
  for (const Visible& v : visible)
    first_visible_ = std::min(first_visible_, v.first), last_visible_ = std::max(last_visible_, v.last);
}

float Stream::max(int64_t row) const { return l_[row] == 0 ? kEmptyMax : m_[row] * std::numbers::ln2_v<float>; }

bool Stream::Softmax(int64_t row, int64_t lo, int64_t hi, int64_t width, float* x, float* acc, int64_t acc_cols) {
  float top = simd::kMasked;
  const float sum = simd::Dense().softmax_tile(x + lo, hi - lo, x + lo, &top);
  std::fill(x, x + lo, 0.f);
  std::fill(x + hi, x + width, 0.f);
  p_scale_[row] = 0;
  if (sum == 0) return false;
  if (top > m_[row]) {
    if (l_[row] > 0) {
      const float down = std::exp2(m_[row] - top);
      simd::Dense().scale(acc, acc_cols, down);
      l_[row] *= down;
    }
    m_[row] = top;
    p_scale_[row] = 1;
    l_[row] += sum;
    return true;
  }
  if (top < m_[row] - kNegligible) return false;
  p_scale_[row] = std::exp2(top - m_[row]);
  l_[row] += sum * p_scale_[row];
  return true;
}

void Stream::Pages(int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t rows = q_.rows;
  // Pages that no row sees.
  begin = std::max(begin, std::max<int64_t>(0, first_visible_ - head_.sinks) / kPage);
  if (begin >= end) return;
  head_.key->Prepare(q_, 1.f, query_);
  std::optional<CenterScore> center;
  if (head_.center != nullptr) center.emplace(head_, q_, begin, end, center_);
  std::memset(acc_.data, 0, size_t(rows * acc_.cols) * 4);
  const size_t key_bytes = head_.key->PageBytes(), value_bytes = head_.value->PageBytes();
  for (int64_t j = begin; j < end; ++j) {
    // Prefetched is what comes a whole page later, keys while scoring and values while summing: 12 % faster at 2 to 4
    // bits than the value page about to be read, and than a page and a half.
    const bool more = j + 1 < end;
    head_.key->Score(head_.KeyPage(j), query_, rows, more ? head_.KeyPage(j + 1) : nullptr, more ? key_bytes : 0,
                     logits_, scratch_);
    if (center) center->Add(j, logits_);
    const int64_t start = head_.sinks + j * kPage, tokens = std::min(kPage, head_.encoded - j * kPage);
    bool any = false;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t lo = std::clamp<int64_t>(visible_[size_t(r)].first - start, 0, tokens);
      const int64_t hi = std::clamp<int64_t>(visible_[size_t(r)].last - start, lo, tokens);
      any |= Softmax(r, lo, hi, kPage, logits_ + r * kPage, acc_.Row(r), acc_.cols);
    }
    if (!any) continue;
    head_.value->Accumulate(head_.ValuePage(j), logits_, p_scale_, rows, more ? head_.ValuePage(j + 1) : nullptr,
                            more ? value_bytes : 0, acc_, scratch_);
  }
  head_.value->Finish(acc_, out_);
}

void Stream::Dense(std::span<const DenseRows> segments) {
  // Cuts to what is visible and to tiles; several short segments share one.
  DenseRows tile[4];
  size_t held = 0;
  int64_t tokens = 0;
  for (const DenseRows& s : segments) {
    const int64_t from = std::max(s.position, first_visible_), to = std::min(s.position + s.tokens, last_visible_);
    for (int64_t p = from; p < to;) {
      const int64_t n = std::min(to - p, kDenseTile - tokens), skip = (p - s.position) * head_.row_bytes;
      tile[held++] = {s.k + skip, s.v + skip, p, n};
      tokens += n, p += n;
      if (tokens == kDenseTile || held == std::size(tile)) {
        DenseTile({tile, held}, tokens);
        held = 0, tokens = 0;
      }
    }
  }
  if (held > 0) DenseTile({tile, held}, tokens);
}

void Stream::DenseTile(std::span<const DenseRows> segments, int64_t tokens) {
  const auto& kernels = simd::Dense();
  int64_t at = 0;
  for (const DenseRows& s : segments) {
    kernels.score_rows(head_.type, q_, s.k, head_.row_bytes, s.tokens, logits_ + at, kDenseTile);
    at += s.tokens;
  }
  // Slots of the tile below a position: segments ascend, so what a row sees is one range of slots.
  const auto below = [&](int64_t position) {
    int64_t n = 0;
    for (const DenseRows& s : segments) n += std::clamp<int64_t>(position - s.position, 0, s.tokens);
    return n;
  };
  bool any = false;
  for (int64_t r = 0; r < q_.rows; ++r) {
    const int64_t lo = below(visible_[size_t(r)].first), hi = std::max(lo, below(visible_[size_t(r)].last));
    any |= Softmax(r, lo, hi, tokens, logits_ + r * kDenseTile, out_.Row(r), out_.cols);
  }
  if (!any) return;
  at = 0;
  for (const DenseRows& s : segments) {
    kernels.accumulate_rows(head_.type, logits_ + at, kDenseTile, p_scale_, q_.rows, s.v, head_.row_bytes, s.tokens,
                            out_);
    at += s.tokens;
  }
}

}  // namespace croquis::attention
