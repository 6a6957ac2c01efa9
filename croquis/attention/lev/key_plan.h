// Which keys a tile of queries looks at: a universal set, the keys near the tile, and a sample of the rest.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/rng.h"

namespace croquis::attention::lev {

struct PlanOptions {
  double p = 2, eps = .05;
  int64_t top = 0;  // > 0: that many keys instead of those above eps
  double ridge = kDefaultRidge;
  // Leverage of the keys with a constant appended: universal for every query and every shift of its logits, which
  // softmax does not see. It equals the leverage of the keys less their mean, plus 1 / n, and needs no mean known
  // beforehand, so that it streams.
  bool center = true;
  int64_t window = 0, sinks = 0;
};

// What 64 query rows look at.
struct TilePlan {
  int64_t set = 0;                    // which of KeyPlan::sets
  int64_t before = 0, after = 0;      // slots [0, before) and [after, size) of it
  Range local;                        // these one by one, under the mask; none of them in those slots
  int64_t rest_before = 0, rest = 0;  // keys of neither kind before `local`, and in all
  int64_t set_keys(int64_t size) const { return before + size - after; }
};

// The plan of one kv head.
struct KeyPlan {
  std::vector<std::vector<int32_t>> sets;  // ascending
  std::vector<TilePlan> tiles;
  double epsilon = 0;  // no key outside of a tile's keys has a sensitivity above this (among those the tile may see)

  // Key number `rank` of the `rest` of a tile.
  int32_t RestKey(const TilePlan& tile, int64_t rank) const;
};

// Without a mask: the universal set of all keys, by two passes. With a causal mask the sets are those of
// StreamingLeverage at the tiles' first keys, so no tile's set depends on later keys. `local` starts at a multiple of
// 64, at least `window` keys before the tile's first position, and ends with its last position (with no mask it reaches
// as far ahead; empty for window 0).
std::vector<KeyPlan> PlanKeys(Executor& executor, const Problem& problem, const PlanOptions& options);

// A stratified sample of a tile's rest: the rest in order is cut into `count` runs of nearly equal length and one key
// of each is taken, uniformly. weights[i] is the length of run i: the sum of weight * f(key) is an unbiased estimate of
// the sum of f over the rest. Even runs come first, then odd ones; `count` is even and at most tile.rest. All of the
// rest, with weights 1, when count = tile.rest.
void SampleRest(const KeyPlan& plan, const TilePlan& tile, const Stream& random, int64_t count,
                std::vector<int32_t>& keys, std::vector<float>& weights);

}  // namespace croquis::attention::lev
