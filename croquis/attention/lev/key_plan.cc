#include "croquis/attention/lev/key_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "croquis/attention/lev/leverage_factor.h"
#include "croquis/attention/lev/streaming.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention::lev {
namespace {

constexpr int kLewisIterations = 30;
constexpr double kLewisTolerance = 1e-3;  // bounds hold for any weights, so this is about tightness only

// Keys as leverage is taken of them: f32, with the constant appended where asked for.
class KeyReader {
 public:
  KeyReader(const RowsView& k, bool center) : k_(k), center_(center) {
    std::vector<float> row(static_cast<size_t>(k.dim));
    for (from_ = 0; center && from_ < k.rows; ++from_) {
      k.Read(from_, row.data());
      constant_ = CenteringConstant(row);
      if (constant_ > 0) break;
    }
  }
  int64_t dim() const { return k_.dim + center_; }
  // Rows first .. first + n.
  Matrix<float> Read(int64_t first, int64_t n) const {
    Matrix<float> out(n, dim());
    for (int64_t r = 0; r < n; ++r) {
      k_.Read(first + r, out.Row(r));
      if (center_) out.Row(r)[k_.dim] = first + r >= from_ ? constant_ : 0;
    }
    return out;
  }

 private:
  RowsView k_;
  bool center_;
  int64_t from_ = 0;  // first key that is not zero
  float constant_ = 0;
};

// The universal set of all keys, by two passes; sinks are in it.
std::vector<int32_t> WholeSet(Executor& executor, const RowsView& k, const PlanOptions& o, double* epsilon) {
  const KeyReader reader(k, o.center);
  const Matrix<float> keys = reader.Read(0, k.rows);
  std::vector<double> bounds(static_cast<size_t>(k.rows));
  double least = o.eps * (1 - 1e-9);  // the sums are rounded
  if (o.p == 2) {
    LeverageFactor factor(keys.cols(), o.ridge);
    factor.Add(keys.View(), &executor);
    least = o.eps * (1 - factor.Error());
    // The order of the largest needs no more than f32.
    const double care = o.top > 0 ? std::numeric_limits<double>::infinity() : least;
    constexpr int64_t kRows = 1024;
    executor.ParallelFor((k.rows + kRows - 1) / kRows, [&](int64_t piece, int) {
      const int64_t first = piece * kRows, n = std::min(kRows, k.rows - first);
      factor.UpperBounds(keys.View().Rows(first, n), care, std::span(bounds).subspan(size_t(first), size_t(n)));
    });
  } else {
    std::vector<double> weights(bounds.size());
    LewisWeights(executor, keys.View(), o.p, o.ridge, weights, kLewisIterations, kLewisTolerance);
    SensitivityBounds(executor, keys.View(), o.p, o.ridge, weights, bounds);
  }
  std::vector<int32_t> set;
  if (o.top > 0) {
    std::vector<int32_t> order(bounds.size());
    std::iota(order.begin(), order.end(), 0);
    const auto top = size_t(std::min<int64_t>(o.top, k.rows));
    std::partial_sort(order.begin(), order.begin() + ptrdiff_t(top), order.end(), [&](int32_t a, int32_t b) {
      return bounds[size_t(a)] != bounds[size_t(b)] ? bounds[size_t(a)] > bounds[size_t(b)] : a < b;
    });
    set.assign(order.begin(), order.begin() + ptrdiff_t(top));
  } else {
    for (int64_t j = 0; j < k.rows; ++j)
      if (bounds[size_t(j)] >= least) set.push_back(int32_t(j));
  }
  for (int64_t j = 0; j < std::min(o.sinks, k.rows); ++j) set.push_back(int32_t(j));
  std::sort(set.begin(), set.end());
  set.erase(std::unique(set.begin(), set.end()), set.end());
  std::vector<char> in(bounds.size());
  for (const int32_t j : set) in[size_t(j)] = 1;
  *epsilon = 0;
  for (size_t j = 0; j < bounds.size(); ++j)
    if (!in[j]) *epsilon = std::max(*epsilon, bounds[j]);
  return set;
}

int64_t Tiles(const Problem& p) { return (p.q.rows + kTileRows - 1) / kTileRows; }

// Rows of the tile that see fewest and most keys under a causal mask.
Range CausalEnds(const Problem& p, int64_t tile) {
  const int64_t first = tile * kTileRows, last = std::min(p.q.rows, first + kTileRows) - 1;
  return {p.Visible(first).last, p.Visible(last).last};
}

// The streaming sets of a head at the tiles' first local keys.
void PlanCausal(const Problem& p, const RowsView& k, const PlanOptions& o, KeyPlan& plan) {
  const KeyReader reader(k, o.center);
  StreamingLeverage stream({.dim = reader.dim(), .p = o.p, .eps = o.eps, .top = o.top, .ridge = o.ridge});
  int64_t generation = -1;
  for (int64_t t = 0; t < Tiles(p); ++t) {
    const Range ends = CausalEnds(p, t);
    TilePlan& tile = plan.tiles[size_t(t)];
    tile.local = {std::max<int64_t>(0, ends.first - o.window) / kTileKeys * kTileKeys, ends.last};
    while (stream.seen() < tile.local.first)
      stream.Append(reader.Read(stream.seen(), StreamingLeverage::kChunk).View());
    // Between sweeps the set only grows at its end: tiles share one list and see different lengths of it.
    if (generation != stream.generation()) plan.sets.emplace_back();
    generation = stream.generation();
    std::vector<int32_t>& set = plan.sets.back();
    set.clear();
    const int64_t sinks = std::min(o.sinks, tile.local.first);
    for (int64_t j = 0; j < sinks; ++j) set.push_back(int32_t(j));
    for (const int64_t j : stream.Kept())
      if (j >= sinks) set.push_back(int32_t(j));
    tile.set = int64_t(plan.sets.size()) - 1;
    tile.before = int64_t(set.size());
    tile.rest_before = tile.rest = tile.local.first - tile.before;
  }
  plan.epsilon = stream.Epsilon();
  // Slots beyond a tile's own length belong to later tiles.
  for (TilePlan& tile : plan.tiles) tile.after = int64_t(plan.sets[size_t(tile.set)].size());
}

void PlanWhole(const Problem& p, const PlanOptions& o, KeyPlan& plan) {
  const std::vector<int32_t>& set = plan.sets[0];
  const int64_t n = p.k.rows, size = int64_t(set.size());
  for (int64_t t = 0; t < Tiles(p); ++t) {
    TilePlan& tile = plan.tiles[size_t(t)];
    const int64_t first = p.mask.offset + t * kTileRows, last = p.mask.offset + std::min(p.q.rows, (t + 1) * kTileRows);
    if (o.window > 0) {
      tile.local.first = std::clamp<int64_t>(first - o.window, 0, n) / kTileKeys * kTileKeys;
      tile.local.last = std::max(tile.local.first, std::clamp<int64_t>(last + o.window, 0, n));
    }
    tile.before = std::lower_bound(set.begin(), set.end(), tile.local.first) - set.begin();
    tile.after = std::lower_bound(set.begin(), set.end(), tile.local.last) - set.begin();
    tile.rest_before = tile.local.first - tile.before;
    tile.rest = tile.rest_before + (n - tile.local.last) - (size - tile.after);
  }
}

}  // namespace

int32_t KeyPlan::RestKey(const TilePlan& tile, int64_t rank) const {
  const std::vector<int32_t>& set = sets[size_t(tile.set)];
  // Among the keys from `from` on without set[low .. high): the key of rank r is the smallest one with r keys of the
  // rest below it, from + r + (slots passed).
  const bool front = rank < tile.rest_before;
  const int64_t from = front ? 0 : tile.local.last, r = front ? rank : rank - tile.rest_before;
  int64_t low = front ? 0 : tile.after, high = front ? tile.before : int64_t(set.size());
  const int64_t base = low;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (set[size_t(middle)] - from - (middle - base) <= r)
      low = middle + 1;
    else
      high = middle;
  }
  return int32_t(from + r + (low - base));
}

std::vector<KeyPlan> PlanKeys(Executor& executor, const Problem& p, const PlanOptions& o) {
  std::vector<KeyPlan> plans(static_cast<size_t>(p.k.heads));
  for (KeyPlan& plan : plans) plan.tiles.resize(size_t(Tiles(p)));
  if (p.mask.causal) {
    executor.ParallelFor(p.k.heads, [&](int64_t head, int) { PlanCausal(p, p.k.Head(head), o, plans[size_t(head)]); });
    return plans;
  }
  for (int64_t head = 0; head < p.k.heads; ++head) {
    KeyPlan& plan = plans[size_t(head)];
    plan.sets.push_back(WholeSet(executor, p.k.Head(head), o, &plan.epsilon));
    PlanWhole(p, o, plan);
  }
  return plans;
}

void SampleRest(const KeyPlan& plan, const TilePlan& tile, const Stream& random, int64_t count,
                std::vector<int32_t>& keys, std::vector<float>& weights) {
  keys.clear();
  weights.clear();
  const bool all = count == tile.rest;
  for (const int64_t half : {0, 1})
    for (int64_t run = half; run < count; run += 2) {
      const int64_t first = run * tile.rest / count, length = (run + 1) * tile.rest / count - first;
      const int64_t at = all ? 0 : int64_t((uint64_t(random.U32(uint64_t(run))) * uint64_t(length)) >> 32);
      keys.push_back(plan.RestKey(tile, first + at));
      weights.push_back(float(length));
    }
}

}  // namespace croquis::attention::lev
