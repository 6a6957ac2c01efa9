#include "croquis/attention/hyper/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "croquis/simd/dense_kernels.h"

namespace croquis::attention::hyper {
namespace {

// Without a mask every key is among the sorted ones; keys in order are needed where something is exact.
bool NeedsKeysInOrder(const Problem& p, const Plan& plan) { return p.mask.causal || plan.segments.empty(); }

// Rows that lie far apart are copied; 0 where they lie one behind the other.
int64_t CopyBytes(const Problem& p) {
  const auto dense = [](const TensorView& t) { return t.row_stride == t.dim; };
  if (dense(p.q) && dense(p.k) && dense(p.v)) return 0;
  return p.Group() * p.q.rows * p.q.dim * simd::RowTypeBytes(p.q.type) +
         p.k.rows * (p.k.dim * simd::RowTypeBytes(p.k.type) + p.v.dim * simd::RowTypeBytes(p.v.type));
}

// The problem of a single kv head whose tensors lie one behind the other in `copy` (or nowhere yet, if it is empty).
Problem OneKvHead(const Problem& p, const Buffer& copy) {
  Problem one = p;
  const std::byte* at = copy.data();
  const auto place = [&at](TensorView& t, int64_t heads) {
    t.data = at, t.heads = heads, t.row_stride = t.dim, t.head_stride = t.rows * t.dim;
    at += heads * t.head_stride * simd::RowTypeBytes(t.type);
  };
  if (copy.size() == 0) return one;
  place(one.q, p.Group()), place(one.k, 1), place(one.v, 1);
  return one;
}

// fn(first, rows) for tiles of a range of rows.
template <class Fn>
void EachTile(Range rows, const Fn& fn) {
  for (int64_t at = rows.first; at < rows.last; at += kTileRows) fn(at, std::min(kTileRows, rows.last - at));
}

}  // namespace

Engine::Engine(int threads, const Problem& problem, const Output& output, const Options& options, const Plan& plan,
               TileType type)
    : problem_(problem),
      output_(output),
      options_(options),
      plan_(plan),
      type_(type),
      copy_(plan.segments.empty() ? 0 : size_t(CopyBytes(problem))),
      head_(OneKvHead(problem, copy_)),
      index_(type, head_, options, plan),
      segment_keys_(type, head_, options, plan),
      in_order_(type, NeedsKeysInOrder(problem, plan) ? problem.k.rows : 0, problem.k.dim, problem.v.dim),
      certify_(SplitsSamples(options.residual)),
      slopes_(plan.groups) {
  const int64_t group = problem.Group();
  for (const Stage& stage : plan.stages) {
    StageTiles& tiles = tiles_.emplace_back();
    for (const std::vector<Group>& pass : stage.passes) {
      tiles.passes.emplace_back();
      for (const Group& rows : pass)
        for (int64_t g = 0; g < group; ++g)
          EachTile({0, rows.rows.size()}, [&](int64_t first, int64_t n) {
            tiles.passes.back().push_back({&rows, g, first, n});
          });
    }
    for (const Leaf& leaf : stage.leaves)
      for (int64_t g = 0; g < group; ++g)
        EachTile(leaf.rows, [&](int64_t first, int64_t n) { tiles.leaves.push_back({&leaf, g, first, n}); });
  }
  if (moment())
    for (Slope& slope : slopes_) slope.covariance = KeySet(type, problem.k.dim, 1, problem.v.dim);
  for (int i = 0; i < threads; ++i) workers_.emplace_back(type, problem.k.dim, problem.v.dim);
  states_.resize(size_t(group * problem.q.rows));
}

Engine::Worker::Worker(TileType type, int64_t dim, int64_t value_dim)
    : tile(type, dim, value_dim),
      covariance(dim, value_dim),
      steps(kTileRows),
      before(size_t(kTileRows * value_dim)),
      between(before.size()),
      before_m(kTileRows),
      before_l(kTileRows),
      between_m(kTileRows),
      between_l(kTileRows),
      reference(kTileRows) {}

int64_t Engine::Bytes(const Problem& p, const Plan& plan, TileType type) {
  return Index::Bytes(p, plan) + SegmentKeys::Bytes(type, p, plan) +
         (NeedsKeysInOrder(p, plan) ? int64_t(KeySet::Bytes(type, p.k.rows, p.k.dim, p.v.dim)) : 0) +
         int64_t(plan.groups * KeySet::Bytes(type, p.k.dim, 1, p.v.dim)) + 16 * p.Group() * p.q.rows;
}

void Engine::TakeHead(int64_t kv) {
  const int64_t group = problem_.Group();
  const TensorView from[] = {problem_.q.Heads(kv * group, group), problem_.k.Heads(kv, 1), problem_.v.Heads(kv, 1)};
  TensorView* const to[] = {&head_.q, &head_.k, &head_.v};
  if (copy_.size() == 0) {
    for (int i = 0; i < 3; ++i) *to[i] = from[i];
    return;
  }
  constexpr int64_t kRows = 1024;
  for (int i = 0; i < 3; ++i) {
    const int64_t pieces = (from[i].rows + kRows - 1) / kRows, bytes = from[i].dim * simd::RowTypeBytes(from[i].type);
    executor_->ParallelFor(from[i].heads * pieces, [&](int64_t task, int) {
      const RowsView source = from[i].Head(task / pieces), target = to[i]->Head(task / pieces);
      // The copy is ours to write; views are of constant rows.
      std::byte* const base = copy_.data() + (target.data - copy_.data());
      for (int64_t r = task % pieces * kRows; r < std::min(source.rows, (task % pieces + 1) * kRows); ++r)
        std::memcpy(base + r * bytes, source.Row(r), size_t(bytes));
    });
  }
}

void Engine::RunHead(Executor& executor, int64_t kv, RunReport* report) {
  executor_ = &executor;
  TakeHead(kv);
  for (Worker& w : workers_) w.pairs = 0;
  std::fill(states_.begin(), states_.end(), RowState());
  if (in_order_.keys() > 0) in_order_.Pack(*executor_, head_.k.Head(0), head_.v.Head(0));
  index_.Build(*executor_, kv);
  segment_keys_.MeasureValues(*executor_);
  for (size_t stage = 0; stage < plan_.stages.size(); ++stage) RunStage(kv, stage);
  if (!plan_.segments.empty()) Certify(kv, report);
  for (const Worker& w : workers_) report->pairs += w.pairs;
}

void Engine::RunStage(int64_t kv, size_t stage) {
  const StageTiles& tiles = tiles_[stage];
  if (!plan_.stages[stage].fill.empty()) segment_keys_.Fill(*executor_, index_, stage, kv);
  for (size_t pass = 0; pass < tiles.passes.size(); ++pass) {
    if (moment()) {
      const std::vector<Group>& groups = plan_.stages[stage].passes[pass];
      executor_->ParallelFor(int64_t(groups.size()),
                             [&](int64_t i, int worker) { MakeSlope(groups[size_t(i)], workers_[size_t(worker)]); });
    }
    // Rows lie scattered: while a tile is worked on, the next one's are fetched.
    constexpr int64_t kRun = 4;
    const std::vector<GroupTile>& all = tiles.passes[pass];
    const auto n = int64_t(all.size());
    executor_->ParallelFor((n + kRun - 1) / kRun, [&](int64_t run, int worker) {
      for (int64_t i = run * kRun; i < std::min(n, (run + 1) * kRun); ++i) {
        if (i + 1 < std::min(n, (run + 1) * kRun)) Fetch(all[size_t(i + 1)], kv);
        FetchKeys(all[size_t(i)]);
        RunTile(all[size_t(i)], kv, workers_[size_t(worker)]);
      }
    });
  }
  executor_->ParallelFor(int64_t(tiles.leaves.size()), [&](int64_t i, int worker) {
    RunLeaf(tiles.leaves[size_t(i)], kv, workers_[size_t(worker)]);
  });
}

// A tile of rows against what it meets exactly, its own keys up to each row's position, and the answers.
void Engine::RunLeaf(const LeafTile& t, int64_t kv, Worker& w) {
  const Leaf& leaf = *t.leaf;
  const int64_t h = kv * problem_.Group() + t.g;
  w.tile.Load(head_.q.Head(t.g).Rows(t.first, t.rows), t.rows, problem_.scale);
  for (int64_t r = 0; r < t.rows; ++r) Resume(kv, t.g, t.first + r, r, w);
  w.ranges.clear();
  for (const Range& keys : leaf.earlier) {
    w.ranges.push_back({.keys = &in_order_, .begin = keys.first, .end = keys.last});
    w.pairs += double(t.rows * keys.size());
  }
  if (leaf.keys.size() > 0) {
    w.visible.resize(size_t(t.rows));
    int64_t last = leaf.keys.first;
    for (int64_t r = 0; r < t.rows; ++r) {
      w.visible[size_t(r)] = {leaf.keys.first, std::min(leaf.keys.last, problem_.Visible(t.first + r).last)};
      last = std::max(last, w.visible[size_t(r)].last);
      w.pairs += double(w.visible[size_t(r)].size());
    }
    w.ranges.push_back({.keys = &in_order_, .begin = leaf.keys.first, .end = last, .visible = w.visible});
  }
  w.tile.Attend(w.ranges);
  for (int64_t r = 0; r < t.rows; ++r) {
    Keep(t.g, t.first + r, r, w);
    const float lse = w.tile.Finalize(r, Answer(kv, t.g, t.first + r));
    if (output_.lse != nullptr) output_.lse[h * problem_.q.rows + t.first + r] = lse;
  }
}

// Takes up the state of a row.
void Engine::Resume(int64_t kv, int64_t g, int64_t row, int64_t at, Worker& w) {
  const RowState& state = State(g, row);
  w.reference[size_t(at)] = state.max;
  if (state.mass > 0) w.tile.Resume(at, state.max, state.mass, Answer(kv, g, row));
}

// Keeps the state of a row, but for its sums.
void Engine::Keep(int64_t g, int64_t row, int64_t at, Worker& w) {
  RowState& state = State(g, row);
  state.max = w.tile.Max2(at), state.mass = w.tile.Mass(at);
  if (state.deviation != 0 && w.reference[size_t(at)] != state.max) {
    const float age = std::exp2(w.reference[size_t(at)] - state.max);
    state.deviation *= certify_ ? age * age : age;
    state.mass_deviation *= age * age;
  }
}

}  // namespace croquis::attention::hyper
