// A tile of rows in hash order against all segments of its group.
#include <algorithm>
#include <cmath>

#include "croquis/attention/hyper/engine.h"
#include "croquis/simd/row_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kLeastShare = 16;  // neighbouring rows that share a window, at least
constexpr size_t kShares = size_t(kTileRows / kLeastShare);

// 2^(from - to); hardly ever do they differ.
float Age(float from, float to) { return from == to ? 1 : std::exp2(from - to); }

// The union of ranges, and whether they are all the same.
struct Extent {
  Range all, common;
  bool same() const { return all.first == common.first && all.last == common.last; }
};
Extent ExtentOf(std::span<const Range> ranges) {
  Extent e{ranges[0], ranges[0]};
  for (const Range r : ranges) {
    e.all = {std::min(e.all.first, r.first), std::max(e.all.last, r.last)};
    e.common = {std::max(e.common.first, r.first), std::min(e.common.last, r.last)};
  }
  return e;
}

}  // namespace

// The shares of a segment that there are.
std::span<const Engine::Share> Engine::Shares(size_t segment, const Worker& w) const {
  const auto all = std::span<const Share>(w.shares).subspan(segment * kShares, kShares);
  size_t n = 0;
  while (n < kShares && all[n].rows > 0) ++n;
  return all.first(n);
}

void Engine::RunTile(const GroupTile& t, int64_t kv, Worker& w) {
  const Group& group = *t.group;
  const auto rows = index_.SortedRows(group, t.g).subspan(size_t(t.first), size_t(t.rows));
  w.tile.Load(head_.q.Head(t.g), t.rows, problem_.scale, rows);
  for (int64_t r = 0; r < t.rows; ++r) Resume(kv, t.g, rows[size_t(r)], r, w);
  const size_t segments = group.segments.size();
  w.windows.resize(segments * kTileRows), w.shares.resize(segments * kShares);
  // Ranges refer to places in these; each segment takes so much of them at most.
  size_t weights = 0;
  for (const Segment* s : group.segments) weights += size_t(int64_t(kShares) * s->ResidualSlots());
  w.weights.resize(weights), w.visible.resize(segments * 3 * kTileRows), w.factors.resize(segments * kTileRows);
  w.weights_used = w.visible_used = 0;
  w.ranges.clear();
  for (size_t s = 0; s < segments; ++s) Windows(t, s, w);
  const auto attend = [&] {
    w.tile.Attend(w.ranges);
    w.ranges.clear();
    w.weights_used = w.visible_used = 0;
  };
  const auto residuals = [&](int half) {
    for (size_t s = 0; s < segments; ++s) AddResiduals(t, s, half, w);
    attend();
  };
  if (moment()) {
    w.squares.resize(size_t(t.rows));
    for (size_t r = 0; r < rows.size(); ++r) w.squares[r] = index_.RowSquare(t.g, rows[r]);
    for (size_t s = 0; s < segments; ++s) RowFactors(*group.segments[s], w.squares, w.factors.data() + s * kTileRows);
    residuals(0);
    AddMassOfCells(t, rows, w);
  }
  for (size_t s = 0; s < segments; ++s) AddWindows(t, s, w);
  attend();
  if (moment()) {
    Step(t, w);
  } else {
    if (certify_) KeepState(w, t.rows, w.before_m, w.before_l, w.before);
    residuals(0);
    if (certify_) {
      KeepState(w, t.rows, w.between_m, w.between_l, w.between);
      residuals(1);
      AddSpread(t, rows, w);
    }
  }
  for (int64_t r = 0; r < t.rows; ++r) {
    Keep(t.g, rows[size_t(r)], r, w);
    const std::span<const float> sums = w.tile.Sums(r);
    std::copy(sums.begin(), sums.end(), Answer(kv, t.g, rows[size_t(r)]).begin());
  }
}

// Asks for the rows of a tile's queries and states.
void Engine::Fetch(const GroupTile& t, int64_t kv) const {
  constexpr int64_t kLine = 64;
  const RowsView q = head_.q.Head(t.g);
  const int64_t q_bytes = q.dim * simd::RowTypeBytes(q.type), bytes = problem_.v.dim * int64_t(sizeof(float));
  for (const int32_t row : index_.SortedRows(*t.group, t.g).subspan(size_t(t.first), size_t(t.rows))) {
    for (int64_t at = 0; at < q_bytes; at += kLine) __builtin_prefetch(q.Row(row) + at, 0, 2);
    const auto* const sums = reinterpret_cast<const std::byte*>(Answer(kv, t.g, row).data());
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(sums + at, 1, 2);
  }
}

// Asks for the sorted keys that this tile's windows reach and the tile's before it did not: windows lie in the order of
// codes.
void Engine::FetchKeys(const GroupTile& t) const {
  if (options_.match == Match::kRank) return;
  const Group& group = *t.group;
  const std::span<const uint16_t> codes = index_.SortedCodes(group, t.g);
  const auto last = size_t(t.first + t.rows - 1);
  for (const Segment* s : group.segments) {
    const int64_t base = s->slot + s->GlobalSlots(), to = index_.CodeWindow(*s, codes[last], group.bits).last;
    const int64_t from = t.first > 0 ? index_.CodeWindow(*s, codes[size_t(t.first - 1)], group.bits).last
                                     : index_.CodeWindow(*s, codes[0], group.bits).first;
    segment_keys_.sorted().Fetch(base + from, base + to);
  }
}

// The ranks of keys that rows of a tile meet one by one. Neighbouring rows share them, as many as lie, among that many
// keys, within half a window, unless no row may depend on others or blocks are fixed.
void Engine::Windows(const GroupTile& t, size_t segment, Worker& w) const {
  const Group& group = *t.group;
  const Segment& s = *group.segments[segment];
  const int64_t m = s.sorted(), blocks = (m + s.block - 1) / s.block, each = (s.rows.size() + blocks - 1) / blocks;
  const bool by_rank = options_.match == Match::kRank;
  // Where residuals are cells windows consist of whole ones, and of whole blocks where cells fit into them: the
  // nearest, and at least that in the middle.
  const int64_t unit = kTileKeys % s.cell == 0 && s.block >= kTileKeys ? kTileKeys : s.cell;
  const auto whole = [&](Range x) {
    if (!moment() || x.size() == 0) return x;
    Range pieces{(x.first + unit / 2) / unit, (x.last + unit / 2) / unit};
    if (pieces.size() == 0) pieces.first = (x.first + x.last) / 2 / unit, pieces.last = pieces.first + 1;
    return Range{pieces.first * unit, std::min(m, pieces.last * unit)};
  };
  const std::span<const uint16_t> codes = index_.SortedCodes(group, t.g).subspan(size_t(t.first), size_t(t.rows));
  int64_t share = kTileRows;
  while (share > kLeastShare && 2 * share * s.keys.size() > s.block * group.rows.size()) share /= 2;
  const std::span<Share> shares = std::span(w.shares).subspan(segment * kShares, kShares);
  std::fill(shares.begin(), shares.end(), Share());
  for (int64_t r = 0; r < t.rows; r += share) {
    Share& its = shares[size_t(r / share)];
    its.first = r, its.rows = std::min(share, t.rows - r);
    if (!options_.strict && !by_rank) {
      // Windows lie in the order of codes.
      const Range first = index_.CodeWindow(s, codes[size_t(r)], group.bits),
                  last = index_.CodeWindow(s, codes[size_t(r + its.rows - 1)], group.bits);
      its.window = whole({first.first, last.last});
      continue;
    }
    const std::span<Range> windows = std::span(w.windows).subspan(segment * kTileRows + size_t(r), size_t(its.rows));
    for (int64_t i = 0; i < its.rows; ++i) {
      const int64_t block = (t.first + r + i) / each;
      windows[size_t(i)] = whole(by_rank ? Range{block * s.block, std::min(m, (block + 1) * s.block)}
                                         : index_.CodeWindow(s, codes[size_t(r + i)], group.bits));
    }
    const Extent e = ExtentOf(windows);
    its.window = e.all, its.same = e.same();
  }
}

// A segment's globals, and the sorted keys in each row's window.
void Engine::AddWindows(const GroupTile& t, size_t segment, Worker& w) const {
  const Segment& s = *t.group->segments[segment];
  const KeySet& keys = segment_keys_.sorted();
  w.ranges.push_back({.keys = &keys, .begin = s.slot, .end = s.slot + s.globals});
  w.pairs += double(t.rows * s.globals);
  const int64_t base = s.slot + s.GlobalSlots();
  for (const Share& share : Shares(segment, w)) {
    KeyRange range{.keys = &keys,
                   .begin = base + share.window.first,
                   .end = base + share.window.last,
                   .first_row = share.first,
                   .last_row = share.first + share.rows};
    if (share.same) {
      w.pairs += double(share.rows * share.window.size());
    } else {
      const auto n = size_t(share.rows);
      const auto windows = std::span<const Range>(w.windows).subspan(segment * kTileRows + size_t(share.first), n);
      const auto visible = std::span(w.visible).subspan(w.visible_used, n);
      w.visible_used += n;
      for (size_t r = 0; r < n; ++r) {
        w.pairs += double(windows[r].size());
        visible[r] = {base + windows[r].first, base + windows[r].last};
      }
      range.visible = visible;
    }
    w.ranges.push_back(range);
  }
}

// Residuals of one half that stand for keys of a segment outside of each row's window.
void Engine::AddResiduals(const GroupTile& t, size_t segment, int half, Worker& w) const {
  const Segment& s = *t.group->segments[segment];
  const KeySet& keys = segment_keys_.residual();
  const int64_t total = segment_keys_.Residuals(s, half), base = s.residual_slot + half * s.ResidualHalf();
  if (total == 0) return;
  const auto factors = moment() ? std::span<const float>(w.factors).subspan(segment * kTileRows, size_t(kTileRows))
                                : std::span<const float>();
  for (const Share& share : Shares(segment, w)) {
    KeyRange range{.keys = &keys,
                   .begin = base,
                   .end = base + total,
                   .first_row = share.first,
                   .last_row = share.first + share.rows};
    range.row_factors = factors;
    // A strict row is added up in the same order whatever its neighbours' windows.
    if (options_.strict || !share.same) {
      AddOwnResiduals(segment, half, share, range, s, w);
      continue;
    }
    const Range inside = segment_keys_.Inside(s, half, share.window);
    w.pairs += double(share.rows * (total - inside.size()));
    if (inside.size() >= total) continue;
    if (moment()) {
      // One pass over whole blocks is quicker than two over what is left of and right of the window.
      const std::span<const float> all = segment_keys_.LogWeights(s);
      const auto weights = std::span(w.weights).subspan(w.weights_used, size_t(s.ResidualSlots()));
      w.weights_used += weights.size();
      std::copy(all.begin(), all.end(), weights.begin());
      std::fill(weights.begin() + inside.first, weights.begin() + inside.last, simd::kMasked);
      std::fill(weights.begin() + total, weights.end(), simd::kMasked);
      range.log2_weights = weights;
      w.ranges.push_back(range);
      continue;
    }
    range.end = base + inside.first;
    w.ranges.push_back(range);
    range.begin = base + inside.last, range.end = base + total;
    w.ranges.push_back(range);
  }
}

// The same where each row of a share has a window of its own; `range` is about all residuals.
void Engine::AddOwnResiduals(size_t segment, int half, const Share& share, KeyRange range, const Segment& s,
                             Worker& w) const {
  const auto n = size_t(share.rows);
  const auto windows = std::span<const Range>(w.windows).subspan(segment * kTileRows + size_t(share.first), n);
  const auto before = std::span(w.visible).subspan(w.visible_used, n),
             behind = std::span(w.visible).subspan(w.visible_used + n, n);
  w.visible_used += 2 * n;
  Range inside{};
  for (size_t r = 0; r < n; ++r) {
    const bool repeats = r > 0 && windows[r].first == windows[r - 1].first && windows[r].last == windows[r - 1].last;
    if (!repeats) inside = segment_keys_.Inside(s, half, windows[r]);
    before[r] = {range.begin, range.begin + inside.first}, behind[r] = {range.begin + inside.last, range.end};
    w.pairs += double(range.end - range.begin - inside.size());
  }
  range.visible = before;
  w.ranges.push_back(range);
  range.visible = behind;
  w.ranges.push_back(range);
}

// A cell of n keys with mean k_c whose coordinates vary by t weighs, for logits that are Gaussian within it,
// n exp(scale <q, k_c> + s^2 / 2), s^2 = scale^2 |q|^2 t. A sum of n such exponentials does not reach its expectation
// once s^2 > 2 ln n: from there on its largest term rules, and the exponent grows like s sqrt(2 ln n) - ln n (Derrida's
// random energy model, Phys. Rev. B 24, 2613).
void Engine::RowFactors(const Segment& s, std::span<const float> squares, float* factors) const {
  const float spread = segment_keys_.Spread(s), entropy = std::log(float(s.cell));
  const float square = problem_.scale * problem_.scale;
  for (size_t r = 0; r < squares.size(); ++r) {
    const float tilt = square * squares[r], variance = tilt * spread;
    factors[r] = variance <= 2 * entropy ? tilt / 2 : (std::sqrt(2 * entropy * variance) - entropy) / spread;
  }
}

// A state's deviation is the mass that cells gave so far, for the certificate; w.cell_mass[r] what they gave now.
void Engine::AddMassOfCells(const GroupTile& t, std::span<const int32_t> rows, Worker& w) {
  w.cell_mass.assign(kTileRows, 0);
  for (int64_t r = 0; r < t.rows; ++r) {
    RowState& state = State(t.g, rows[size_t(r)]);
    const float max = w.tile.Max2(r), age = state.mass == 0 ? 0 : Age(state.max, max);
    w.reference[size_t(r)] = max;
    w.cell_mass[size_t(r)] = w.tile.Mass(r) - state.mass * age;
    state.deviation = state.deviation * age + w.cell_mass[size_t(r)];
  }
}

// To first order the mean value of a cell, seen by q, is v_c + scale C q with C the covariance of values and keys
// within it. C is taken over all cells of a segment, and over all segments of a group, by their lengths, so that one
// step a row does, as long as its mass from cells.
void Engine::MakeSlope(const Group& group, Worker& w) {
  Slope& slope = slopes_[group.id];
  double keys = 0, cells = 0;
  for (const Segment* s : group.segments) keys += double(s->keys.size()), cells += double(s->residuals);
  const int64_t n = problem_.k.dim * problem_.v.dim;
  float* const to = w.covariance.data();
  std::fill_n(to, n, 0.f);
  slope.spread = 0, slope.entropy = std::log(std::max(1., keys / cells));
  for (const Segment* s : group.segments) {
    const auto part = float(double(s->keys.size()) / keys);
    simd::RowLoops().add_scaled(segment_keys_.Covariance(*s).data, n, part, 1, to);
    slope.spread += double(part) * double(segment_keys_.Spread(*s));
  }
  const RowsView rows{w.covariance.View()};
  for (int64_t block = 0; block < slope.covariance.blocks(); ++block) slope.covariance.PackBlock(block, rows, rows);
}

void Engine::Step(const GroupTile& t, Worker& w) const {
  const Slope& slope = slopes_[t.group->id];
  const double square = double(problem_.scale) * double(problem_.scale) * slope.spread;
  for (int64_t r = 0; r < t.rows; ++r) {
    float& step = w.steps[size_t(r)];
    step = 0;
    if (w.cell_mass[size_t(r)] <= 0) continue;
    // Beyond s^2 = 2 ln n (see RowFactors) the largest term of a cell rules, and the step is cut there.
    const double variance = square * double(w.squares[size_t(r)]);
    const double cut = variance <= 2 * slope.entropy ? 1 : std::sqrt(2 * slope.entropy / variance);
    const float age = Age(w.reference[size_t(r)], w.tile.Max2(r));
    step = w.cell_mass[size_t(r)] * age * problem_.scale * float(cut);
  }
  w.tile.AddProducts(slope.covariance, w.steps);
}

void Engine::KeepState(Worker& w, int64_t rows, std::vector<float>& m, std::vector<float>& l,
                       std::vector<float>& a) const {
  const int64_t width = problem_.v.dim;
  for (int64_t r = 0; r < rows; ++r) {
    m[size_t(r)] = w.tile.Max2(r), l[size_t(r)] = w.tile.Mass(r);
    const std::span<const float> sums = w.tile.Sums(r);
    std::copy(sums.begin(), sums.end(), a.begin() + r * width);
  }
}

// What two halves of the samples gave, (l, a) and (l', a'), differ by (l - l', a - a'), whose square estimates the
// variance of their sum. A state's deviation adds up |(a - a') - o (l - l')|^2 over the groups, relative to 2^2max, and
// its mass_deviation (l - l')^2.
void Engine::AddSpread(const GroupTile& t, std::span<const int32_t> rows, Worker& w) {
  const int64_t width = problem_.v.dim;
  for (int64_t r = 0; r < t.rows; ++r) {
    const auto i = size_t(r);
    const float max = w.tile.Max2(r), now = w.tile.Mass(r);
    if (now == 0) continue;
    const std::span<const float> sums = w.tile.Sums(r);
    const float f0 = std::exp2(w.before_m[i] - max), f1 = std::exp2(w.between_m[i] - max);
    // (first half) - (second half) = 2 between - before - now.
    const float mass = 2 * f1 * w.between_l[i] - f0 * w.before_l[i] - now, inverse = 1 / now;
    const float *before = w.before.data() + r * width, *between = w.between.data() + r * width;
    float squares = 0;
    for (size_t c = 0; c < sums.size(); ++c) {
      const float d = 2 * f1 * between[c] - f0 * before[c] - sums[c] - mass * sums[c] * inverse;
      squares += d * d;
    }
    RowState& state = State(t.g, rows[i]);
    const float age = std::exp2(2 * (w.reference[i] - max));
    w.reference[i] = max;
    state.deviation = state.deviation * age + squares;
    state.mass_deviation = state.mass_deviation * age + mass * mass;
  }
}

}  // namespace croquis::attention::hyper
