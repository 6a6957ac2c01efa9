#include "croquis/attention/attention.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <numbers>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/attention/stream.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kRows = 64;       // query rows of a task: enough to reuse an expanded page, few enough for the caches
constexpr int64_t kTasks = 64;      // pieces that a call is cut into when it can be: balance for many threads
constexpr int64_t kRunPages = 16;   // least pages of a piece: preparing and merging stay below 5 %
constexpr int64_t kFewRows = 8;     // query rows up to which memory is the limit
constexpr int64_t kFewTokens = 16;  // chunks below are rounded by the caller: waking workers costs more
constexpr int64_t kLittleWork = int64_t{1} << 17;  // products of numbers, about 10 us: not worth waking workers either

constexpr size_t Round64(size_t n) { return (n + 63) / 64 * 64; }

// How a call is cut. A function of the shapes alone, so that the number of threads changes no bit.
struct Cut {
  int64_t tokens = 0, group = 0, kv_heads = 0, head_dim = 0;
  int64_t block = 0, blocks = 0;                         // query tokens of a task; tasks along the chunk
  int64_t first_page = 0, pages = 0, run = 1, runs = 1;  // pages seen by anyone; pages a task; tasks along them
  int64_t heads = 1, head_sets = 1;                      // kv heads a task; tasks along the heads
  int64_t pieces() const { return head_sets * blocks; }  // each the work of `runs` tasks
  int64_t tasks() const { return pieces() * runs; }
  int64_t rows() const { return block * group; }
};

Cut MakeCut(const std::vector<kvcache::HeadView>& all, const AttendOptions& options, int64_t tokens, int64_t group,
            int64_t head_dim) {
  const kvcache::HeadView& head = all[0];
  const int64_t kv_heads = int64_t(all.size());
  Cut c{.tokens = tokens, .group = group, .kv_heads = kv_heads, .head_dim = head_dim};
  c.block = std::min(tokens, std::max<int64_t>(1, kRows / group));
  c.blocks = (tokens + c.block - 1) / c.block;
  c.pages = head.Pages();
  if (options.window > 0)
    c.first_page = std::clamp<int64_t>((head.length - options.window + 1 - head.sinks) / kPage, 0, c.pages);
  const int64_t seen = c.pages - c.first_page;
  c.head_sets = kv_heads;
  // Corrections of centred keys are made for many pages of a head at a time, and would push each other out of the
  // cache.
  const bool centered = std::any_of(all.begin(), all.end(), [](const auto& h) { return h.center != nullptr; });
  if (c.rows() <= kFewRows && c.blocks == 1 && !centered) {
    // Tasks take all heads of their pages, as they lie in memory: f16 is 18 % faster than head by head, each with its
    // own strided pages. Contexts of few pages are cut along the heads as well.
    c.head_sets = std::clamp<int64_t>(kTasks / 4 * kRunPages / std::max<int64_t>(1, seen), 1, kv_heads);
    c.heads = (kv_heads + c.head_sets - 1) / c.head_sets;
    c.head_sets = (kv_heads + c.heads - 1) / c.heads;
  }
  c.runs = std::clamp<int64_t>(kTasks / c.pieces(), 1, std::max<int64_t>(1, seen / kRunPages));
  c.run = std::max<int64_t>(1, (seen + c.runs - 1) / c.runs);
  c.runs = std::max<int64_t>(1, (seen + c.run - 1) / c.run);
  return c;
}

// One call: everything its tasks share.
class Call {
 public:
  Call(const kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q, MatView<float> out)
      : options_(options), q_(q), out_(out) {
    const auto& config = cache.config();
    for (int64_t h = 0; h < config.kv_heads; ++h) heads_.push_back(kvcache::ViewHead(cache, options.layer, h));
    cut_ = MakeCut(heads_, options, q.rows, q.cols / config.head_dim / config.kv_heads, config.head_dim);
    size_t shared = 0;
    for (const auto& head : heads_) {
      stream_bytes_ = std::max(stream_bytes_, Stream::Bytes(head, cut_.rows(), cut_.head_dim));
      shared = std::max(shared, Stream::SharedBytes(head, cut_.rows()));
    }
    stream_bytes_ += Round64(size_t(cut_.rows() * cut_.head_dim) * 4);
    worker_bytes_ = Round64(size_t(cut_.rows()) * sizeof(Visible)) + Round64(size_t(cut_.heads) * sizeof(Stream)) +
                    size_t(cut_.heads) * stream_bytes_ + shared;
    for (const auto& head : heads_) {
      chunk_at_.push_back(chunk_bytes_);
      chunk_bytes_ += Round64(size_t(2 * cut_.tokens * head.row_bytes));
    }
  }

  size_t Bytes(int workers) const {
    return chunk_bytes_ + size_t(workers) * worker_bytes_ + PartialBytes() + Round64(CounterCount() * sizeof(Counter));
  }

  void Run(Executor& executor, MatView<const float> k, MatView<const float> v, std::byte* memory) {
    chunk_ = memory;
    partials_ = memory + chunk_bytes_;
    counters_ = reinterpret_cast<Counter*>(partials_ + PartialBytes());
    std::byte* const workers = partials_ + PartialBytes() + Round64(CounterCount() * sizeof(Counter));
    for (size_t i = 0; i < CounterCount(); ++i) new (counters_ + i) Counter(int32_t(cut_.runs));
    const auto round = [&](int64_t h, int) { RoundChunk(h, k, v); };
    if (cut_.tokens < kFewTokens)
      for (int64_t h = 0; h < cut_.kv_heads; ++h) round(h, 0);
    else
      executor.ParallelFor(cut_.kv_heads, round);
    const auto work = [&](int64_t task, int worker) { Task(task, workers + size_t(worker) * worker_bytes_); };
    const int64_t keys = std::min(heads_[0].length, cut_.pages * kPage - cut_.first_page * kPage + 256) + cut_.tokens;
    if (keys * cut_.tokens * cut_.group * cut_.kv_heads * cut_.head_dim < kLittleWork)
      for (int64_t task = 0; task < cut_.tasks(); ++task) work(task, 0);
    else
      executor.ParallelFor(cut_.tasks(), work);
  }

 private:
  using Counter = std::atomic<int32_t>;

  size_t CounterCount() const { return cut_.runs > 1 ? size_t(cut_.pieces()) : 0; }
  // A stored partial: sums [rows, head_dim], then maximum and mass by row.
  size_t PartialFloats() const { return Round64(size_t(cut_.rows() * (cut_.head_dim + 2)) * 4) / 4; }
  size_t PartialBytes() const { return cut_.runs > 1 ? size_t(cut_.tasks() * cut_.heads) * PartialFloats() * 4 : 0; }

  // The chunk's own keys and values, as the ring will hold them.
  void RoundChunk(int64_t h, MatView<const float> k, MatView<const float> v) {
    const kvcache::HeadView& head = heads_[size_t(h)];
    std::byte* to = chunk_ + chunk_at_[size_t(h)];
    for (const auto* x : {&k, &v})
      for (int64_t t = 0; t < cut_.tokens; ++t, to += head.row_bytes)
        kvcache::RoundRow(head.type, x->Row(t) + h * cut_.head_dim, cut_.head_dim, to);
  }

  // Query rows of one kv head in the chunk's tokens first .. first + tokens, scaled; base 2 inside.
  void GatherQueries(int64_t h, int64_t first, int64_t tokens, MatView<float> q) const {
    const float scale = options_.scale * std::numbers::log2e_v<float>;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t g = 0; g < cut_.group; ++g) {
        const float* from = q_.Row(first + t) + (h * cut_.group + g) * cut_.head_dim;
        for (int64_t i = 0; i < cut_.head_dim; ++i) q(t * cut_.group + g, i) = from[i] * scale;
      }
  }

  void Task(int64_t task, std::byte* memory) {
    const int64_t run = task % cut_.runs, piece = task / cut_.runs;
    const int64_t first_head = piece / cut_.blocks * cut_.heads, first = piece % cut_.blocks * cut_.block;
    const int64_t heads = std::min(cut_.heads, cut_.kv_heads - first_head);
    const int64_t tokens = std::min(cut_.block, cut_.tokens - first), rows = tokens * cut_.group;

    const auto take = [&memory](size_t bytes) {
      std::byte* at = memory;
      memory += Round64(bytes);
      return at;
    };
    const std::span<Visible> visible(reinterpret_cast<Visible*>(take(size_t(cut_.rows()) * sizeof(Visible))),
                                     size_t(rows));
    const int64_t length = heads_[0].length;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = length + first + r / cut_.group;
      visible[size_t(r)] = {options_.window > 0 ? std::max<int64_t>(0, position - options_.window + 1) : 0,
                            options_.causal ? position + 1 : length + cut_.tokens};
    }
    auto* const all = reinterpret_cast<Stream*>(take(size_t(cut_.heads) * sizeof(Stream)));
    std::byte* const own = take(size_t(cut_.heads) * stream_bytes_);
    for (int64_t i = 0; i < heads; ++i) {
      std::byte* at = own + size_t(i) * stream_bytes_;
      const MatView<float> q(reinterpret_cast<float*>(at), rows, cut_.head_dim);
      GatherQueries(first_head + i, first, tokens, q);
      new (all + i) Stream(heads_[size_t(first_head + i)], q, visible,
                           at + Round64(size_t(cut_.rows() * cut_.head_dim) * 4), memory);
    }
    const std::span<Stream> streams(all, size_t(heads));

    const int64_t begin = cut_.first_page + run * cut_.run;
    Stream::Pages(streams, begin, std::min(cut_.pages, begin + cut_.run));
    for (int64_t i = 0; i < heads; ++i) {
      Stream& stream = streams[size_t(i)];
      if (run + 1 == cut_.runs) stream.Dense(DenseSegments(first_head + i));
      if (cut_.runs > 1) {
        Store(task * cut_.heads + i, stream, rows);
        continue;
      }
      for (int64_t r = 0; r < rows; ++r)
        Finalize({stream.max(r), stream.mass(r), {stream.sums().Row(r), size_t(cut_.head_dim)}},
                 OutRow(first_head + i, first, r));
    }
    // The last run to finish puts the piece together, in order of runs, so nobody waits.
    if (cut_.runs > 1 && counters_[piece].fetch_sub(1, std::memory_order_acq_rel) == 1)
      for (int64_t i = 0; i < heads; ++i) Join(piece, i, first_head + i, first, rows);
  }

  // Sinks, the ring in its two parts, the chunk.
  std::array<DenseRows, 4> DenseSegments(int64_t h) const {
    const kvcache::HeadView& head = heads_[size_t(h)];
    const int64_t in_ring = std::max<int64_t>(0, head.length - head.sinks - head.encoded);
    const int64_t slot = in_ring > 0 ? head.encoded % head.slots : 0,
                  before_wrap = std::min(in_ring, head.slots - slot);
    const int64_t ring = head.sinks + head.encoded;
    const std::byte* chunk = chunk_ + chunk_at_[size_t(h)];
    return {DenseRows{head.sink_k, head.sink_v, 0, head.sinks},
            DenseRows{head.ring_k + slot * head.row_bytes, head.ring_v + slot * head.row_bytes, ring, before_wrap},
            DenseRows{head.ring_k, head.ring_v, ring + before_wrap, in_ring - before_wrap},
            DenseRows{chunk, chunk + cut_.tokens * head.row_bytes, head.length, cut_.tokens}};
  }

  std::span<float> OutRow(int64_t h, int64_t first, int64_t row) {
    const int64_t token = first + row / cut_.group, head = h * cut_.group + row % cut_.group;
    return {out_.Row(token) + head * cut_.head_dim, size_t(cut_.head_dim)};
  }

  float* PartialAt(int64_t slot) { return reinterpret_cast<float*>(partials_) + size_t(slot) * PartialFloats(); }

  void Store(int64_t slot, Stream& stream, int64_t rows) {
    float* sums = PartialAt(slot);
    float* state = sums + cut_.rows() * cut_.head_dim;
    std::memcpy(sums, stream.sums().data, size_t(rows * cut_.head_dim) * 4);
    for (int64_t r = 0; r < rows; ++r) state[2 * r] = stream.max(r), state[2 * r + 1] = stream.mass(r);
  }

  Partial Load(int64_t slot, int64_t r) {
    float* sums = PartialAt(slot);
    const float* state = sums + cut_.rows() * cut_.head_dim;
    return {state[2 * r], state[2 * r + 1], {sums + r * cut_.head_dim, size_t(cut_.head_dim)}};
  }

  // i: number of kv head h in its piece.
  void Join(int64_t piece, int64_t i, int64_t h, int64_t first, int64_t rows) {
    const auto slot = [&](int64_t run) { return (piece * cut_.runs + run) * cut_.heads + i; };
    for (int64_t r = 0; r < rows; ++r) {
      Partial sum = Load(slot(0), r);
      for (int64_t run = 1; run < cut_.runs; ++run) Merge(Load(slot(run), r), sum);
      Finalize(sum, OutRow(h, first, r));
    }
  }

  const AttendOptions& options_;
  const MatView<const float> q_;
  const MatView<float> out_;
  std::vector<kvcache::HeadView> heads_;
  Cut cut_;
  size_t stream_bytes_ = 0, worker_bytes_ = 0, chunk_bytes_ = 0;
  std::vector<size_t> chunk_at_;
  std::byte *chunk_ = nullptr, *partials_ = nullptr;
  Counter* counters_ = nullptr;
};

Status CheckShapes(const kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q,
                   MatView<const float> k, MatView<float> out) {
  const auto& c = cache.config();
  const auto shape = [](int64_t rows, int64_t cols) {
    return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  };
  if (q.cols < 1 || q.cols % (c.kv_heads * c.head_dim) != 0 || q.rows != k.rows)
    return InvalidArgument("attention: queries must be [" + std::to_string(k.rows) + ", a multiple of " +
                           std::to_string(c.kv_heads * c.head_dim) + "], got " + shape(q.rows, q.cols));
  if (out.rows != q.rows || out.cols != q.cols)
    return InvalidArgument("attention: the output must be " + shape(q.rows, q.cols) + ", got " +
                           shape(out.rows, out.cols));
  if (!std::isfinite(options.scale)) return InvalidArgument("attention: the scale is not a finite number");
  if (options.window < 0)
    return OutOfRange("attention: the window must be 0 (none) or more tokens, got " + std::to_string(options.window));
  return {};
}

}  // namespace

Status AttendAndAppend(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options,
                       MatView<const float> q, MatView<const float> k, MatView<const float> v, MatView<float> out) {
  CROQUIS_CHECK_OK(kvcache::CheckAppend(cache, options.layer, k, v));
  CROQUIS_CHECK_OK(CheckShapes(cache, options, q, k, out));
  if (q.rows == 0) return {};
  Call call(cache, options, q, out);
  call.Run(executor, k, v, kvcache::Workspace(cache, call.Bytes(executor.threads())));
  kvcache::AppendChecked(executor, cache, options.layer, k, v);
  return {};
}

}  // namespace croquis::attention
