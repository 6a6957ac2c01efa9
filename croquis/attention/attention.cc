#include "croquis/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numbers>
#include <vector>

#include "croquis/attention/edits/edited.h"
#include "croquis/attention/observe.h"
#include "croquis/attention/stream.h"
#include "croquis/attention/workspace.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kRows = 64;       // query rows of a task: enough to reuse an expanded page, few enough for the caches
constexpr int64_t kTasks = 64;      // pieces that a call is cut into when it can be: balance for many threads
constexpr int64_t kRunPages = 24;   // pages of a piece: preparing and merging stay below 5 %
constexpr int64_t kLastPages = 4;   // least pages of the last pieces, which even out how long the workers take
constexpr int64_t kFewRows = 8;     // query rows up to which memory is the limit
constexpr int64_t kFewTokens = 16;  // chunks below are rounded by the caller: waking workers costs more
constexpr int64_t kLittleWork = int64_t{1} << 17;  // products of numbers, about 10 us: not worth waking workers either

// How a call is cut. A function of the shapes alone, so that the number of threads changes no bit.
struct Cut {
  int64_t tokens = 0, group = 0, kv_heads = 0, head_dim = 0;
  int64_t block = 0, blocks = 0;      // query tokens of a task; tasks along the chunk
  int64_t first_page = 0, pages = 0;  // pages seen by anyone
  std::vector<int64_t> run_at;        // first pages of the tasks along them, and where the last one ends
  int64_t heads = 1, head_sets = 1;   // kv heads a task; tasks along the heads
  int64_t runs() const { return int64_t(run_at.size()) - 1; }
  int64_t pieces() const { return head_sets * blocks; }
  int64_t rows() const { return block * group; }
};

Cut MakeCut(const kvcache::HeadView& head, int64_t kv_heads, const AttendOptions& options, int64_t tokens,
            int64_t group, int64_t head_dim) {
  Cut c;
  c.tokens = tokens, c.group = group, c.kv_heads = kv_heads, c.head_dim = head_dim;
  c.block = std::min(tokens, std::max<int64_t>(1, kRows / group));
  c.blocks = (tokens + c.block - 1) / c.block;
  c.pages = head.Pages();
  if (options.window > 0)
    c.first_page = std::clamp<int64_t>((head.length - options.window + 1 - head.sinks) / kPage, 0, c.pages);
  const int64_t seen = c.pages - c.first_page;
  c.head_sets = kv_heads;
  if (c.rows() <= kFewRows && c.blocks == 1) {
    // Tasks take all heads of their pages, as they lie in memory: f16 is 18 % faster than head by head, each with its
    // own strided pages. Contexts of few pages are cut along the heads as well.
    c.head_sets = std::clamp<int64_t>(kTasks / 4 * kRunPages / std::max<int64_t>(1, seen), 1, kv_heads);
    c.heads = (kv_heads + c.head_sets - 1) / c.head_sets;
    c.head_sets = (kv_heads + c.heads - 1) / c.heads;
  }
  // Runs of one length; what would be the last two are cut ever shorter.
  const int64_t about = std::clamp<int64_t>(kTasks / c.pieces(), 1, std::max<int64_t>(1, seen / kRunPages));
  const int64_t run = std::max<int64_t>(1, (seen + about - 1) / about);
  c.run_at = {c.first_page};
  for (int64_t left = seen; left > 0;) {
    int64_t take = std::min(run, left);
    if (about > 1 && left <= 2 * run) take = std::max(kLastPages, (left + 2) / 3);
    if (left - take < kLastPages) take = left;
    left -= take;
    c.run_at.push_back(c.run_at.back() + take);
  }
  if (seen == 0) c.run_at.push_back(c.first_page);
  return c;
}

// One call: everything its tasks share.
//
// Queries are prepared for their pages once. A piece of work (kv heads x query rows) is one task; or, when its pages
// are cut into runs, one task for each run and, after all of these, one for each head's rows that are not in pages:
// small ones, which even out how long the workers take. Each leaves a state, and a last loop joins the states by head.
class Call {
 public:
  Call(const kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q, MatView<float> out)
      : options_(options), q_(q), out_(out) {
    const auto& config = cache.config();
    for (int64_t h = 0; h < config.kv_heads; ++h) heads_.push_back(kvcache::ViewHead(cache, options.layer, h));
    cut_ = MakeCut(heads_[0], config.kv_heads, options, q.rows, q.cols / config.head_dim / config.kv_heads,
                   config.head_dim);
    const int64_t rows = cut_.rows(), dim = cut_.head_dim;
    size_t prepared = 0, shared = 0, join = 0;
    for (const auto& head : heads_) {
      prepared = std::max(prepared, HeadQuery::Bytes(head, rows, dim));
      page_state_bytes_ = std::max(page_state_bytes_, StreamState::Bytes(rows, head.value->AccDim()));
      stream_bytes_ = std::max(stream_bytes_, Stream::Bytes(head, rows, dim));
      shared = std::max(shared, Stream::SharedBytes(head, rows));
      join = std::max(join, JoinBytes(head, rows, dim, cut_.runs()));
      chunk_at_.push_back(chunk_bytes_);
      chunk_bytes_ += Round64(size_t(2 * cut_.tokens * head.row_bytes));
    }
    query_bytes_ = Round64(sizeof(HeadQuery)) + Round64(size_t(rows) * sizeof(Visible)) +
                   Round64(size_t(rows * dim) * 4) + prepared;
    dense_state_bytes_ = StreamState::Bytes(rows, dim);
    join += Round64(size_t(rows * dim) * 4);
    const size_t heads = size_t(cut_.heads);
    worker_bytes_ =
        Round64(heads * sizeof(Stream)) + heads * (stream_bytes_ + page_state_bytes_) + std::max(shared, join);
    if (cut_.runs() == 1) worker_bytes_ += heads * (query_bytes_ + dense_state_bytes_);
  }

  size_t Bytes(int workers) const { return chunk_bytes_ + SharedBytes() + size_t(workers) * worker_bytes_; }

  void Run(Executor& executor, MatView<const float> k, MatView<const float> v, std::byte* memory) {
    workers_ = executor.threads();
    chunk_ = memory;
    queries_ = chunk_ + chunk_bytes_;
    page_states_ = queries_ + QueriesBytes();
    dense_states_ = page_states_ + PageStatesBytes();
    std::byte* const workers = chunk_ + chunk_bytes_ + SharedBytes();
    const auto ready = [&](int64_t h, int) {
      RoundChunk(h, k, v);
      for (int64_t b = 0; cut_.runs() > 1 && b < cut_.blocks; ++b) Prepare(h, b, SharedQuery(h, b));
    };
    if (cut_.tokens < kFewTokens && cut_.runs() == 1)
      for (int64_t h = 0; h < cut_.kv_heads; ++h) ready(h, 0);
    else
      executor.ParallelFor(cut_.kv_heads, ready);
    const int64_t keys = std::min(heads_[0].length, cut_.pages * kPage - cut_.first_page * kPage + 256) + cut_.tokens;
    const bool little = keys * cut_.tokens * cut_.group * cut_.kv_heads * cut_.head_dim < kLittleWork;
    const auto all = [&](int64_t tasks, const auto& task) {
      const auto work = [&](int64_t t, int worker) { task(t, workers + size_t(worker) * worker_bytes_); };
      if (!little) return executor.ParallelFor(tasks, work);
      for (int64_t t = 0; t < tasks; ++t) work(t, 0);
    };
    if (cut_.runs() == 1) return all(cut_.pieces(), [&](int64_t t, std::byte* own) { WholePiece(t, own); });
    all(cut_.pieces() * (cut_.runs() + cut_.heads), [&](int64_t t, std::byte* own) { PartOfPiece(t, own); });
    all(cut_.pieces() * cut_.heads, [&](int64_t t, std::byte* own) {
      const Piece p = SharedPiece(t / cut_.heads);
      if (t % cut_.heads < p.heads) JoinHead(p, t % cut_.heads, own);
    });
  }

 private:
  // What the workers share when pieces are cut into runs.
  size_t CutPieces() const { return cut_.runs() > 1 ? size_t(cut_.pieces()) : 0; }
  size_t QueriesBytes() const { return cut_.runs() > 1 ? size_t(cut_.kv_heads * cut_.blocks) * query_bytes_ : 0; }
  size_t PageStatesBytes() const { return CutPieces() * size_t(cut_.runs() * cut_.heads) * page_state_bytes_; }
  size_t DenseStatesBytes() const { return CutPieces() * size_t(cut_.heads) * dense_state_bytes_; }
  size_t SharedBytes() const { return QueriesBytes() + PageStatesBytes() + DenseStatesBytes(); }

  std::byte* SharedQuery(int64_t h, int64_t block) { return queries_ + size_t(h * cut_.blocks + block) * query_bytes_; }

  // The chunk's own keys and values, as the ring will hold them.
  void RoundChunk(int64_t h, MatView<const float> k, MatView<const float> v) {
    const kvcache::HeadView& head = heads_[size_t(h)];
    std::byte* to = chunk_ + chunk_at_[size_t(h)];
    for (const auto* x : {&k, &v})
      for (int64_t t = 0; t < cut_.tokens; ++t, to += head.row_bytes)
        kvcache::RoundRow(head.type, x->Row(t) + h * cut_.head_dim, cut_.head_dim, to);
  }

  // Query rows of one kv head in one block of the chunk's tokens, scaled (base 2 inside) and prepared, at `memory`.
  void Prepare(int64_t h, int64_t block, std::byte* memory) const {
    const int64_t first = block * cut_.block, tokens = std::min(cut_.block, cut_.tokens - first);
    const int64_t rows = tokens * cut_.group, length = heads_[0].length;
    std::byte* at = memory + Round64(sizeof(HeadQuery));
    const std::span<Visible> visible(reinterpret_cast<Visible*>(at), size_t(rows));
    at += Round64(size_t(rows) * sizeof(Visible));
    const MatView<float> q(reinterpret_cast<float*>(at), rows, cut_.head_dim);
    at += Round64(size_t(rows * cut_.head_dim) * 4);
    const float scale = options_.scale * std::numbers::log2e_v<float>;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = first + r / cut_.group, position = length + token;
      visible[size_t(r)] = {options_.window > 0 ? std::max<int64_t>(0, position - options_.window + 1) : 0,
                            options_.causal ? position + 1 : length + cut_.tokens};
      const float* from = q_.Row(token) + (h * cut_.group + r % cut_.group) * cut_.head_dim;
      for (int64_t i = 0; i < cut_.head_dim; ++i) q(r, i) = from[i] * scale;
    }
    new (memory) HeadQuery(heads_[size_t(h)], q, visible, at);
  }

  // The kv heads and query rows of one piece, and where its queries and states lie. The states of head number i
  // lie one behind the other, so that joining them reads on and on: that of run r is at
  // pages + (i * cut_.runs() + r) * page_state_bytes_.
  struct Piece {
    int64_t first_head, heads, first, rows;
    std::byte *queries, *pages, *dense;
    size_t query_stride;
    const HeadQuery& Query(int64_t i) const {
      return *reinterpret_cast<const HeadQuery*>(queries + size_t(i) * query_stride);
    }
  };

  Piece PieceAt(int64_t number) const {
    Piece p;
    p.first_head = number / cut_.blocks * cut_.heads;
    p.heads = std::min(cut_.heads, cut_.kv_heads - p.first_head);
    p.first = number % cut_.blocks * cut_.block;
    p.rows = std::min(cut_.block, cut_.tokens - p.first) * cut_.group;
    return p;
  }

  Piece SharedPiece(int64_t number) {
    Piece p = PieceAt(number);
    p.queries = SharedQuery(p.first_head, p.first / cut_.block);
    p.query_stride = size_t(cut_.blocks) * query_bytes_;
    p.pages = page_states_ + size_t(number * cut_.runs() * cut_.heads) * page_state_bytes_;
    p.dense = dense_states_ + size_t(number * cut_.heads) * dense_state_bytes_;
    return p;
  }

  void WholePiece(int64_t number, std::byte* memory) {
    Piece p = PieceAt(number);
    Pieces own(memory);
    p.queries = own.Take<std::byte>(size_t(cut_.heads) * query_bytes_);
    p.query_stride = query_bytes_;
    for (int64_t i = 0; i < p.heads; ++i)
      Prepare(p.first_head + i, p.first / cut_.block, p.queries + size_t(i) * query_bytes_);
    p.pages = own.Take<std::byte>(size_t(cut_.heads) * page_state_bytes_);
    p.dense = own.Take<std::byte>(size_t(cut_.heads) * dense_state_bytes_);
    memory = own.rest();
    for (int64_t i = 0; i < p.heads; ++i) DenseTask(p, i, memory);
    PagesTask(p, 0, p.pages, memory);
    for (int64_t i = 0; i < p.heads; ++i) JoinHead(p, i, memory);
  }

  // Runs of all pieces first, then heads of all pieces.
  void PartOfPiece(int64_t task, std::byte* memory) {
    const int64_t runs = cut_.pieces() * cut_.runs();
    if (task < runs) {
      const Piece p = SharedPiece(task / cut_.runs());
      const int64_t run = task % cut_.runs();
      const size_t bytes = size_t(cut_.heads) * page_state_bytes_;
      // The worker's own memory is in its caches; what other workers will read, or have read, is not.
      PagesTask(p, run, memory, memory + bytes);
      for (int64_t i = 0; i < p.heads; ++i)
        std::memcpy(p.pages + size_t(i * cut_.runs() + run) * page_state_bytes_, memory + size_t(i) * page_state_bytes_,
                    page_state_bytes_);
      return;
    }
    const Piece p = SharedPiece((task - runs) / cut_.heads);
    const int64_t i = (task - runs) % cut_.heads;
    if (i < p.heads) DenseTask(p, i, memory);
  }

  void DenseTask(const Piece& p, int64_t i, std::byte* memory) {
    const auto state = StreamState::At(p.dense + size_t(i) * dense_state_bytes_, p.rows, cut_.head_dim);
    const kvcache::HeadView& head = heads_[size_t(p.first_head + i)];
    const std::byte* chunk = chunk_ + chunk_at_[size_t(p.first_head + i)];
    Stream(p.Query(i), state, memory, memory + stream_bytes_)
        .Dense(ExactRows(head, chunk, chunk + cut_.tokens * head.row_bytes, cut_.tokens));
  }

  // The states of run `run` at `states`, one a head.
  void PagesTask(const Piece& p, int64_t run, std::byte* states, std::byte* memory) {
    auto* const all = reinterpret_cast<Stream*>(memory);
    memory += Round64(size_t(cut_.heads) * sizeof(Stream));
    std::byte* const shared = memory + size_t(cut_.heads) * stream_bytes_;
    for (int64_t i = 0; i < p.heads; ++i) {
      const auto state = StreamState::At(states + size_t(i) * page_state_bytes_, p.rows,
                                         heads_[size_t(p.first_head + i)].value->AccDim());
      new (all + i) Stream(p.Query(i), state, memory + size_t(i) * stream_bytes_, shared);
    }
    // Workers take runs in turn.
    const int64_t after = run + workers_;
    Stream::Pages({all, size_t(p.heads)}, cut_.run_at[size_t(run)], cut_.run_at[size_t(run) + 1],
                  after < cut_.runs() ? cut_.run_at[size_t(after)] : -1);
  }

  void JoinHead(const Piece& p, int64_t i, std::byte* memory) {
    const MatView<float> rows(reinterpret_cast<float*>(memory), p.rows, cut_.head_dim);
    memory += Round64(size_t(p.rows * cut_.head_dim) * 4);
    const PassStates pages = {p.pages + size_t(i * cut_.runs()) * page_state_bytes_, page_state_bytes_,
                              cut_.pages > cut_.first_page ? cut_.runs() : 0, p.rows};
    Join(heads_[size_t(p.first_head + i)], {{&pages, 1}, p.dense + size_t(i) * dense_state_bytes_}, rows, memory);
    for (int64_t r = 0; r < p.rows; ++r) {
      const int64_t token = p.first + r / cut_.group, head = (p.first_head + i) * cut_.group + r % cut_.group;
      std::copy_n(rows.Row(r), cut_.head_dim, out_.Row(token) + head * cut_.head_dim);
    }
  }

  const AttendOptions& options_;
  const MatView<const float> q_;
  const MatView<float> out_;
  std::vector<kvcache::HeadView> heads_;
  Cut cut_;
  int64_t workers_ = 1;
  size_t query_bytes_ = 0, page_state_bytes_ = 0, dense_state_bytes_ = 0, stream_bytes_ = 0;
  size_t worker_bytes_ = 0, chunk_bytes_ = 0;
  std::vector<size_t> chunk_at_;
  std::byte *chunk_ = nullptr, *queries_ = nullptr, *page_states_ = nullptr, *dense_states_ = nullptr;
};

}  // namespace

Status CheckQueries(const kvcache::CacheConfig& c, const AttendOptions& options, MatView<const float> q, int64_t tokens,
                    MatView<float> out) {
  const auto shape = [](int64_t rows, int64_t cols) {
    return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  };
  if (q.cols < 1 || q.cols % (c.kv_heads * c.head_dim) != 0 || q.rows != tokens)
    return InvalidArgument("attention: queries must be [" + std::to_string(tokens) + ", a multiple of " +
                           std::to_string(c.kv_heads * c.head_dim) + "], got " + shape(q.rows, q.cols));
  if (out.rows != q.rows || out.cols != q.cols)
    return InvalidArgument("attention: the output must be " + shape(q.rows, q.cols) + ", got " +
                           shape(out.rows, out.cols));
  if (!std::isfinite(options.scale)) return InvalidArgument("attention: the scale is not a finite number");
  if (options.window < 0)
    return OutOfRange("attention: the window must be 0 (none) or more tokens, got " + std::to_string(options.window));
  return {};
}

Status AttendAndAppend(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options,
                       MatView<const float> q, MatView<const float> k, MatView<const float> v, MatView<float> out) {
  CROQUIS_CHECK_OK(kvcache::CheckAppend(cache, options.layer, k, v));
  CROQUIS_CHECK_OK(CheckQueries(cache.config(), options, q, k.rows, out));
  CROQUIS_CHECK_OK(CheckEviction(cache, options));
  if (q.rows == 0) return {};
  if (cache.edited()) {
    AttendEdited(executor, cache, options, q, k, v, out);
  } else {
    Call call(cache, options, q, out);
    call.Run(executor, k, v, kvcache::Workspace(cache, call.Bytes(executor.threads())));
  }
  Observe(executor, cache, options, q, k);
  kvcache::AppendChecked(executor, cache, options.layer, k, v);
  return {};
}

}  // namespace croquis::attention
