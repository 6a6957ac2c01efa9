#include "croquis/attention/hydragen/attend_batch.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "croquis/attention/hydragen/plain_pass.h"
#include "croquis/attention/hydragen/prefix_tree.h"
#include "croquis/attention/observe.h"
#include "croquis/attention/stream.h"
#include "croquis/attention/workspace.h"
#include "croquis/base/memory.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kBlockRows = 128;     // query rows that take a page together: enough to reuse an expanded page
constexpr int64_t kTasks = 64;          // pieces that the pages of a call are cut into when they can be
constexpr int64_t kFewRows = 8;         // query rows up to which memory is the limit; tasks then take several heads
constexpr int64_t kLeastPages = 8;      // of a piece: writing and joining its states stay below 5 %
constexpr int64_t kLeastPagesFew = 16;  // the same for few rows
constexpr int64_t kOwnPages = 8;        // pages of rows that a sequence reads along with its other rows
constexpr int64_t kLittleWork = int64_t{1} << 17;      // products of numbers; waking workers would cost more
constexpr int64_t kCheckedBytes = int64_t{256} << 20;  // working memory from which on the system is asked
constexpr float kLog2e = std::numbers::log2e_v<float>;

struct Inputs {
  std::span<kvcache::KvCache* const> caches;
  const AttendOptions& options;
  MatView<const float> q, k, v;
  MatView<float> out;
};

PrefixTree TreeOf(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group) {
  std::vector<std::span<kvcache::Unit* const>> tables;
  for (const kvcache::KvCache* cache : caches) {
    const kvcache::HeadView head = kvcache::ViewHead(*cache, layer, 0);
    tables.emplace_back(head.units, size_t(head.Pages()));
  }
  return FindPrefixTree(tables, group);
}

// A run of pages with the query rows of all sequences that share it, and how it is cut: rows into blocks, pages into
// slices, kv heads into sets. A task is one slice of one set of heads, with all rows.
struct Pass {
  SharedRun run;
  bool plain = false;  // a PlainQuery takes them
  int64_t block_sequences = 1, blocks = 1;
  int64_t heads = 1, head_sets = 1;
  int64_t slice_pages = 1, slices = 1;
  size_t query_bytes = 0, state_bytes = 0;  // of one block of one head
  size_t queries = 0, states = 0;           // where they begin

  int64_t tasks() const { return head_sets * slices; }
  int64_t BlockSequences(int64_t block) const {
    return std::min(block_sequences, run.sequences - block * block_sequences);
  }
};

// One call: everything its tasks share. Passes leave states over slices of pages, each sequence's sinks, ring and new
// token leave one more, and a last loop joins them by sequence and head, in the order of the tree. How the call is cut
// depends on the shapes and the tree alone.
class Call {
 public:
  explicit Call(const Inputs& in) : in_(in) {
    const auto& config = in.caches[0]->config();
    kv_heads_ = config.kv_heads, dim_ = config.head_dim, group_ = in.q.cols / dim_ / kv_heads_;
    heads_.reserve(in.caches.size() * size_t(kv_heads_));
    for (const kvcache::KvCache* cache : in.caches)
      for (int64_t h = 0; h < kv_heads_; ++h) heads_.push_back(kvcache::ViewHead(*cache, in.options.layer, h));
    own_.resize(in_.caches.size());
    PrefixTree tree = TreeOf(in.caches, in.options.layer, group_);
    order_ = std::move(tree.order);
    for (const SharedRun& run : tree.runs) AddPass(run);
    for (Pass& p : passes_) CutPass(p);
    Lay();
  }

  int64_t Bytes(int workers) const { return int64_t(worker_at_ + size_t(workers) * worker_bytes_); }

  void Run(Executor& executor, std::byte* memory) {
    memory_ = memory;
    const bool little = work_ * dim_ < kLittleWork;
    const auto all = [&](int64_t tasks, const auto& task) {
      if (!little) return executor.ParallelFor(tasks, task);
      for (int64_t t = 0; t < tasks; ++t) task(t, 0);
    };
    all(Sequences(), [&](int64_t b, int) { RoundRows(b); });
    all(int64_t(query_tasks_.size()), [&](int64_t t, int) {
      const auto [pass, number] = query_tasks_[size_t(t)];
      Prepare(*pass, number / pass->blocks, number % pass->blocks);
    });
    // Pages first, then the sequences' own rows: small pieces, which even out how long the workers take.
    const auto pages = int64_t(page_tasks_.size());
    all(pages + Sequences(), [&](int64_t t, int worker) {
      if (t >= pages) return Dense(t - pages, WorkerMemory(worker));
      const auto [pass, number] = page_tasks_[size_t(t)];
      Pages(*pass, number / pass->head_sets, number % pass->head_sets, WorkerMemory(worker));
    });
    all(Sequences(), [&](int64_t b, int worker) { JoinSequence(b, WorkerMemory(worker)); });
    all(Sequences(), [&](int64_t b, int) {
      Executor serial;
      kvcache::AppendChecked(serial, *in_.caches[size_t(b)], in_.options.layer, in_.k.Rows(b, 1), in_.v.Rows(b, 1));
    });
  }

 private:
  int64_t Sequences() const { return int64_t(in_.caches.size()); }
  const kvcache::HeadView& Head(int64_t b, int64_t h) const { return heads_[size_t(b * kv_heads_ + h)]; }
  Visible VisibleTo(int64_t b) const {
    const int64_t position = Head(b, 0).length;
    return {in_.options.window > 0 ? std::max<int64_t>(0, position - in_.options.window + 1) : 0, position + 1};
  }

  // A pass over the pages of a run that anyone sees.
  void AddPass(SharedRun run) {
    int64_t first = run.first_page + run.pages;
    for (int64_t i = run.first; i < run.first + run.sequences; ++i) {
      const int64_t b = order_[size_t(i)];
      first = std::min(first, std::max<int64_t>(0, VisibleTo(b).first - Head(b, 0).sinks) / kPage);
    }
    const int64_t skip = std::max<int64_t>(0, first - run.first_page);
    run.first_page += skip, run.pages -= skip;
    if (run.pages == 0) return;
    const int64_t b = order_[size_t(run.first)], rows = run.sequences * group_;
    const auto all_heads = [&](const auto& is) {
      for (int64_t h = 0; h < kv_heads_; ++h)
        if (!is(Head(b, h))) return false;
      return true;
    };
    Pass p;
    p.run = run;
    p.plain = all_heads([&](const auto& head) { return PlainQuery::Takes(head, rows); });
    if (run.sequences == 1 && !p.plain && run.pages <= kOwnPages && all_heads(PagesAreRows)) {
      own_[size_t(b)] = run;
      return;
    }
    p.block_sequences = p.plain ? run.sequences : std::min(run.sequences, std::max<int64_t>(1, kBlockRows / group_));
    p.blocks = (run.sequences + p.block_sequences - 1) / p.block_sequences;
    passes_.push_back(p);
    page_work_ += run.pages * Effort(p) * kv_heads_;
  }

  // What a page of one head costs, in query rows: few of them take as long as kFewRows.
  int64_t Effort(const Pass& p) const { return std::max(kFewRows, p.run.sequences * group_); }

  void CutPass(Pass& p) {
    const bool few = p.run.sequences * group_ <= kFewRows;
    const int64_t share = page_work_ / kTasks + 1, effort = Effort(p);
    p.heads = few ? kv_heads_ : 1;
    p.slice_pages = std::max(share / (effort * p.heads), few ? kLeastPagesFew : kLeastPages);
    p.slice_pages = std::min(p.slice_pages, p.run.pages);
    p.slices = (p.run.pages + p.slice_pages - 1) / p.slice_pages;
    p.slice_pages = (p.run.pages + p.slices - 1) / p.slices;  // equal ones
    p.slices = (p.run.pages + p.slice_pages - 1) / p.slice_pages;
    if (few) p.heads = std::clamp<int64_t>(share / (effort * p.slice_pages), 1, kv_heads_);
    p.head_sets = (kv_heads_ + p.heads - 1) / p.heads;
    for (int64_t t = 0; t < p.tasks(); ++t) page_tasks_.emplace_back(&p, t);
    for (int64_t t = 0; t < kv_heads_ * p.blocks; ++t) query_tasks_.emplace_back(&p, t);
  }

  // Where everything lies in the working memory, and how much each worker needs.
  void Lay() {
    size_t at = 0, row_bytes = 0;
    above_.resize(in_.caches.size());
    for (const auto& head : heads_) row_bytes = std::max(row_bytes, size_t(head.row_bytes));
    row_stride_ = Round64(row_bytes);
    at += 2 * heads_.size() * row_stride_;
    for (Pass& p : passes_) {
      const int64_t rows = p.block_sequences * group_, first = order_[size_t(p.run.first)];
      size_t streams = 0, shared = 0;
      for (int64_t h = 0; h < kv_heads_; ++h) {
        const kvcache::HeadView& head = Head(first, h);
        p.query_bytes = std::max(p.query_bytes, p.plain ? PlainBytes(rows) : QueryBytes(head, rows));
        p.state_bytes = std::max(p.state_bytes, StreamState::Bytes(rows, head.value->AccDim()));
        if (p.plain) continue;
        streams = std::max(streams, Stream::Bytes(head, rows, dim_));
        shared = std::max(shared, Stream::SharedBytes(head, rows));
      }
      p.queries = std::exchange(at, at + size_t(kv_heads_ * p.blocks) * p.query_bytes);
      p.states = std::exchange(at, at + size_t(kv_heads_ * p.blocks * p.slices) * p.state_bytes);
      const auto together = size_t(p.heads * p.blocks);
      stream_bytes_ = std::max(stream_bytes_, streams);
      worker_bytes_ = std::max(worker_bytes_, Round64(together * sizeof(Stream)) + together * streams + shared);
      if (p.plain) worker_bytes_ = std::max(worker_bytes_, PlainQuery::WorkBytes(rows, dim_, p.slice_pages));
      for (int64_t i = p.run.first; i < p.run.first + p.run.sequences; ++i)
        above_[size_t(order_[size_t(i)])].push_back(&p);
      work_ += p.run.pages * kPage * p.run.sequences * group_ * kv_heads_;
    }
    dense_state_bytes_ = StreamState::Bytes(group_, dim_);
    dense_states_ = std::exchange(at, at + heads_.size() * dense_state_bytes_);
    for (int64_t b = 0; b < Sequences(); ++b) {
      int64_t runs = 0;
      for (const Pass* p : above_[size_t(b)]) runs += p->slices;
      for (int64_t h = 0; h < kv_heads_; ++h) {
        const kvcache::HeadView& head = Head(b, h);
        const size_t dense = Round64(sizeof(kvcache::HeadView)) + QueryBytes(head, group_) +
                             Stream::Bytes(head, group_, dim_) + Stream::SharedBytes(head, group_);
        const size_t join = Round64(size_t(group_ * dim_) * 4) + JoinBytes(head, group_, dim_, runs);
        worker_bytes_ = std::max({worker_bytes_, dense, join});
      }
      const kvcache::HeadView& head = Head(b, 0);
      work_ += (head.length - head.encoded + own_[size_t(b)].pages * kPage + 1) * group_ * kv_heads_;
    }
    worker_at_ = at;
  }

  std::byte* WorkerMemory(int worker) { return memory_ + worker_at_ + size_t(worker) * worker_bytes_; }
  // Row of the new token as the ring will hold it.
  std::byte* NewRow(int64_t b, int64_t h, bool value) {
    return memory_ + size_t((b * kv_heads_ + h) * 2 + (value ? 1 : 0)) * row_stride_;
  }
  void RoundRows(int64_t b) {
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const simd::RowType type = Head(b, h).type;
      kvcache::RoundRow(type, in_.k.Row(b) + h * dim_, dim_, NewRow(b, h, false));
      kvcache::RoundRow(type, in_.v.Row(b) + h * dim_, dim_, NewRow(b, h, true));
    }
  }

  // ---- queries: the object, what its rows see, the rows, what the codec prepares ----
  size_t QueryBytes(const kvcache::HeadView& head, int64_t rows) const {
    return Round64(sizeof(HeadQuery)) + Round64(size_t(rows) * sizeof(Visible)) + Round64(size_t(rows * dim_) * 4) +
           HeadQuery::Bytes(head, rows, dim_);
  }
  size_t PlainBytes(int64_t rows) const {
    return Round64(sizeof(PlainQuery)) + Round64(size_t(rows) * sizeof(Visible)) + Round64(size_t(rows * dim_) * 4) +
           PlainQuery::Bytes(rows, dim_);
  }
  // `sequences` in order, each with the rows of kv head h. Query: HeadQuery or PlainQuery.
  template <class Query>
  Query* MakeQuery(const kvcache::HeadView& head, std::span<const int64_t> sequences, int64_t h,
                   std::byte* memory) const {
    Pieces pieces(memory);
    const int64_t rows = int64_t(sequences.size()) * group_;
    std::byte* const at = pieces.Take<std::byte>(sizeof(Query));
    const std::span<Visible> visible(pieces.Take<Visible>(size_t(rows)), size_t(rows));
    const MatView<float> q(pieces.Take<float>(size_t(rows * dim_)), rows, dim_);
    const float scale = in_.options.scale * kLog2e;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = sequences[size_t(r / group_)];
      visible[size_t(r)] = VisibleTo(b);
      const float* from = in_.q.Row(b) + (h * group_ + r % group_) * dim_;
      for (int64_t i = 0; i < dim_; ++i) q(r, i) = from[i] * scale;
    }
    return new (at) Query(head, q, visible, pieces.rest());
  }
  std::span<const int64_t> BlockOrder(const Pass& p, int64_t block) const {
    return std::span(order_).subspan(size_t(p.run.first + block * p.block_sequences), size_t(p.BlockSequences(block)));
  }
  std::byte* QueryAt(const Pass& p, int64_t h, int64_t block) {
    return memory_ + p.queries + size_t(h * p.blocks + block) * p.query_bytes;
  }
  void Prepare(const Pass& p, int64_t h, int64_t block) {
    const auto sequences = BlockOrder(p, block);
    const kvcache::HeadView& head = Head(order_[size_t(p.run.first)], h);
    if (p.plain)
      MakeQuery<PlainQuery>(head, sequences, h, QueryAt(p, h, block));
    else
      MakeQuery<HeadQuery>(head, sequences, h, QueryAt(p, h, block));
  }

  // ---- states ----
  std::byte* StateAt(const Pass& p, int64_t slice, int64_t h, int64_t block) {
    return memory_ + p.states + size_t((slice * kv_heads_ + h) * p.blocks + block) * p.state_bytes;
  }
  std::byte* DenseStateAt(int64_t b, int64_t h) {
    return memory_ + dense_states_ + size_t(b * kv_heads_ + h) * dense_state_bytes_;
  }

  void Pages(const Pass& p, int64_t slice, int64_t head_set, std::byte* memory) {
    const int64_t first_head = head_set * p.heads, heads = std::min(p.heads, kv_heads_ - first_head);
    const int64_t begin = p.run.first_page + slice * p.slice_pages,
                  end = std::min(p.run.first_page + p.run.pages, begin + p.slice_pages);
    if (p.plain) return PlainPages(p, slice, first_head, heads, begin, end, memory);
    Pieces pieces(memory);
    auto* const streams = pieces.Take<Stream>(size_t(heads * p.blocks));
    std::byte* const own = pieces.Take<std::byte>(size_t(heads * p.blocks) * stream_bytes_);
    for (int64_t n = 0; n < heads * p.blocks; ++n) {
      const int64_t h = first_head + n / p.blocks, block = n % p.blocks;
      const int64_t rows = p.BlockSequences(block) * group_,
                    width = Head(order_[size_t(p.run.first)], h).value->AccDim();
      const auto& query = *reinterpret_cast<const HeadQuery*>(QueryAt(p, h, block));
      const auto state = StreamState::At(StateAt(p, slice, h, block), rows, width);
      new (streams + n) Stream(query, state, own + size_t(n) * stream_bytes_, pieces.rest());
    }
    Stream::Pages({streams, size_t(heads * p.blocks)}, begin, end);
  }
  void PlainPages(const Pass& p, int64_t slice, int64_t first_head, int64_t heads, int64_t begin, int64_t end,
                  std::byte* memory) {
    for (int64_t h = first_head; h < first_head + heads; ++h)
      reinterpret_cast<const PlainQuery*>(QueryAt(p, h, 0))
          ->Attend(begin, end, StreamState::At(StateAt(p, slice, h, 0), p.run.sequences * group_, dim_), memory);
  }

  // Sinks, pages of its own where they are rows, ring and the new token of one sequence.
  void Dense(int64_t b, std::byte* memory) {
    for (int64_t h = 0; h < kv_heads_; ++h) {
      Pieces pieces(memory);
      auto* const head = new (pieces.Take<std::byte>(sizeof(kvcache::HeadView))) kvcache::HeadView(Head(b, h));
      head->encoded = 0;  // no pages here, so nothing to prepare for them
      const HeadQuery& query =
          *MakeQuery<HeadQuery>(*head, {&b, 1}, h, pieces.Take<std::byte>(QueryBytes(Head(b, h), group_)));
      const auto state = StreamState::At(DenseStateAt(b, h), group_, dim_);
      std::byte* const own = pieces.Take<std::byte>(Stream::Bytes(Head(b, h), group_, dim_));
      DenseRows rows[kOwnPages + 4];
      Stream(query, state, own, pieces.rest()).Dense({rows, OwnRows(b, h, rows)});
    }
  }
  // In ascending order of position; returns how many.
  size_t OwnRows(int64_t b, int64_t h, DenseRows* rows) {
    const kvcache::HeadView& head = Head(b, h);
    const auto exact = ExactRows(head, NewRow(b, h, false), NewRow(b, h, true), 1);
    size_t n = 0;
    rows[n++] = exact[0];
    const SharedRun& own = own_[size_t(b)];
    for (int64_t j = own.first_page; j < own.first_page + own.pages; ++j)
      rows[n++] = {head.KeyPage(j), head.ValuePage(j), head.sinks + j * kPage,
                   std::min(kPage, head.encoded - j * kPage)};
    for (size_t i = 1; i < exact.size(); ++i) rows[n++] = exact[i];
    return n;
  }

  void JoinSequence(int64_t b, std::byte* memory) {
    std::vector<PassStates> states;
    Pieces pieces(memory);
    const MatView<float> rows(pieces.Take<float>(size_t(group_ * dim_)), group_, dim_);
    for (int64_t h = 0; h < kv_heads_; ++h) {
      states.clear();
      for (const Pass* p : above_[size_t(b)]) {
        const int64_t place = std::find(order_.begin() + p->run.first, order_.end(), b) - order_.begin() - p->run.first;
        const int64_t block = place / p->block_sequences;
        states.push_back({StateAt(*p, 0, h, block), size_t(kv_heads_ * p->blocks) * p->state_bytes, p->slices,
                          p->BlockSequences(block) * group_, place % p->block_sequences * group_});
      }
      Join(Head(b, h), {states, DenseStateAt(b, h)}, rows, pieces.rest());
      std::memcpy(in_.out.Row(b) + h * group_ * dim_, rows.data, size_t(group_ * dim_) * 4);
    }
  }

  const Inputs& in_;
  int64_t kv_heads_ = 0, dim_ = 0, group_ = 0;
  std::vector<kvcache::HeadView> heads_;  // [sequence][kv head]
  std::vector<int64_t> order_;
  std::vector<Pass> passes_;
  std::vector<SharedRun> own_;  // of each sequence: pages of rows that are read with the others, maybe none
  std::vector<std::vector<const Pass*>> above_;  // the passes of each sequence, from the root on
  std::vector<std::pair<const Pass*, int64_t>> query_tasks_, page_tasks_;
  int64_t page_work_ = 0, work_ = 0;
  size_t row_stride_ = 0, dense_states_ = 0, dense_state_bytes_ = 0, stream_bytes_ = 0;
  size_t worker_at_ = 0, worker_bytes_ = 0;
  std::byte* memory_ = nullptr;
};

std::string Shape(int64_t rows, int64_t cols) { return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }

Status Check(const Inputs& in) {
  const auto sequences = int64_t(in.caches.size());
  const auto& first = in.caches[0]->config();
  for (int64_t b = 0; b < sequences; ++b) {
    const auto& c = in.caches[size_t(b)]->config();
    if (c.layers != first.layers || c.kv_heads != first.kv_heads || c.head_dim != first.head_dim)
      return InvalidArgument("attention: the cache of sequence " + std::to_string(b) + " has " +
                             std::to_string(c.layers) + " layers of " + Shape(c.kv_heads, c.head_dim) +
                             ", that of sequence 0 " + std::to_string(first.layers) + " of " +
                             Shape(first.kv_heads, first.head_dim));
  }
  std::vector<kvcache::KvCache*> sorted(in.caches.begin(), in.caches.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    return InvalidArgument("attention: a cache comes twice among the sequences; give each its own with Branch");
  if (in.q.rows != sequences || in.k.rows != sequences || in.v.rows != sequences)
    return InvalidArgument("attention: " + std::to_string(sequences) + " sequences need as many rows, got queries " +
                           Shape(in.q.rows, in.q.cols) + ", keys " + Shape(in.k.rows, in.k.cols) + ", values " +
                           Shape(in.v.rows, in.v.cols));
  CROQUIS_CHECK_OK(CheckQueries(in.caches[0]->config(), in.options, in.q, sequences, in.out));
  for (int64_t b = 0; b < sequences; ++b) {
    const Status s = kvcache::CheckAppend(*in.caches[size_t(b)], in.options.layer, in.k.Rows(b, 1), in.v.Rows(b, 1));
    if (!s) return Error{s.error().code, "sequence " + std::to_string(b) + ": " + s.error().message};
  }
  return {};
}

// Rows that an eviction policy keeps belong to one sequence alone: nothing is shared. In an edited cache queries are
// turned segment by segment.
Status OneByOne(Executor& executor, const Inputs& in) {
  for (const kvcache::KvCache* cache : in.caches) CROQUIS_CHECK_OK(CheckEviction(*cache, in.options));
  for (size_t b = 0; b < in.caches.size(); ++b) {
    const auto r = int64_t(b);
    CROQUIS_CHECK_OK(AttendAndAppend(executor, *in.caches[b], in.options, in.q.Rows(r, 1), in.k.Rows(r, 1),
                                     in.v.Rows(r, 1), in.out.Rows(r, 1)));
  }
  return {};
}

}  // namespace

Status AttendBatch(Executor& executor, std::span<kvcache::KvCache* const> caches, const AttendOptions& options,
                   MatView<const float> q, MatView<const float> k, MatView<const float> v, MatView<float> out) {
  if (caches.empty()) return {};
  const Inputs in{caches, options, q, k, v, out};
  CROQUIS_CHECK_OK(Check(in));
  const auto alone = [&](const kvcache::KvCache* c) {
    return c->edited() || kvcache::ViewHead(*c, options.layer, 0).evicts;
  };
  if (std::any_of(caches.begin(), caches.end(), alone)) return OneByOne(executor, in);
  Call call(in);
  const int64_t bytes = call.Bytes(executor.threads());
  if (bytes > kCheckedBytes)
    CROQUIS_CHECK_OK(CheckMemory(bytes, "attention of " + std::to_string(caches.size()) + " sequences"));
  call.Run(executor, kvcache::Workspace(*caches[0], size_t(bytes)));
  return {};
}

SharingReport DescribeSharing(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group) {
  SharingReport r;
  const PrefixTree tree = TreeOf(caches, layer, group);
  std::vector<int64_t> depth(caches.size());
  for (const SharedRun& run : tree.runs) {
    r.pages += run.pages * run.sequences;
    r.pages_read += run.pages;
    if (run.sequences < 2) continue;
    ++r.nodes;
    for (int64_t i = run.first; i < run.first + run.sequences; ++i)
      r.depth = std::max(r.depth, ++depth[size_t(tree.order[size_t(i)])]);
  }
  return r;
}

}  // namespace croquis::attention
