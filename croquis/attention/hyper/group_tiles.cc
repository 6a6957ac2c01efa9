// A tile of rows in hash order against all segments of its group.
#include <algorithm>
#include <cmath>

#include "croquis/attention/hyper/engine.h"
#include "croquis/simd/row_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kLeastShare = 16;  // neighbouring rows that share a window, at least

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

// fn(first, n) for the rows of a tile that share windows of a segment: as many as lie, among that many keys, within
// half a window.
template <class Fn>
void EachShare(const Group& group, const Segment& s, int64_t rows, const Fn& fn) {
  int64_t share = kTileRows;
  while (share > kLeastShare && 2 * share * s.keys.size() > s.block * group.rows.size()) share /= 2;
  for (int64_t r = 0; r < rows; r += share) fn(r, std::min(share, rows - r));
}

}  // namespace

void Engine::RunTile(const GroupTile& t, int64_t kv, Worker& w) {
  const Group& group = *t.group;
  const auto rows = index_.SortedRows(group, t.g).subspan(size_t(t.first), size_t(t.rows));
  w.tile.Load(head_.q.Head(t.g), t.rows, problem_.scale, rows);
  for (int64_t r = 0; r < t.rows; ++r) Resume(kv, t.g, rows[size_t(r)], r, w);
  const size_t segments = group.segments.size();
  w.windows.resize(segments * kTileRows);
  // Ranges refer to places in these; each segment takes so much of them at most.
  size_t weights = 0;
  for (const Segment* s : group.segments) weights += size_t(kTileRows / kLeastShare * s->ResidualSlots());
  w.weights.resize(weights), w.visible.resize(segments * 3 * kTileRows), w.factors.resize(segments * kTileRows);
  w.weights_used = w.visible_used = 0;
  w.ranges.clear();
  for (size_t s = 0; s < segments; ++s) Windows(t, *group.segments[s], std::span(w.windows).subspan(s * kTileRows));
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
    for (size_t s = 0; s < segments; ++s) RowFactors(t, *group.segments[s], rows, w.factors.data() + s * kTileRows);
    residuals(0);
    AddShares(t, rows, w);
  }
  for (size_t s = 0; s < segments; ++s) AddWindows(t, s, w);
  attend();
  if (moment()) {
    Step(t, rows, w);
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

// The ranks of keys that each row of a tile meets one by one. Neighbouring rows share them, unless no row may depend on
// others or blocks are fixed.
void Engine::Windows(const GroupTile& t, const Segment& s, std::span<Range> windows) const {
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
  const std::span<const uint16_t> codes = index_.SortedCodes(*t.group, t.g).subspan(size_t(t.first), size_t(t.rows));
  for (int64_t r = 0; r < t.rows; ++r) {
    const int64_t block = (t.first + r) / each;
    windows[size_t(r)] = by_rank ? Range{block * s.block, std::min(m, (block + 1) * s.block)}
                                 : index_.CodeWindow(s, codes[size_t(r)], t.group->bits);
  }
  if (options_.strict || by_rank) {
    for (int64_t r = 0; r < t.rows; ++r) windows[size_t(r)] = whole(windows[size_t(r)]);
    return;
  }
  EachShare(*t.group, s, t.rows, [&](int64_t first, int64_t n) {
    const std::span<Range> some = windows.subspan(size_t(first), size_t(n));
    std::fill(some.begin(), some.end(), whole(ExtentOf(some).all));
  });
}

// A segment's globals, and the sorted keys in each row's window.
void Engine::AddWindows(const GroupTile& t, size_t segment, Worker& w) const {
  const Segment& s = *t.group->segments[segment];
  const KeySet& keys = segment_keys_.sorted();
  w.ranges.push_back({.keys = &keys, .begin = s.slot, .end = s.slot + s.globals});
  w.pairs += double(t.rows * s.globals);
  const int64_t base = s.slot + s.GlobalSlots();
  EachShare(*t.group, s, t.rows, [&](int64_t first, int64_t n) {
    const auto windows = std::span<const Range>(w.windows).subspan(segment * kTileRows + size_t(first), size_t(n));
    const Extent e = ExtentOf(windows);
    KeyRange range{.keys = &keys,
                   .begin = base + e.all.first,
                   .end = base + e.all.last,
                   .first_row = first,
                   .last_row = first + n};
    for (const Range x : windows) w.pairs += double(x.size());
    if (!e.same()) {
      const auto visible = std::span(w.visible).subspan(w.visible_used, size_t(n));
      w.visible_used += size_t(n);
      std::transform(windows.begin(), windows.end(), visible.begin(), [&](Range x) {
        return Range{base + x.first, base + x.last};
      });
      range.visible = visible;
    }
    w.ranges.push_back(range);
  });
}

// Residuals of one half that stand for keys of a segment outside of each row's window.
void Engine::AddResiduals(const GroupTile& t, size_t segment, int half, Worker& w) const {
  const Segment& s = *t.group->segments[segment];
  const KeySet& keys = segment_keys_.residual();
  const int64_t total = segment_keys_.Residuals(s, half), base = s.residual_slot + half * s.ResidualHalf();
  if (total == 0) return;
  const auto factors = moment() ? std::span<const float>(w.factors).subspan(segment * kTileRows, size_t(kTileRows))
                                : std::span<const float>();
  EachShare(*t.group, s, t.rows, [&](int64_t first, int64_t n) {
    const auto windows = std::span<const Range>(w.windows).subspan(segment * kTileRows + size_t(first), size_t(n));
    KeyRange range{.keys = &keys, .begin = base, .end = base + total, .first_row = first, .last_row = first + n};
    range.row_factors = factors;
    // A strict row is added up in the same order whatever its neighbours' windows.
    if (!options_.strict && ExtentOf(windows).same()) {
      const Range inside = segment_keys_.Inside(s, half, windows[0]);
      w.pairs += double(n * (total - inside.size()));
      if (inside.size() >= total) return;
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
        return;
      }
      range.end = base + inside.first;
      w.ranges.push_back(range);
      range.begin = base + inside.last, range.end = base + total;
      w.ranges.push_back(range);
      return;
    }
    const auto before = std::span(w.visible).subspan(w.visible_used, size_t(n)),
               behind = std::span(w.visible).subspan(w.visible_used + size_t(n), size_t(n));
    w.visible_used += size_t(2 * n);
    Range inside{};
    for (size_t r = 0; r < size_t(n); ++r) {
      const bool repeats = r > 0 && windows[r].first == windows[r - 1].first && windows[r].last == windows[r - 1].last;
      if (!repeats) inside = segment_keys_.Inside(s, half, windows[r]);
      before[r] = {base, base + inside.first}, behind[r] = {base + inside.last, base + total};
      w.pairs += double(total - inside.size());
    }
    range.visible = before;
    w.ranges.push_back(range);
    range.visible = behind;
    w.ranges.push_back(range);
  });
}

// A cell of n keys with mean k_c whose coordinates vary by t weighs, for logits that are Gaussian within it,
// n exp(scale <q, k_c> + s^2 / 2), s^2 = scale^2 |q|^2 t. A sum of n such exponentials does not reach its expectation
// once s^2 > 2 ln n: from there on its largest term rules, and the exponent grows like s sqrt(2 ln n) - ln n (Derrida's
// random energy model, Phys. Rev. B 24, 2613).
void Engine::RowFactors(const GroupTile& t, const Segment& s, std::span<const int32_t> rows, float* factors) const {
  const float spread = segment_keys_.Spread(s), entropy = std::log(float(s.cell));
  const float square = problem_.scale * problem_.scale;
  for (int64_t r = 0; r < t.rows; ++r) {
    const float tilt = square * index_.RowSquare(t.g, rows[size_t(r)]), variance = tilt * spread;
    factors[r] = variance <= 2 * entropy ? tilt / 2 : (std::sqrt(2 * entropy * variance) - entropy) / spread;
  }
}

// deviation_ holds the mass that cells gave so far, for the certificate; w.shares[r] is what they gave now.
void Engine::AddShares(const GroupTile& t, std::span<const int32_t> rows, Worker& w) {
  w.shares.assign(kTileRows, 0);
  for (int64_t r = 0; r < t.rows; ++r) {
    const size_t state = State(t.g, rows[size_t(r)]);
    const float max = w.tile.Max2(r), age = mass_[state] == 0 ? 0 : std::exp2(max_[state] - max);
    w.reference[size_t(r)] = max;
    w.shares[size_t(r)] = w.tile.Mass(r) - mass_[state] * age;
    deviation_[state] = deviation_[state] * age + w.shares[size_t(r)];
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

void Engine::Step(const GroupTile& t, std::span<const int32_t> rows, Worker& w) const {
  const Slope& slope = slopes_[t.group->id];
  const double square = double(problem_.scale) * double(problem_.scale) * slope.spread;
  for (int64_t r = 0; r < t.rows; ++r) {
    float& step = w.steps[size_t(r)];
    step = 0;
    if (w.shares[size_t(r)] <= 0) continue;
    // Beyond s^2 = 2 ln n (see RowFactors) the largest term of a cell rules, and the step is cut there.
    const double variance = square * double(index_.RowSquare(t.g, rows[size_t(r)]));
    const double cut = variance <= 2 * slope.entropy ? 1 : std::sqrt(2 * slope.entropy / variance);
    const float age = std::exp2(w.reference[size_t(r)] - w.tile.Max2(r));
    step = w.shares[size_t(r)] * age * problem_.scale * float(cut);
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
// variance of their sum. deviation_ adds up |(a - a') - o (l - l')|^2 over the groups, relative to 2^2max, and
// mass_deviation_ (l - l')^2.
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
    const size_t at = State(t.g, rows[i]);
    const float age = std::exp2(2 * (w.reference[i] - max));
    w.reference[i] = max;
    deviation_[at] = deviation_[at] * age + squares;
    mass_deviation_[at] = mass_deviation_[at] * age + mass * mass;
  }
}

}  // namespace croquis::attention::hyper
