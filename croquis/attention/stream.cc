#include "croquis/attention/stream.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

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
         Round64(head.key->QueryBytes(rows)) + (head.center ? CenterScore::Bytes(rows, head_dim) : 0);
}

size_t Stream::SharedBytes(const kvcache::HeadView& head, int64_t rows) {
  return size_t(rows) * kDenseTile * 4 + ScratchBytes(head, rows);
}

Stream::Stream(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible,
               std::byte* memory, std::byte* shared)
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
  query_ = take(head.key->QueryBytes(q.rows));
  center_memory_ = memory;
  logits_ = reinterpret_cast<float*>(shared);
  scratch_ = shared + n * kDenseTile * 4;
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

void Stream::Pages(std::span<Stream> streams, int64_t begin, int64_t end) {
  // Pages that no row sees; all streams see the same.
  begin = std::max(begin, std::max<int64_t>(0, streams[0].first_visible_ - streams[0].head_.sinks) / kPage);
  if (begin >= end) return;
  for (Stream& s : streams) s.BeginPages(begin, end);
  for (int64_t j = begin; j < end; ++j)
    for (size_t i = 0; i < streams.size(); ++i) {
      const bool last = i + 1 == streams.size();
      const kvcache::HeadView& next = streams[last ? 0 : i + 1].head_;
      const std::byte* page = last && j + 1 == end ? nullptr : next.KeyPage(last ? j + 1 : j);
      streams[i].Page(j, page, page == nullptr ? 0 : next.key->PageBytes());
    }
  for (Stream& s : streams) s.head_.value->Finish(s.acc_, s.out_);
}

void Stream::BeginPages(int64_t begin, int64_t end) {
  head_.key->Prepare(q_, 1.f, query_);
  if (head_.center != nullptr) center_.emplace(head_, q_, begin, end, center_memory_);
  std::memset(acc_.data, 0, size_t(q_.rows * acc_.cols) * 4);
}

void Stream::Page(int64_t j, const std::byte* next, size_t next_bytes) {
  const int64_t rows = q_.rows;
  head_.key->Score(head_.KeyPage(j), query_, rows, head_.ValuePage(j), head_.value->PageBytes(), logits_, scratch_);
  if (center_) center_->Add(j, logits_);
  const int64_t start = head_.sinks + j * kPage, tokens = std::min(kPage, head_.encoded - j * kPage);
  bool any = false;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t lo = std::clamp<int64_t>(visible_[size_t(r)].first - start, 0, tokens);
    const int64_t hi = std::clamp<int64_t>(visible_[size_t(r)].last - start, lo, tokens);
    any |= Softmax(r, lo, hi, kPage, logits_ + r * kPage, acc_.Row(r), acc_.cols);
  }
  if (any) head_.value->Accumulate(head_.ValuePage(j), logits_, p_scale_, rows, next, next_bytes, acc_, scratch_);
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
