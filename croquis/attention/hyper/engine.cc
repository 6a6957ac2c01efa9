#include "croquis/attention/hyper/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/row_kernels.h"

namespace croquis::attention::hyper {
namespace {

// Without a mask every key is among the sorted ones; keys in order are needed where something is exact.
bool NeedsKeysInOrder(const Problem& p, const Plan& plan) { return p.mask.causal || plan.segments == 0; }

int64_t CopyBytes(const Problem& p) {
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

}  // namespace

Engine::Engine(Executor& executor, const Problem& problem, const Output& output, const Options& options,
               const Plan& plan, TileType type)
    : executor_(executor),
      problem_(problem),
      output_(output),
      options_(options),
      plan_(plan),
      type_(type),
      copy_(plan.segments > 0 ? size_t(CopyBytes(problem)) : 0),
      head_(OneKvHead(problem, copy_)),
      index_(head_, options, plan),
      level_keys_(type, head_, options, plan),
      in_order_(type, NeedsKeysInOrder(problem, plan) ? problem.k.rows : 0, problem.k.dim, problem.v.dim),
      certify_(SplitsSamples(options.residual)) {
  const int64_t group = problem.Group();
  for (const Segment& leaf : plan.leaves)
    for (int64_t g = 0; g < group; ++g)
      for (int64_t at = leaf.rows.first; at < leaf.rows.last; at += kTileRows)
        leaf_tiles_.push_back({&leaf, 0, g, at, std::min(kTileRows, leaf.rows.last - at)});
  for (size_t i = 0; i < plan.spans.size(); ++i)
    for (int64_t g = 0; g < group; ++g)
      for (int64_t at = plan.spans[i].rows.first; at < plan.spans[i].rows.last; at += kTileRows)
        last_tiles_.push_back({nullptr, i, g, at, std::min(kTileRows, plan.spans[i].rows.last - at)});
  slopes_.resize(plan.spans.size());
  if (options.residual == Residual::kMoment)
    for (size_t i = 0; i < plan.spans.size(); ++i)
      if (!plan.spans[i].segments.empty()) slopes_[i].covariance = Matrix<float>(problem.k.dim, problem.v.dim);
  for (const Level& level : plan.levels) {
    tiles_.emplace_back();
    for (size_t s = 0; s < level.segments.size(); ++s)
      for (int64_t g = 0; g < group; ++g)
        for (int64_t at = 0; at < level.segments[s].rows.size(); at += kTileRows)
          tiles_.back().push_back(
              {&level.segments[s], s, g, at, std::min(kTileRows, level.segments[s].rows.size() - at)});
  }
  for (int i = 0; i < executor.threads(); ++i) workers_.emplace_back(type, problem.k.dim, problem.v.dim);
  const auto states = size_t(group * problem.q.rows);
  sums_ = Matrix<float>(int64_t(states), problem.v.dim);
  max_.resize(states), mass_.resize(states), deviation_.resize(states);
  if (certify_) mass_deviation_.resize(states);
}

Engine::Worker::Worker(TileType type, int64_t dim, int64_t value_dim)
    : tile(type, dim, value_dim),
      queries(size_t(kTileRows * dim)),
      steps(size_t(kTileRows * value_dim)),
      before(steps.size()),
      between(steps.size()),
      before_m(kTileRows),
      before_l(kTileRows),
      between_m(kTileRows),
      between_l(kTileRows),
      reference(kTileRows),
      factors(kTileRows),
      windows(kTileRows),
      visible(kTileRows) {}

int64_t Engine::Bytes(const Problem& p, const Plan& plan, TileType type) {
  return Index::Bytes(p, plan) + LevelKeys::Bytes(type, p, plan) +
         (NeedsKeysInOrder(p, plan) ? int64_t(KeySet::Bytes(type, p.k.rows, p.k.dim, p.v.dim)) : 0) +
         4 * int64_t(plan.spans.size()) * p.k.dim * p.v.dim + 16 * p.Group() * p.q.rows;
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
    executor_.ParallelFor(from[i].heads * pieces, [&](int64_t task, int) {
      const RowsView source = from[i].Head(task / pieces), target = to[i]->Head(task / pieces);
      // The copy is ours to write; views are of constant rows.
      std::byte* const base = copy_.data() + (target.data - copy_.data());
      for (int64_t r = task % pieces * kRows; r < std::min(source.rows, (task % pieces + 1) * kRows); ++r)
        std::memcpy(base + r * bytes, source.Row(r), size_t(bytes));
    });
  }
}

void Engine::RunHead(int64_t kv, RunReport* report) {
  TakeHead(kv);
  for (Worker& w : workers_) w.pairs = 0;
  std::fill(max_.begin(), max_.end(), kEmptyMax);
  std::fill(mass_.begin(), mass_.end(), 0.f);
  std::fill(deviation_.begin(), deviation_.end(), 0.f);
  std::fill(mass_deviation_.begin(), mass_deviation_.end(), 0.f);
  if (in_order_.keys() > 0) in_order_.Pack(executor_, head_.k.Head(0), head_.v.Head(0));
  index_.Build(executor_, kv);
  level_keys_.MeasureValues(executor_);
  executor_.ParallelFor(int64_t(leaf_tiles_.size()), [&](int64_t i, int worker) {
    const Tile& t = leaf_tiles_[size_t(i)];
    RunLeaf(*t.segment, t.g, t.first, workers_[size_t(worker)]);
  });
  for (size_t level = 0; level < plan_.levels.size(); ++level) {
    if (plan_.levels[level].slots > 0) level_keys_.Fill(executor_, index_, level, kv);
    // Rows lie scattered: while a tile is worked on, the next one's are fetched.
    constexpr int64_t kRun = 4;
    const auto tiles = int64_t(tiles_[level].size());
    executor_.ParallelFor((tiles + kRun - 1) / kRun, [&](int64_t run, int worker) {
      for (int64_t i = run * kRun; i < std::min(tiles, (run + 1) * kRun); ++i) {
        if (i + 1 < std::min(tiles, (run + 1) * kRun)) Fetch(tiles_[level][size_t(i + 1)]);
        RunTile(tiles_[level][size_t(i)], workers_[size_t(worker)]);
      }
    });
  }
  Finish(kv);
  if (plan_.segments > 0) Certify(kv, report);
  for (const Worker& w : workers_) report->pairs += w.pairs;
}

// A tile of rows against the keys of its leaf up to its own position.
void Engine::RunLeaf(const Segment& leaf, int64_t g, int64_t first, Worker& w) {
  const int64_t rows = std::min(kTileRows, leaf.rows.last - first);
  w.tile.Load(head_.q.Head(g).Rows(first, rows), rows, problem_.scale);
  int64_t last = leaf.keys.first;
  for (int64_t r = 0; r < rows; ++r) {
    w.visible[size_t(r)] = {leaf.keys.first, std::min(leaf.keys.last, problem_.Visible(first + r).last)};
    last = std::max(last, w.visible[size_t(r)].last);
    w.pairs += double(w.visible[size_t(r)].size());
  }
  w.tile.Attend(in_order_, leaf.keys.first, last, {w.visible.data(), size_t(rows)});
  for (int64_t r = 0; r < rows; ++r) Store(g, first + r, r, w);
}

void Engine::RunTile(const Tile& t, Worker& w) {
  const Segment& s = *t.segment;
  const RowsView q = head_.q.Head(t.g);
  if (s.exact) {
    const int64_t first = s.rows.first + t.first;
    w.tile.Load(q.Rows(first, t.rows), t.rows, problem_.scale);
    for (int64_t r = 0; r < t.rows; ++r) Restore(t.g, first + r, r, w);
    w.tile.Attend(in_order_, s.keys.first, s.keys.last);
    for (int64_t r = 0; r < t.rows; ++r) Store(t.g, first + r, r, w);
    w.pairs += double(t.rows * s.keys.size());
    return;
  }
  const auto rows = index_.SortedRows(s, t.g).subspan(size_t(t.first), size_t(t.rows));
  Windows(t, index_.SortedCodes(s, t.g).subspan(size_t(t.first), size_t(t.rows)), w);
  const bool moment = options_.residual == Residual::kMoment;
  if (moment) RowFactors(t, rows, w);
  w.tile.Load(q, t.rows, problem_.scale, rows,
              moment ? std::span<const float>(w.factors).first(size_t(t.rows)) : std::span<const float>());
  for (int64_t r = 0; r < t.rows; ++r) Restore(t.g, rows[size_t(r)], r, w);
  if (moment) {
    AttendResiduals(t, 0, w);
    AddShares(t, rows, w);
  }
  const KeySet& sorted = level_keys_.sorted();
  w.tile.Attend(sorted, s.slot, s.slot + s.globals);
  AttendRun(sorted, s.SortedSlot(), s.sorted(), t.rows, true, w);
  w.pairs += double(t.rows * s.globals);
  if (!moment) {
    if (certify_) KeepState(w, t.rows, w.before_m, w.before_l, w.before);
    AttendResiduals(t, 0, w);
    if (certify_) {
      KeepState(w, t.rows, w.between_m, w.between_l, w.between);
      AttendResiduals(t, 1, w);
      AddSpread(t, rows, w);
    }
  }
  for (int64_t r = 0; r < t.rows; ++r) Store(t.g, rows[size_t(r)], r, w);
}

void Engine::Fetch(const Tile& t) {
  if (t.segment->exact) return;
  constexpr int64_t kLine = 64;
  const RowsView q = head_.q.Head(t.g);
  const int64_t q_bytes = q.dim * simd::RowTypeBytes(q.type), bytes = problem_.v.dim * int64_t(sizeof(float));
  for (const int32_t row : index_.SortedRows(*t.segment, t.g).subspan(size_t(t.first), size_t(t.rows))) {
    for (int64_t at = 0; at < q_bytes; at += kLine) __builtin_prefetch(q.Row(row) + at, 0, 2);
    const auto* const sums = reinterpret_cast<const std::byte*>(Sums(t.g, row).data());
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(sums + at, 1, 2);
  }
}

// The ranks of keys that each row of a tile meets one by one. Rows of a tile share them, unless no row may depend on
// others or blocks are fixed.
void Engine::Windows(const Tile& t, std::span<const uint16_t> codes, Worker& w) const {
  const Segment& s = *t.segment;
  const int64_t m = s.sorted(), blocks = (m + s.block - 1) / s.block, each = (s.rows.size() + blocks - 1) / blocks;
  const bool by_rank = options_.match == Match::kRank, whole_cells = options_.residual == Residual::kMoment;
  // Where residuals are cells windows consist of whole ones, and of whole blocks where cells fit into them: the
  // nearest, and at least that in the middle.
  const int64_t unit = kTileKeys % s.cell == 0 && s.block >= kTileKeys ? kTileKeys : s.cell;
  const auto whole = [&](Range x) {
    if (!whole_cells || x.size() == 0) return x;
    Range pieces{(x.first + unit / 2) / unit, (x.last + unit / 2) / unit};
    if (pieces.size() == 0) pieces.first = (x.first + x.last) / 2 / unit, pieces.last = pieces.first + 1;
    return Range{pieces.first * unit, std::min(m, pieces.last * unit)};
  };
  Range shared{m, 0};
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t block = (t.first + r) / each;
    w.windows[size_t(r)] =
        by_rank ? Range{block * s.block, std::min(m, (block + 1) * s.block)} : index_.CodeWindow(s, codes[size_t(r)]);
    shared = {std::min(shared.first, w.windows[size_t(r)].first), std::max(shared.last, w.windows[size_t(r)].last)};
  }
  if (!options_.strict && !by_rank)
    std::fill_n(w.windows.begin(), t.rows, whole(shared));
  else
    for (int64_t r = 0; r < t.rows; ++r) w.windows[size_t(r)] = whole(w.windows[size_t(r)]);
}

// Rows of a tile against slots [base, base + n) of a set, those in w.visible (relative to base) or those outside of it.
void Engine::AttendRun(const KeySet& keys, int64_t base, int64_t n, int64_t rows, bool inside, Worker& w) {
  std::vector<Range>& visible = inside ? w.windows : w.visible;
  Range all{n, 0}, common{0, n};
  int64_t taken = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const Range v = visible[size_t(r)];
    all = {std::min(all.first, v.first), std::max(all.last, v.last)};
    common = {std::max(common.first, v.first), std::min(common.last, v.last)};
    taken += v.size();
  }
  const bool same = all.first == common.first && all.last == common.last;
  Range in_slots[kTileRows];
  const auto attend = [&](Range run, const auto& of_row) {
    if (run.size() == 0) return;
    if (same) return w.tile.Attend(keys, base + run.first, base + run.last);
    for (int64_t r = 0; r < rows; ++r) {
      const Range v = of_row(visible[size_t(r)]);
      in_slots[r] = {base + v.first, base + v.last};
    }
    w.tile.Attend(keys, base + run.first, base + run.last, {in_slots, size_t(rows)});
  };
  if (inside) {
    attend(all, [](Range v) { return v; });
    w.pairs += double(taken);
  } else {
    attend({0, same ? all.first : n}, [](Range v) { return Range{0, v.first}; });
    attend({same ? all.last : 0, n}, [n](Range v) { return Range{v.last, n}; });
    w.pairs += double(rows * n - taken);
  }
}

// Residuals of one half that stand for keys outside of each row's window.
void Engine::AttendResiduals(const Tile& t, int half, Worker& w) {
  const Segment& s = *t.segment;
  const int64_t n = level_keys_.Residuals(s, half);
  if (n == 0) return;
  for (int64_t r = 0; r < t.rows; ++r) {
    const bool repeats = r > 0 && w.windows[size_t(r)].first == w.windows[size_t(r - 1)].first &&
                         w.windows[size_t(r)].last == w.windows[size_t(r - 1)].last;
    w.visible[size_t(r)] = repeats ? w.visible[size_t(r - 1)] : level_keys_.Inside(s, half, w.windows[size_t(r)]);
  }
  const bool shared = std::all_of(w.visible.begin(), w.visible.begin() + t.rows, [&](Range v) {
    return v.first == w.visible[0].first && v.last == w.visible[0].last;
  });
  if (shared && options_.residual == Residual::kMoment) {
    // One pass over whole blocks is quicker than two over what is left of and right of the window.
    const Range inside = w.visible[0];
    if (inside.size() >= n) return;
    const std::span<const float> weights = level_keys_.LogWeights(s);
    w.log_weights.assign(size_t(s.ResidualSlots()), simd::kMasked);
    const auto base2 = [](float x) { return x * std::numbers::log2e_v<float>; };
    std::transform(weights.begin(), weights.begin() + inside.first, w.log_weights.begin(), base2);
    std::transform(weights.begin() + inside.last, weights.end(), w.log_weights.begin() + inside.last, base2);
    const KeyRange range{.keys = &level_keys_.residual(),
                         .begin = s.residual_slot,
                         .end = s.residual_slot + s.ResidualSlots(),
                         .log2_weights = w.log_weights};
    w.tile.Attend({&range, 1});
    w.pairs += double(t.rows * (n - inside.size()));
    return;
  }
  AttendRun(level_keys_.residual(), s.residual_slot + half * s.ResidualHalf(), n, t.rows, false, w);
}

// A cell of n keys with mean k_c whose coordinates vary by t weighs, for logits that are Gaussian within it,
// n exp(scale <q, k_c> + s^2 / 2), s^2 = scale^2 |q|^2 t. A sum of n such exponentials does not reach its expectation
// once s^2 > 2 ln n: from there on its largest term rules, and the exponent grows like s sqrt(2 ln n) - ln n (Derrida's
// random energy model, Phys. Rev. B 24, 2613).
void Engine::RowFactors(const Tile& t, std::span<const int32_t> rows, Worker& w) const {
  const float spread = level_keys_.Spread(*t.segment), entropy = std::log(float(t.segment->cell));
  const float square = problem_.scale * problem_.scale;
  for (int64_t r = 0; r < t.rows; ++r) {
    const float tilt = square * index_.RowSquare(t.g, rows[size_t(r)]), variance = tilt * spread;
    w.factors[size_t(r)] = variance <= 2 * entropy ? tilt / 2 : (std::sqrt(2 * entropy * variance) - entropy) / spread;
  }
}

// deviation_ holds the mass that cells gave so far, for the steps of Finish and for the certificate.
void Engine::AddShares(const Tile& t, std::span<const int32_t> rows, Worker& w) {
  for (int64_t r = 0; r < t.rows; ++r) {
    const Partial now = w.tile.State(r);
    const size_t state = State(t.g, rows[size_t(r)]);
    w.reference[size_t(r)] = now.m;
    if (mass_[state] == 0) {
      deviation_[state] = now.l;
      continue;
    }
    const float age = std::exp(max_[state] - now.m);
    deviation_[state] = deviation_[state] * age + (now.l - mass_[state] * age);
  }
}

void Engine::KeepState(Worker& w, int64_t rows, std::vector<float>& m, std::vector<float>& l, std::vector<float>& a) {
  const int64_t width = problem_.v.dim;
  for (int64_t r = 0; r < rows; ++r) {
    const Partial now = w.tile.State(r);
    m[size_t(r)] = now.m, l[size_t(r)] = now.l;
    std::copy(now.a.begin(), now.a.end(), a.begin() + r * width);
  }
}

// What two halves of the samples gave, (l, a) and (l', a'), differ by (l - l', a - a'), whose square estimates the
// variance of their sum. deviation_ adds up |(a - a') - o (l - l')|^2 over the levels, relative to e^2max, and
// mass_deviation_ (l - l')^2.
void Engine::AddSpread(const Tile& t, std::span<const int32_t> rows, Worker& w) {
  const int64_t width = problem_.v.dim;
  for (int64_t r = 0; r < t.rows; ++r) {
    const Partial now = w.tile.State(r);
    if (now.l == 0) continue;
    const auto i = size_t(r);
    const float f0 = std::exp(w.before_m[i] - now.m), f1 = std::exp(w.between_m[i] - now.m);
    // (first half) - (second half) = 2 between - before - now.
    const float mass = 2 * f1 * w.between_l[i] - f0 * w.before_l[i] - now.l, inverse = 1 / now.l;
    const float *before = w.before.data() + r * width, *between = w.between.data() + r * width;
    float squares = 0;
    for (size_t c = 0; c < now.a.size(); ++c) {
      const float d = 2 * f1 * between[c] - f0 * before[c] - now.a[c] - mass * now.a[c] * inverse;
      squares += d * d;
    }
    const size_t at = State(t.g, rows[i]);
    const float age = std::exp(2 * (w.reference[i] - now.m));
    w.reference[i] = now.m;
    deviation_[at] = deviation_[at] * age + squares;
    mass_deviation_[at] = mass_deviation_[at] * age + mass * mass;
  }
}

void Engine::Restore(int64_t g, int64_t row, int64_t at, Worker& w) {
  const size_t state = State(g, row);
  w.reference[size_t(at)] = max_[state];
  if (mass_[state] == 0) return;
  w.tile.Merge(at, {max_[state], mass_[state], Sums(g, row)});
}

void Engine::Store(int64_t g, int64_t row, int64_t at, Worker& w) {
  const Partial now = w.tile.State(at);
  const size_t state = State(g, row);
  if (deviation_[state] != 0 && w.reference[size_t(at)] != now.m) {
    const float age = std::exp(w.reference[size_t(at)] - now.m);
    deviation_[state] *= certify_ ? age * age : age;
    if (certify_) mass_deviation_[state] *= age * age;
  }
  max_[state] = now.m, mass_[state] = now.l;
  std::copy(now.a.begin(), now.a.end(), Sums(g, row).begin());
}

// To first order the mean value of a cell, seen by q, is v_c + scale C q with C the covariance of values and keys
// within it. C is taken over all cells of a segment, and over all segments that a row meets, by their lengths, so that
// one step a row does, as long as its mass from cells.
void Engine::MakeSlopes() {
  executor_.ParallelFor(int64_t(slopes_.size()), [&](int64_t i, int) {
    Slope& slope = slopes_[size_t(i)];
    if (slope.covariance.rows() == 0) return;
    const std::vector<const Segment*>& segments = plan_.spans[size_t(i)].segments;
    double keys = 0, cells = 0;
    for (const Segment* s : segments) keys += double(s->keys.size()), cells += double(s->residuals);
    const int64_t n = problem_.k.dim * problem_.v.dim;
    std::fill_n(slope.covariance.data(), n, 0.f);
    slope.spread = 0, slope.entropy = std::log(std::max(1., keys / cells));
    for (const Segment* s : segments) {
      const double part = double(s->keys.size()) / keys;
      const float* const from = level_keys_.Covariance(*s).data;
      for (int64_t c = 0; c < n; ++c) slope.covariance.data()[c] += float(part) * from[c];
      slope.spread += part * double(level_keys_.Spread(*s));
    }
  });
}

// Steps, and sums into means.
void Engine::Finish(int64_t kv) {
  if (options_.residual == Residual::kMoment) MakeSlopes();
  executor_.ParallelFor(int64_t(last_tiles_.size()), [&](int64_t i, int worker) {
    FinishTile(last_tiles_[size_t(i)], kv, workers_[size_t(worker)]);
  });
}

void Engine::FinishTile(const Tile& t, int64_t kv, Worker& w) {
  const int64_t h = kv * problem_.Group() + t.g, dim = problem_.k.dim, width = problem_.v.dim;
  const Slope& slope = slopes_[t.index];
  const bool step = slope.covariance.rows() > 0;
  if (step) {
    const RowsView q = head_.q.Head(t.g);
    ReadRows(q, t.first, t.rows, w.queries.data());
    std::fill_n(w.steps.begin(), t.rows * width, 0.f);
    simd::Dense().small_gemm(w.queries.data(), dim, slope.covariance.data(), width, w.steps.data(), width, t.rows,
                             width, dim);
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    const size_t state = State(t.g, t.first + r);
    const std::span<float> sums = Sums(t.g, t.first + r);
    if (step && deviation_[state] > 0) {
      // Beyond s^2 = 2 ln n (see RowFactors) the largest term of a cell rules, and the step is cut there.
      const double variance =
          double(problem_.scale) * double(problem_.scale) * double(index_.RowSquare(t.g, t.first + r)) * slope.spread;
      const double cut = variance <= 2 * slope.entropy ? 1 : std::sqrt(2 * slope.entropy / variance);
      const float weight = deviation_[state] * problem_.scale * float(cut);
      simd::RowLoops().add_scaled(w.steps.data() + r * width, width, weight, 1, sums.data());
    }
    const float lse = Finalize({max_[state], mass_[state], sums}, Answer(kv, t.g, t.first + r));
    if (output_.lse != nullptr) output_.lse[h * problem_.q.rows + t.first + r] = lse;
  }
}

}  // namespace croquis::attention::hyper
