#include "croquis/attention/edits/edited.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numbers>
#include <vector>

#include "croquis/attention/stream.h"
#include "croquis/attention/workspace.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kRows = 64;  // query rows of a task

// One call: a task for each kv head and block of the chunk's tokens goes through all segments.
class Call {
 public:
  Call(const kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q, MatView<const float> k,
       MatView<const float> v, MatView<float> out)
      : config_(cache.config()), options_(options), q_(q), k_(k), v_(v), out_(out), tokens_(q.rows) {
    for (int64_t h = 0; h < config_.kv_heads; ++h) heads_.push_back(kvcache::ViewHead(cache, options.layer, h));
    const kvcache::EditMap& edits = *heads_[0].edits;
    length_ = heads_[0].length, cursor_ = edits.Cursor(length_);
    // What stands before the new tokens, and these, in the slots that follow.
    for (kvcache::EditSegment s : edits.segments()) {
      s.end = std::min(s.end, cursor_ - s.shift);
      if (s.begin < s.end) segments_.push_back(s);
    }
    segments_.push_back({length_, length_ + tokens_, cursor_ - length_});
    dim_ = config_.head_dim, group_ = q.cols / dim_ / config_.kv_heads;
    block_ = std::min(tokens_, std::max<int64_t>(1, kRows / group_));
    blocks_ = (tokens_ + block_ - 1) / block_;
    const int64_t rows = block_ * group_;
    for (const auto& head : heads_) {
      row_bytes_ = std::max(row_bytes_, size_t(head.row_bytes));
      const size_t bytes =
          Round64(sizeof(HeadQuery)) + Round64(size_t(rows) * sizeof(Visible)) + 2 * Round64(size_t(rows * dim_) * 4) +
          Round64(HeadQuery::Bytes(head, rows, dim_)) + StreamState::Bytes(rows, head.value->AccDim()) +
          StreamState::Bytes(rows, dim_) +
          std::max(Stream::Bytes(head, rows, dim_) + Stream::SharedBytes(head, rows), JoinBytes(head, rows, dim_, 1));
      worker_bytes_ = std::max(worker_bytes_, bytes);
    }
    chunk_bytes_ = Round64(2 * size_t(tokens_) * row_bytes_);
  }

  size_t Bytes(int workers) const { return chunk_bytes_ * size_t(config_.kv_heads) + worker_bytes_ * size_t(workers); }

  void Run(Executor& executor, std::byte* memory) {
    chunk_ = memory;
    std::byte* const workers = memory + chunk_bytes_ * size_t(config_.kv_heads);
    executor.ParallelFor(config_.kv_heads, [&](int64_t h, int) { RoundChunk(h); });
    executor.ParallelFor(config_.kv_heads * blocks_, [&](int64_t t, int worker) {
      Task(t / blocks_, t % blocks_, workers + size_t(worker) * worker_bytes_);
    });
  }

 private:
  void RoundChunk(int64_t h) {
    const kvcache::HeadView& head = heads_[size_t(h)];
    std::byte* to = chunk_ + size_t(h) * chunk_bytes_;
    for (const auto* x : {&k_, &v_})
      for (int64_t t = 0; t < tokens_; ++t, to += head.row_bytes)
        kvcache::RoundRow(head.type, x->Row(t) + h * dim_, dim_, to);
  }

  // The rows of kv head h, scaled (base 2 inside) and turned by `turn` positions.
  void TurnedRows(int64_t h, int64_t first, int64_t turn, MatView<float> to) const {
    const float scale = options_.scale * std::numbers::log2e_v<float>;
    const auto& rope = config_.rope;
    const auto pairs = int64_t(rope.inv_freq.size());
    std::vector<float> cosine(rope.inv_freq.size()), sine(rope.inv_freq.size());
    for (size_t i = 0; i < cosine.size(); ++i) {
      const double angle = rope.inv_freq[i] * double(turn);
      cosine[i] = float(std::cos(angle)), sine[i] = float(std::sin(angle));
    }
    for (int64_t r = 0; r < to.rows; ++r) {
      const float* from = q_.Row(first + r / group_) + (h * group_ + r % group_) * dim_;
      for (int64_t i = 0; i < dim_; ++i) to(r, i) = from[i] * scale;
      for (int64_t i = 0; turn != 0 && i < pairs; ++i) {
        const int64_t a = rope.interleaved ? 2 * i : i, b = rope.interleaved ? 2 * i + 1 : i + pairs;
        const float x = to(r, a), y = to(r, b), c = cosine[size_t(i)], s = sine[size_t(i)];
        to(r, a) = x * c - y * s;
        to(r, b) = x * s + y * c;
      }
    }
  }

  // Slots of the segment that row r sees; `at`: the position of its token.
  Visible Seen(const kvcache::EditSegment& s, int64_t token) const {
    const int64_t at = cursor_ + token;
    Visible v = {s.begin, s.end};
    if (s.begin == length_ && options_.causal) v.last = length_ + token + 1;
    if (options_.window > 0) v.first = std::max(v.first, at - options_.window + 1 - s.shift);
    v.last = std::max(v.first, v.last);
    return v;
  }

  void Task(int64_t h, int64_t block, std::byte* memory) {
    const kvcache::HeadView& head = heads_[size_t(h)];
    const int64_t first = block * block_, rows = std::min(block_, tokens_ - first) * group_;
    Pieces pieces(memory);
    std::byte* const query_at = pieces.Take<std::byte>(sizeof(HeadQuery));
    const std::span<Visible> visible(pieces.Take<Visible>(size_t(rows)), size_t(rows));
    const MatView<float> q(pieces.Take<float>(size_t(rows * dim_)), rows, dim_);
    const MatView<float> answers(pieces.Take<float>(size_t(rows * dim_)), rows, dim_);
    std::byte* const prepared = pieces.Take<std::byte>(HeadQuery::Bytes(head, rows, dim_));
    const int64_t width = head.value->AccDim();
    std::byte* const page_state = pieces.Take<std::byte>(StreamState::Bytes(rows, width));
    std::byte* const dense_state = pieces.Take<std::byte>(StreamState::Bytes(rows, dim_));
    const auto pages = StreamState::At(page_state, rows, width), dense = StreamState::At(dense_state, rows, dim_);
    const std::byte* chunk = chunk_ + size_t(h) * chunk_bytes_;
    const auto exact = ExactRows(head, chunk, chunk + tokens_ * head.row_bytes, tokens_);
    std::byte* const own = pieces.rest();
    for (size_t i = 0; i < segments_.size(); ++i) {
      const kvcache::EditSegment& s = segments_[i];
      TurnedRows(h, first, cursor_ - length_ - s.shift, q);
      for (int64_t r = 0; r < rows; ++r) visible[size_t(r)] = Seen(s, first + r / group_);
      const HeadQuery& query = *new (query_at) HeadQuery(head, q, visible, prepared);
      std::byte* const shared = own + Stream::Bytes(head, rows, dim_);
      Stream over_pages(query, pages, own, shared, i > 0);
      const int64_t begin = std::max<int64_t>(0, s.begin - head.sinks) / kPage;
      const int64_t last = std::min(s.end, head.sinks + head.encoded) - head.sinks;
      const int64_t end = last > 0 ? (last + kPage - 1) / kPage : 0;
      if (begin < end) Stream::Pages({&over_pages, 1}, begin, end);
      Stream(query, dense, own, shared, i > 0).Dense(exact);
    }
    const PassStates pass = {page_state, 0, head.Pages() > 0 ? 1 : 0, rows};
    Join(head, {{&pass, 1}, dense_state}, answers, own);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(answers.Row(r), dim_, out_.Row(first + r / group_) + (h * group_ + r % group_) * dim_);
  }

  const kvcache::CacheConfig& config_;
  const AttendOptions& options_;
  const MatView<const float> q_, k_, v_;
  const MatView<float> out_;
  const int64_t tokens_;
  std::vector<kvcache::HeadView> heads_;
  std::vector<kvcache::EditSegment> segments_;
  int64_t length_ = 0, cursor_ = 0, dim_ = 0, group_ = 0, block_ = 0, blocks_ = 0;
  size_t row_bytes_ = 0, chunk_bytes_ = 0, worker_bytes_ = 0;
  std::byte* chunk_ = nullptr;
};

}  // namespace

void AttendEdited(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q,
                  MatView<const float> k, MatView<const float> v, MatView<float> out) {
  Call call(cache, options, q, k, v, out);
  call.Run(executor, kvcache::Workspace(cache, call.Bytes(executor.threads())));
}

}  // namespace croquis::attention
