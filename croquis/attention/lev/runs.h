// The two ways a plan is carried out: softmax over the planned keys, and the score |x|^p.
#pragma once

#include <algorithm>
#include <span>

#include "croquis/attention/lev/key_plan.h"
#include "croquis/attention/method.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/row_error.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention::lev {

struct RunOptions {
  PlanOptions plan;
  int64_t samples = 0;  // of the rest of a tile's keys; 0: they count as nothing
  uint64_t seed = 0;
  simd::TileType type = simd::TileType::kF32;  // softmax only
};

// The random stream of a tile's sample.
Stream SampleStream(uint64_t seed, int64_t kv_head, int64_t tile);
// Keys to sample for a tile: at most `samples`, all of the rest if that is no more, otherwise an even number.
int64_t SampleCount(const TilePlan& tile, int64_t samples);

Status RunSoftmax(Executor& executor, const Problem& problem, const RunOptions& options, const Output& output,
                  RunReport* report);
// p = 2: the row's normaliser is that of all keys, q^T (K^T K) q; otherwise it is what was looked at and sampled.
Status RunPower(Executor& executor, const Problem& problem, const RunOptions& options, const Output& output,
                RunReport* report);

// States of the rows of a tile (QueryTile, PowerTile), kept beside it.
struct SavedStates {
  explicit SavedStates(int64_t value_dim) : sums(kTileRows, value_dim) {}
  template <class Tile>
  void Take(Tile& tile) {
    for (int64_t r = 0; r < tile.rows(); ++r) {
      const Partial s = tile.State(r);
      m[r] = s.m, l[r] = s.l;
      std::copy(s.a.begin(), s.a.end(), sums.Row(r));
    }
  }
  Partial Row(int64_t r) { return {m[r], l[r], {sums.Row(r), size_t(sums.cols())}}; }

  Matrix<float> sums;
  float m[kTileRows] = {}, l[kTileRows] = {};
};

// Estimates of error, row by row: what a run adds up over tiles, in order.
struct RowErrors {
  double relative = 0, lse = 0;
  void Add(const RowErrors& other) {
    relative += other.relative;
    lse += other.lse;
  }
};
// Pairs that plans look at, samples counted.
double PlannedPairs(const Problem& problem, std::span<const KeyPlan> plans, int64_t samples);

}  // namespace croquis::attention::lev
