#include "croquis/attention/hydragen/batch_call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "croquis/attention/hydragen/common_rows.h"
#include "croquis/attention/hydragen/plain_pass.h"
#include "croquis/attention/hydragen/prefix_tree.h"
#include "croquis/attention/stream.h"
#include "croquis/attention/workspace.h"
#include "croquis/base/memory.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kBlockRows = 128;  // query rows that take a page together: enough to reuse an expanded page
constexpr int64_t kTasks = 64;       // pieces that the pages of a call are cut into when they can be
constexpr int64_t kFewRows = 8;      // query rows up to which memory is the limit; tasks then take several heads
constexpr int64_t kLeastPages = 16;  // of a piece: filling a pipeline, writing and joining its states stay below 5 %
constexpr int64_t kOwnPages = 8;     // pages of rows that a sequence reads along with its other rows
constexpr int64_t kLittleWork = int64_t{1} << 17;      // products of numbers; waking workers would cost more
constexpr int64_t kCheckedBytes = int64_t{256} << 20;  // working memory from which on the system is asked
constexpr float kLog2e = std::numbers::log2e_v<float>;

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

// Rows that some sequences hold alike, cut into blocks of query rows. A task is one block of one head.
struct RowPass {
  CommonRows rows;
  int64_t block_sequences = 1, blocks = 1;
  size_t state_bytes = 0, states = 0;  // of one block of one head; where they begin

  std::span<const int64_t> Block(int64_t block) const {
    const int64_t first = block * block_sequences, left = int64_t(rows.sequences.size()) - first;
    return std::span(rows.sequences).subspan(size_t(first), size_t(std::min(block_sequences, left)));
  }
};

// One call: everything its tasks share. Passes leave states over slices of pages, and over rows that sequences hold
// alike; what each sequence has for itself leaves one more, and a last loop joins them by sequence and head, in the
// order of the tree. How the call is cut depends on the shapes and the tree alone.
class Call {
 public:
  explicit Call(const BatchInputs& in) : in_(in) {
    const auto& config = in.caches[0]->config();
    kv_heads_ = config.kv_heads, dim_ = config.head_dim, group_ = in.q.cols / dim_ / kv_heads_;
    heads_.reserve(in.caches.size() * size_t(kv_heads_));
    for (const kvcache::KvCache* cache : in.caches)
      for (int64_t h = 0; h < kv_heads_; ++h) heads_.push_back(kvcache::ViewHead(*cache, in.options.layer, h));
    own_.resize(in_.caches.size());
    row_place_.resize(in_.caches.size());
    PrefixTree tree = BatchTree(in.caches, in.options.layer, group_);
    const bool pages_are_rows = std::all_of(heads_.begin(), heads_.end(), PagesAreRows);
    for (CommonRows& rows : FindCommonRows(in.caches, in.options.layer, group_, tree, pages_are_rows))
      AddRowPass(std::move(rows));
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
    const auto queries = int64_t(query_tasks_.size());
    all(queries + Sequences(), [&](int64_t t, int) {
      if (t >= queries) return RoundRows(t - queries);
      const auto [pass, number] = query_tasks_[size_t(t)];
      Prepare(*pass, number / pass->blocks, number % pass->blocks);
    });
    // Pages first, then rows that are alike, then the sequences' own: small pieces, which even out how long the workers
    // take.
    const auto pages = int64_t(page_tasks_.size()), rows = pages + int64_t(row_tasks_.size());
    all(rows + Sequences(), [&](int64_t t, int worker) {
      if (t >= rows) return OwnRows(t - rows, WorkerMemory(worker));
      if (t >= pages) return Rows(row_tasks_[size_t(t - pages)], WorkerMemory(worker));
      Pages(t, t + executor.threads(), WorkerMemory(worker));
    });
    all(Sequences(), [&](int64_t b, int worker) {
      JoinSequence(b, WorkerMemory(worker));
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

  void AddRowPass(CommonRows rows) {
    RowPass p;
    p.rows = std::move(rows);
    const auto sequences = int64_t(p.rows.sequences.size());
    for (int64_t i = 0; i < sequences; ++i)
      row_place_[size_t(p.rows.sequences[size_t(i)])] = {int64_t(row_passes_.size()), i};
    p.block_sequences = std::min(sequences, std::max<int64_t>(1, kBlockRows / group_));
    p.blocks = (sequences + p.block_sequences - 1) / p.block_sequences;
    for (int64_t h = 0; h < kv_heads_; ++h)
      for (int64_t block = 0; block < p.blocks; ++block) row_tasks_.push_back({int64_t(row_passes_.size()), h, block});
    row_passes_.push_back(std::move(p));
  }
  // That of a sequence, or null.
  const RowPass* RowPassOf(int64_t b) const {
    const int64_t pass = row_place_[size_t(b)].pass;
    return pass < 0 ? nullptr : &row_passes_[size_t(pass)];
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
    p.slice_pages = std::max(share / (effort * p.heads), kLeastPages);
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
    for (RowPass& p : row_passes_) {
      const int64_t rows = p.block_sequences * group_;
      p.state_bytes = StreamState::Bytes(rows, dim_);
      p.states = std::exchange(at, at + size_t(kv_heads_ * p.blocks) * p.state_bytes);
      for (int64_t h = 0; h < kv_heads_; ++h)
        worker_bytes_ = std::max(worker_bytes_, RowsBytes(Head(p.rows.source, h), rows));
      work_ += (p.rows.end - p.rows.begin) * int64_t(p.rows.sequences.size()) * group_ * kv_heads_;
    }
    dense_state_bytes_ = StreamState::Bytes(group_, dim_);
    dense_states_ = std::exchange(at, at + heads_.size() * dense_state_bytes_);
    for (int64_t b = 0; b < Sequences(); ++b) {
      int64_t runs = 0;
      for (const Pass* p : above_[size_t(b)]) runs += p->slices;
      for (int64_t h = 0; h < kv_heads_; ++h) {
        const kvcache::HeadView& head = Head(b, h);
        const size_t join = Round64(size_t(group_ * dim_) * 4) + JoinBytes(head, group_, dim_, runs);
        worker_bytes_ = std::max({worker_bytes_, RowsBytes(head, group_), join});
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
  // `sequences` in order, each with the rows of kv head h, which see tokens from `first` on. Query: HeadQuery or
  // PlainQuery.
  template <class Query>
  Query* MakeQuery(const kvcache::HeadView& head, std::span<const int64_t> sequences, int64_t h, int64_t first,
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
      visible[size_t(r)].first = std::max(visible[size_t(r)].first, first);
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
    const kvcache::HeadView& head = Head(sequences[0], h);
    // A sequence's own pages may begin with tokens that it holds like others.
    const RowPass* const rows = p.run.sequences == 1 ? RowPassOf(sequences[0]) : nullptr;
    const bool overlap = rows != nullptr && head.sinks + p.run.first_page * kPage >= rows->rows.begin;
    const int64_t first = overlap ? rows->rows.end : 0;
    if (p.plain)
      MakeQuery<PlainQuery>(head, sequences, h, first, QueryAt(p, h, block));
    else
      MakeQuery<HeadQuery>(head, sequences, h, first, QueryAt(p, h, block));
  }

  // ---- states ----
  std::byte* StateAt(const Pass& p, int64_t slice, int64_t h, int64_t block) {
    return memory_ + p.states + size_t((slice * kv_heads_ + h) * p.blocks + block) * p.state_bytes;
  }
  std::byte* DenseStateAt(int64_t b, int64_t h) {
    return memory_ + dense_states_ + size_t(b * kv_heads_ + h) * dense_state_bytes_;
  }

  // One task of the pages: a slice of a pass and some heads.
  struct PageTask {
    const Pass* pass;
    int64_t slice, first_head, heads, begin, end;  // pages
  };
  PageTask PageTaskAt(int64_t task) const {
    const auto [pass, number] = page_tasks_[size_t(task)];
    const Pass& p = *pass;
    PageTask t{pass, number / p.head_sets, number % p.head_sets * p.heads, 0, 0, 0};
    t.heads = std::min(p.heads, kv_heads_ - t.first_head);
    t.begin = p.run.first_page + t.slice * p.slice_pages;
    t.end = std::min(p.run.first_page + p.run.pages, t.begin + p.slice_pages);
    return t;
  }
  // next_task: the one that this worker is likely to do next, for prefetching.
  void Pages(int64_t task, int64_t next_task, std::byte* memory) {
    const auto [pass, slice, first_head, heads, begin, end] = PageTaskAt(task);
    const Pass& p = *pass;
    if (p.plain) return PlainPages(PageTaskAt(task), next_task, memory);
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
  void PlainPages(const PageTask& t, int64_t next_task, std::byte* memory) {
    const Pass& p = *t.pass;
    for (int64_t h = t.first_head; h < t.first_head + t.heads; ++h) {
      PlainQuery::Pages next;
      if (h + 1 < t.first_head + t.heads) {
        next = {&Head(order_[size_t(p.run.first)], h + 1), t.begin, t.end};
      } else if (next_task < int64_t(page_tasks_.size())) {
        const PageTask n = PageTaskAt(next_task);
        next = {&Head(order_[size_t(n.pass->run.first)], n.first_head), n.begin, n.end};
      }
      reinterpret_cast<const PlainQuery*>(QueryAt(p, h, 0))
          ->Attend(t.begin, t.end, next, StreamState::At(StateAt(p, t.slice, h, 0), p.run.sequences * group_, dim_),
                   memory);
    }
  }

  // ---- rows ----
  size_t RowsBytes(const kvcache::HeadView& head, int64_t rows) const {
    return Round64(sizeof(kvcache::HeadView)) + QueryBytes(head, rows) + Stream::Bytes(head, rows, dim_) +
           Stream::SharedBytes(head, rows);
  }
  // The state of some sequences' rows of head h over rows of keys and values, which `source` holds.
  void ReadRows(std::span<const int64_t> sequences, int64_t source, int64_t h, std::span<const DenseRows> rows,
                std::byte* to, std::byte* memory) const {
    const int64_t query_rows = int64_t(sequences.size()) * group_;
    Pieces pieces(memory);
    auto* const head = new (pieces.Take<std::byte>(sizeof(kvcache::HeadView))) kvcache::HeadView(Head(source, h));
    head->encoded = 0;  // no pages here, so nothing to prepare for them
    const HeadQuery& query =
        *MakeQuery<HeadQuery>(*head, sequences, h, 0, pieces.Take<std::byte>(QueryBytes(Head(source, h), query_rows)));
    std::byte* const own = pieces.Take<std::byte>(Stream::Bytes(Head(source, h), query_rows, dim_));
    Stream(query, StreamState::At(to, query_rows, dim_), own, pieces.rest()).Dense(rows);
  }
  // Appends those of a segment that stand at positions [begin, end).
  void Take(const DenseRows& segment, int64_t row_bytes, int64_t begin, int64_t end,
            std::vector<DenseRows>& rows) const {
    begin = std::max(begin, segment.position), end = std::min(end, segment.position + segment.tokens);
    const int64_t skip = (begin - segment.position) * row_bytes;
    if (begin < end) rows.push_back({segment.k + skip, segment.v + skip, begin, end - begin});
  }
  // Sinks, some pages where they are rows, ring and the new token of one sequence, in ascending order of position.
  std::vector<DenseRows> RowsOf(int64_t b, int64_t h, int64_t first_page, int64_t end_page) {
    const kvcache::HeadView& head = Head(b, h);
    const auto exact = ExactRows(head, NewRow(b, h, false), NewRow(b, h, true), 1);
    std::vector<DenseRows> rows = {exact[0]};
    for (int64_t j = first_page; j < end_page; ++j)
      rows.push_back(
          {head.KeyPage(j), head.ValuePage(j), head.sinks + j * kPage, std::min(kPage, head.encoded - j * kPage)});
    rows.insert(rows.end(), exact.begin() + 1, exact.end());
    return rows;
  }

  struct RowTask {
    int64_t pass, head, block;
  };
  std::byte* StateAt(const RowPass& p, int64_t h, int64_t block) {
    return memory_ + p.states + size_t(h * p.blocks + block) * p.state_bytes;
  }
  void Rows(const RowTask& task, std::byte* memory) {
    const RowPass& p = row_passes_[size_t(task.pass)];
    const kvcache::HeadView& head = Head(p.rows.source, task.head);
    const auto page = [&](int64_t position) {
      return (std::min(position - head.sinks, head.encoded) + kPage - 1) / kPage;
    };
    std::vector<DenseRows> rows;
    for (const DenseRows& segment :
         RowsOf(p.rows.source, task.head, (p.rows.begin - head.sinks) / kPage, page(p.rows.end))) {
      Take(segment, head.row_bytes, 0, head.sinks, rows);
      Take(segment, head.row_bytes, p.rows.begin, p.rows.end, rows);
    }
    ReadRows(p.Block(task.block), p.rows.source, task.head, rows, StateAt(p, task.head, task.block), memory);
  }
  // What a sequence has for itself, and nobody reads for it.
  void OwnRows(int64_t b, std::byte* memory) {
    const SharedRun& own = own_[size_t(b)];
    const RowPass* const others = RowPassOf(b);
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const kvcache::HeadView& head = Head(b, h);
      std::vector<DenseRows> rows = RowsOf(b, h, own.first_page, own.first_page + own.pages);
      if (others != nullptr) {
        std::vector<DenseRows> left;
        for (const DenseRows& segment : rows) {
          Take(segment, head.row_bytes, head.sinks, others->rows.begin, left);
          Take(segment, head.row_bytes, others->rows.end, head.length + 1, left);
        }
        rows = std::move(left);
      }
      ReadRows({&b, 1}, b, h, rows, DenseStateAt(b, h), memory);
    }
  }

  // Puts the state over rows that are read for several sequences into that of the sequence's own.
  void AddCommonRows(int64_t b, int64_t h) {
    const RowPass* const p = RowPassOf(b);
    if (p == nullptr) return;
    const int64_t place = row_place_[size_t(b)].place, block = place / p->block_sequences;
    const auto from = StreamState::At(StateAt(*p, h, block), int64_t(p->Block(block).size()) * group_, dim_);
    const auto to = StreamState::At(DenseStateAt(b, h), group_, dim_);
    for (int64_t r = 0; r < group_; ++r) {
      const int64_t i = place % p->block_sequences * group_ + r;
      if (from.mass[i] == 0) continue;
      const float max = std::max(from.max[i], to.max[r]);
      const float down = std::exp2(to.max[r] - max), weight = std::exp2(from.max[i] - max);
      const float* const x = from.sums.Row(i);
      float* const y = to.sums.Row(r);
      for (int64_t n = 0; n < dim_; ++n) y[n] = y[n] * down + x[n] * weight;
      to.max[r] = max, to.mass[r] = to.mass[r] * down + from.mass[i] * weight;
    }
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
      AddCommonRows(b, h);
      Join(Head(b, h), {states, DenseStateAt(b, h)}, rows, pieces.rest());
      std::memcpy(in_.out.Row(b) + h * group_ * dim_, rows.data, size_t(group_ * dim_) * 4);
    }
  }

  const BatchInputs& in_;
  int64_t kv_heads_ = 0, dim_ = 0, group_ = 0;
  std::vector<kvcache::HeadView> heads_;  // [sequence][kv head]
  std::vector<int64_t> order_;
  std::vector<Pass> passes_;
  std::vector<SharedRun> own_;  // of each sequence: pages of rows that are read with the others, maybe none
  std::vector<RowPass> row_passes_;
  std::vector<RowTask> row_tasks_;
  struct RowPlace {
    int64_t pass = -1, place = 0;
  };
  std::vector<RowPlace> row_place_;
  std::vector<std::vector<const Pass*>> above_;  // the passes of each sequence, from the root on
  std::vector<std::pair<const Pass*, int64_t>> query_tasks_, page_tasks_;
  int64_t page_work_ = 0, work_ = 0;
  size_t row_stride_ = 0, dense_states_ = 0, dense_state_bytes_ = 0, stream_bytes_ = 0;
  size_t worker_at_ = 0, worker_bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace

Status AttendTogether(Executor& executor, const BatchInputs& in) {
  Call call(in);
  const int64_t bytes = call.Bytes(executor.threads());
  if (bytes > kCheckedBytes)
    CROQUIS_CHECK_OK(CheckMemory(bytes, "attention of " + std::to_string(in.caches.size()) + " sequences"));
  call.Run(executor, kvcache::Workspace(*in.caches[0], size_t(bytes)));
  return {};
}

}  // namespace croquis::attention
