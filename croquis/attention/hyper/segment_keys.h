// The packed keys of segments: all keys in hash order, and what stands for those outside of a window.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/hyper/index.h"
#include "croquis/attention/tiles.h"
#include "croquis/base/executor.h"

namespace croquis::attention::hyper {

class SegmentKeys {
 public:
  // Takes memory for the segments that are in use at a time.
  SegmentKeys(TileType type, const Problem& problem, const Options& options, const Plan& plan);
  static int64_t Bytes(TileType type, const Problem& problem, const Plan& plan);

  // Before the first stage of a head: what samples by values need to know of them. Nothing for other residuals.
  void MeasureValues(Executor& executor);
  // Packs the segments of a stage (not empty). kv: numbers the samples.
  void Fill(Executor& executor, const Index& index, size_t stage, int64_t kv);

  const KeySet& sorted() const { return sorted_; }
  const KeySet& residual() const { return residual_; }
  // Residuals of half 0 or 1: how many, and those that stand for ranks inside of `window` (a run of them).
  int64_t Residuals(const Segment& s, int half) const;
  Range Inside(const Segment& s, int half, Range window) const;
  // Base 2 logarithms of the keys of each cell.
  std::span<const float> LogWeights(const Segment& s) const {
    return {log_weights_.data() + s.residual_slot, size_t(s.residuals)};
  }
  // Covariance [dim, value_dim] of keys and values within a segment's cells, kept until it is filled for another head.
  MatView<const float> Covariance(const Segment& s) const { return covariances_[s.id].View(); }
  // Mean over cells of the variance of a key's coordinate within its cell.
  float Spread(const Segment& s) const { return spreads_[s.id]; }

 private:
  // Keys of a segment that one task takes: whole cells, and the blocks that begin among them.
  struct Unit {
    const Segment* segment;
    Range cells;
  };

  void Draw(const Segment& s, int64_t kv, std::span<const int32_t> order);
  void FillMoments(Executor& executor, const Index& index, size_t stage);
  void PackSorted(const Segment& s, int64_t block, std::span<const int32_t> order);
  void AddCell(const Index& index, const Segment& s, int64_t cell, std::span<const int32_t> members, const RowsView& k,
               const RowsView& v);
  void Multiply(const Segment& s);

  const Problem& problem_;
  const Options& options_;
  const Plan& plan_;
  KeySet sorted_, residual_;
  std::vector<std::vector<Unit>> units_;          // of each stage
  Matrix<float> mean_keys_, mean_values_;         // of each cell, by residual slot
  std::vector<int32_t> ranks_, picks_;            // of each residual slot: rank among the sorted keys, and the key
  std::vector<int64_t> counts_;                   // of the half that begins at a block
  std::vector<float> cell_spread_, log_weights_;  // of each residual slot
  Matrix<float> centred_keys_, centred_values_;   // less the means of their cells
  std::vector<Matrix<float>> covariances_;
  std::vector<float> spreads_, value_squares_;
};

}  // namespace croquis::attention::hyper
