#include "croquis/attention/stream.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "croquis/attention/partial.h"
#include "croquis/attention/workspace.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/page_kernels.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
// A page whose largest logit is 30 (natural) below the running maximum of every row adds less than 128 e^-30 = 1.2e-11
// of the mass, far below half a unit in the last place of a float (6e-8): leaving it out changes nothing.
constexpr float kNegligible = float(30 * std::numbers::log2e);

// By the same measure, weights of a page that sum up to less than this part of the mass so far.
constexpr float kNegligibleMass = 1.2e-11f;
// Weights relative to an earlier maximum may sum up to this: far from where floats end, also times values and pages.
constexpr float kLargestSum = 0x1p40f;

// Streams over whose pages one prefetches while another such group is dealt with hold about as much: less makes for
// places too short to be followed (simd/prefetch_inl.h), more is half gone when it is needed.
constexpr size_t kGroupBytes = 72 * 1024;

constexpr int64_t kSoftmaxRows = 16;  // go through a kernel at once

size_t ScratchBytes(const kvcache::HeadView& head, int64_t rows) {
  return Round64(std::max(head.key->ScratchBytes(rows), head.value->ScratchBytes(rows)));
}

}  // namespace

std::array<DenseRows, 4> ExactRows(const kvcache::HeadView& head, const std::byte* new_k, const std::byte* new_v,
                                   int64_t tokens) {
  const int64_t in_ring = std::max<int64_t>(0, head.length - head.sinks - head.encoded);
  const int64_t slot = in_ring > 0 ? head.encoded % head.slots : 0, before_wrap = std::min(in_ring, head.slots - slot);
  const int64_t ring = head.sinks + head.encoded;
  return {DenseRows{head.sink_k, head.sink_v, 0, head.sinks},
          DenseRows{head.ring_k + slot * head.row_bytes, head.ring_v + slot * head.row_bytes, ring, before_wrap},
          DenseRows{head.ring_k, head.ring_v, ring + before_wrap, in_ring - before_wrap},
          DenseRows{new_k, new_v, head.length, tokens}};
}

size_t HeadQuery::Bytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim) {
  return Round64(head.key->QueryBytes(rows)) + (head.center ? CenterQuery::Bytes(rows, head_dim) : 0);
}

HeadQuery::HeadQuery(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible,
                     std::byte* memory)
    : head_(head),
      q_(q),
      visible_(visible),
      first_visible_(visible[0].first),
      last_visible_(visible[0].last),
      first_common_(first_visible_),
      last_common_(last_visible_),
      prepared_(memory) {
  for (const Visible& v : visible) {
    first_visible_ = std::min(first_visible_, v.first), last_visible_ = std::max(last_visible_, v.last);
    first_common_ = std::max(first_common_, v.first), last_common_ = std::min(last_common_, v.last);
  }
  if (head.Pages() == 0) return;
  head.key->Prepare(q, 1.f, prepared_);
  if (head.center != nullptr) center_.emplace(head, q, memory + Round64(head.key->QueryBytes(q.rows)));
}

size_t StreamState::Bytes(int64_t rows, int64_t width) {
  return Round64(size_t(rows * width) * 4) + 2 * Round64(size_t(rows) * 4);
}

StreamState StreamState::At(std::byte* memory, int64_t rows, int64_t width) {
  Pieces pieces(memory);
  StreamState s;
  s.sums = {pieces.Take<float>(size_t(rows * width)), rows, width};
  s.max = pieces.Take<float>(size_t(rows));
  s.mass = pieces.Take<float>(size_t(rows));
  return s;
}

size_t Stream::Bytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim) {
  return Round64(size_t(rows) * 4) + Round64(size_t(rows) * sizeof(Slots)) +
         (head.center ? CenterScore::Bytes(head_dim) : 0);
}

size_t Stream::SharedBytes(const kvcache::HeadView& head, int64_t rows) {
  return size_t(rows) * kDenseTile * 4 + ScratchBytes(head, rows);
}

Stream::Stream(const HeadQuery& query, StreamState state, std::byte* memory, std::byte* shared, bool goes_on)
    : query_(query), state_(state) {
  const size_t rows = size_t(query.q_.rows);
  Pieces own(memory), all(shared);
  p_scale_ = own.Take<float>(rows);
  slots_ = own.Take<Slots>(rows);
  center_memory_ = own.rest();
  logits_ = all.Take<float>(rows * kDenseTile);
  scratch_ = all.rest();
  if (goes_on) return;
  std::memset(state.sums.data, 0, size_t(state.sums.rows * state.sums.cols) * 4);
  std::fill_n(state.max, rows, simd::kMasked);
  std::fill_n(state.mass, rows, 0.f);
}

bool Stream::Softmax(int64_t width, int64_t stride, bool counts) {
  const int64_t rows = query_.q_.rows;
  const auto& kernels = simd::Dense();
  float top[kSoftmaxRows], sum[kSoftmaxRows];
  bool any = false;
  for (int64_t r = 0; r < rows;) {
    // Rows that see the same slots go together.
    int64_t n = 1;
    while (n < kSoftmaxRows && r + n < rows && slots_[r + n] == slots_[r]) ++n;
    const auto [lo, hi] = slots_[r];
    float* x = logits_ + r * stride;
    kernels.softmax_tiles(x + lo, stride, n, hi - lo, top, sum);
    for (int64_t i = 0; i < n; ++i, ++r, x += stride) {
      std::fill(x, x + lo, 0.f);
      std::fill(x + hi, x + width, 0.f);
      any |= TakeIn(r, top[i], sum[i], counts);
    }
  }
  return any;
}

bool Stream::HasMaxima() const {
  return std::none_of(state_.mass, state_.mass + query_.q_.rows, [](float mass) { return mass == 0; });
}

std::optional<bool> Stream::WeighAgainstMaxima() {
  const int64_t rows = query_.q_.rows;
  float* const sum = p_scale_;
  simd::Dense().exp2_tiles(logits_, kPage, rows, kPage, state_.max, sum);
  bool any = false;
  for (int64_t r = 0; r < rows; ++r) {
    if (!(sum[r] <= kLargestSum)) return std::nullopt;
    any |= sum[r] >= state_.mass[r] * kNegligibleMass;
  }
  for (int64_t r = 0; r < rows; ++r) state_.mass[r] += sum[r], p_scale_[r] = 1;
  return any;
}

bool Stream::TakeIn(int64_t row, float top, float sum, bool counts) {
  float &max = state_.max[row], &mass = state_.mass[row];
  p_scale_[row] = 0;
  if (sum == 0) return false;
  if (!counts) sum = 0;
  if (top > max) {
    if (mass > 0) {
      const float down = std::exp2(max - top);
      simd::Dense().scale(state_.sums.Row(row), state_.sums.cols, down);
      mass *= down;
    }
    max = top;
    p_scale_[row] = 1;
    mass += sum;
    return true;
  }
  if (top < max - kNegligible) return false;
  p_scale_[row] = std::exp2(top - max);
  mass += sum * p_scale_[row];
  return true;
}

void Stream::Pages(std::span<Stream> streams, int64_t begin, int64_t end, int64_t then) {
  int64_t first = streams[0].query_.first_visible_;
  for (const Stream& s : streams) first = std::min(first, s.query_.first_visible_);
  // Pages that no row sees.
  begin = std::max(begin, std::max<int64_t>(0, first - streams[0].query_.head_.sinks) / kPage);
  if (begin >= end) return;
  const simd::PageScope scope;
  for (Stream& s : streams)
    if (s.query_.center_) s.center_.emplace(s.query_.head_, *s.query_.center_, begin, s.center_memory_);
  // Streams are dealt with in groups; while one is, the pages of the next are prefetched.
  const size_t n = streams.size();
  const kvcache::HeadView& head = streams[0].query_.head_;
  const size_t page_bytes = head.key->PageBytes() + head.value->PageBytes();
  const size_t groups = (n * page_bytes + kGroupBytes - 1) / kGroupBytes, group = (n + groups - 1) / groups;
  const auto of_group = [&](size_t g) { return streams.subspan(g, std::min(group, n - g)); };
  const auto pages = [&](int64_t j, size_t g) {
    const std::span<Stream> of = of_group(g);
    const kvcache::HeadView& last_head = of.back().query_.head_;
    const std::byte* data = of[0].query_.head_.KeyPage(j);
    return simd::Upcoming{data, size_t(last_head.ValuePage(j) - data) + last_head.value->PageBytes()};
  };
  for (int64_t j = begin; j < end; ++j) {
    const int64_t after = j + 1 < end ? j + 1 : then;
    for (size_t g = 0; g < n; g += group) {
      simd::Upcoming next;
      if (g + group < n)
        next = pages(j, g + group);
      else if (after >= 0)
        next = pages(after, 0);
      const std::span<Stream> of = of_group(g);
      next.shares = int32_t(2 * of.size());
      for (Stream& s : of) {
        s.Page(j, next);
        next.share += 2;
      }
    }
  }
}

void Stream::Page(int64_t j, simd::Upcoming next) {
  const kvcache::HeadView& head = query_.head_;
  const int64_t rows = query_.q_.rows;
  const auto score = [&] {
    head.key->Score(head.KeyPage(j), query_.prepared_, rows, next, logits_, scratch_);
    if (center_) center_->Add(j, logits_);
  };
  score();
  const int64_t start = head.sinks + j * kPage, tokens = std::min(kPage, head.encoded - j * kPage);
  std::optional<bool> matters;
  if (tokens == kPage && start >= query_.first_common_ && start + kPage <= query_.last_common_ && HasMaxima()) {
    matters = WeighAgainstMaxima();
    if (!matters) score();
  }
  if (!matters) {
    for (int64_t r = 0; r < rows; ++r) {
      const Visible& v = query_.visible_[size_t(r)];
      const int64_t lo = std::clamp<int64_t>(v.first - start, 0, tokens);
      slots_[r] = {lo, std::clamp<int64_t>(v.last - start, lo, tokens)};
    }
    matters = Softmax(kPage, kPage);
  }
  ++next.share;
  if (*matters) head.value->Accumulate(head.ValuePage(j), logits_, p_scale_, rows, next, state_.sums, scratch_);
}

void Stream::Dense(std::span<const DenseRows> segments) {
  // Cuts to what is visible and to tiles; several short segments share one.
  DenseRows tile[4];
  size_t held = 0;
  int64_t tokens = 0;
  for (const DenseRows& s : segments) {
    const int64_t from = std::max(s.position, query_.first_visible_),
                  to = std::min(s.position + s.tokens, query_.last_visible_);
    for (int64_t p = from; p < to;) {
      const int64_t n = std::min(to - p, kDenseTile - tokens), skip = (p - s.position) * query_.head_.row_bytes;
      tile[held++] = {s.k + skip, s.v + skip, p, n};
      tokens += n, p += n;
      if (tokens == kDenseTile || held == std::size(tile)) {
        DenseTile({tile, held}, tokens);
        held = 0, tokens = 0;
      }
    }
  }
  if (held > 0) DenseTile({tile, held}, tokens);
  // After exact rows, of which every query row has seen one at least, its own: rows that add no mass need some there.
  for (const kvcache::KeptRows& kept : query_.head_.kept) Kept(kept);
}

void Stream::Kept(const kvcache::KeptRows& kept) {
  const kvcache::HeadView& head = query_.head_;
  const int64_t rows = query_.q_.rows;
  const auto& kernels = simd::Dense();
  for (int64_t at = 0; at < kept.rows; at += kDenseTile) {
    const int64_t n = std::min(kDenseTile, kept.rows - at), skip = at * head.row_bytes;
    kernels.score_rows(head.type, query_.q_, kept.k + skip, head.row_bytes, n, logits_, kDenseTile);
    for (int64_t r = 0; r < rows; ++r) {
      if (kept.log2_weight != nullptr) kernels.add(kept.log2_weight + at, n, logits_ + r * kDenseTile);
      slots_[r] = {0, n};
    }
    if (!Softmax(n, kDenseTile, kept.use != kvcache::KeptRows::Use::kValues)) continue;
    if (kept.use != kvcache::KeptRows::Use::kMass)
      kernels.accumulate_rows(head.type, logits_, kDenseTile, p_scale_, rows, kept.v + skip, head.row_bytes, n,
                              state_.sums);
  }
}

void Stream::DenseTile(std::span<const DenseRows> segments, int64_t tokens) {
  const kvcache::HeadView& head = query_.head_;
  const MatView<const float> q = query_.q_;
  const auto& kernels = simd::Dense();
  int64_t at = 0;
  for (const DenseRows& s : segments) {
    kernels.score_rows(head.type, q, s.k, head.row_bytes, s.tokens, logits_ + at, kDenseTile);
    at += s.tokens;
  }
  // Slots of the tile below a position: segments ascend, so what a row sees is one range of slots.
  const auto below = [&](int64_t position) {
    int64_t n = 0;
    for (const DenseRows& s : segments) n += std::clamp<int64_t>(position - s.position, 0, s.tokens);
    return n;
  };
  for (int64_t r = 0; r < q.rows; ++r) {
    const Visible& v = query_.visible_[size_t(r)];
    const int64_t lo = below(v.first);
    slots_[r] = {lo, std::max(lo, below(v.last))};
  }
  if (!Softmax(tokens, kDenseTile)) return;
  at = 0;
  for (const DenseRows& s : segments) {
    kernels.accumulate_rows(head.type, logits_ + at, kDenseTile, p_scale_, q.rows, s.v, head.row_bytes, s.tokens,
                            state_.sums);
    at += s.tokens;
  }
}

int64_t JoinedStates::Runs() const {
  int64_t n = 0;
  for (const PassStates& p : passes) n += p.runs;
  return n;
}

size_t JoinBytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim, int64_t runs) {
  return StreamState::Bytes(rows, head.value->AccDim()) + Round64(size_t(rows * head_dim) * 4) +
         2 * Round64(size_t(rows * runs) * 4) + Round64(size_t(rows) * 4);
}

void Join(const kvcache::HeadView& head, const JoinedStates& states, MatView<float> out, std::byte* memory) {
  const int64_t rows = out.rows, width = head.value->AccDim(), runs = states.Runs();
  Pieces pieces(memory);
  StreamState pages = StreamState::At(pieces.Take<std::byte>(StreamState::Bytes(rows, width)), rows, width);
  const MatView<float> sums(pieces.Take<float>(size_t(rows * out.cols)), rows, out.cols);
  // Of each row and state.
  float* const weights = pieces.Take<float>(size_t(rows * runs));
  float* const masses = pieces.Take<float>(size_t(rows * runs));
  float* const total = pieces.Take<float>(size_t(rows));
  const auto state = [&](const PassStates& p, int64_t i) {
    return StreamState::At(const_cast<std::byte*>(p.data) + size_t(i) * p.stride, p.rows, width);
  };
  int64_t at = 0;
  for (const PassStates& p : states.passes)
    for (int64_t i = 0; i < p.runs; ++i, ++at) {
      const StreamState s = state(p, i);
      for (int64_t r = 0; r < rows; ++r) {
        masses[r * runs + at] = s.mass[p.first + r];
        weights[r * runs + at] = s.mass[p.first + r] > 0 ? s.max[p.first + r] : simd::kMasked;
      }
    }
  const auto& kernels = simd::Dense();
  kernels.softmax_tiles(weights, runs, rows, runs, pages.max, total);
  std::memset(pages.sums.data, 0, size_t(rows * width) * 4);
  for (int64_t r = 0; r < rows; ++r) {
    const float* weight = weights + r * runs;
    float mass = 0;
    for (int64_t i = 0; i < runs; ++i) mass += weight[i] * masses[r * runs + i];
    pages.mass[r] = mass;
    if (mass == 0) continue;
    // The states' sums are rows of 32-bit numbers, `stride` bytes apart: a weighted sum of them as of any values.
    const float one = 1;
    for (const PassStates& p : states.passes) {
      if (p.runs > 0)
        kernels.accumulate_rows(simd::RowType::kF32, weight, 0, &one, 1,
                                reinterpret_cast<const std::byte*>(state(p, 0).sums.Row(p.first + r)),
                                int64_t(p.stride), p.runs, {pages.sums.Row(r), 1, width});
      weight += p.runs;
    }
  }
  if (runs > 0) head.value->Finish(pages.sums, sums);
  const StreamState dense = StreamState::At(const_cast<std::byte*>(states.dense), rows, out.cols);
  const auto partial = [](const StreamState& s, int64_t r, MatView<float> a) {
    const float max = s.mass[r] == 0 ? kEmptyMax : s.max[r] * std::numbers::ln2_v<float>;
    return Partial{max, s.mass[r], a[r]};
  };
  for (int64_t r = 0; r < rows; ++r) {
    Partial all = partial(dense, r, dense.sums);
    if (runs > 0) Merge(partial(pages, r, sums), all);
    Finalize(all, out[r]);
  }
}

}  // namespace croquis::attention
