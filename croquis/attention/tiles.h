// What dense methods are written with: sets of packed keys, and tiles of query rows that run against any of them. A
// tile keeps one streaming softmax over all it has met, so exact parts, hash windows, weighted samples and virtual keys
// add up in one state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/memory.h"
#include "croquis/base/result.h"
#include "croquis/simd/tile_kernels.h"

namespace croquis::attention {

using simd::kTileKeys;
using simd::kTileRows;
using simd::TileType;

// Keys and values of one kv head in packed blocks of 64, in the order the caller gives them, with optional weights.
class KeySet {
 public:
  KeySet() = default;
  // Room for `keys` keys, which hold nothing yet. The caller checks Bytes() first (CheckMemory).
  KeySet(TileType type, int64_t keys, int64_t dim, int64_t value_dim);
  static size_t Bytes(TileType type, int64_t keys, int64_t dim, int64_t value_dim);

  int64_t keys() const { return keys_; }
  int64_t blocks() const { return (keys_ + kTileKeys - 1) / kTileKeys; }
  const simd::TileLayout& layout() const { return layout_; }

  // Packs block `block`: slots 64 block .. of the set hold rows index[slot] of k and v (index over the whole set;
  // empty: rows in order). Blocks may be packed from different threads.
  void PackBlock(int64_t block, const RowsView& k, const RowsView& v, std::span<const int32_t> index = {});
  // The same with the rows index[0 .. n) of this block alone, n <= 64.
  void PackRows(int64_t block, const RowsView& k, const RowsView& v, std::span<const int32_t> index);
  // All blocks, in parallel.
  void Pack(Executor& executor, const RowsView& k, const RowsView& v, std::span<const int32_t> index = {});

  // Asks for blocks that begin among the slots [begin, end), so that they are in the second cache when they are
  // attended.
  void Fetch(int64_t begin, int64_t end) const;

  // Adds to the logits of slot `slot` the natural logarithm of a weight: ln 2 counts a key twice. Sets a table of
  // zeros up at the first call, so call it from one thread.
  void SetLogWeight(int64_t slot, float log_weight);
  // Adds row_factor(query) * factor to the logits of a slot (natural log); see QueryTile::Load.
  void SetFactor(int64_t slot, float factor);

 private:
  friend class QueryTile;
  void Pack(int64_t block, const RowsView& k, const RowsView& v, const int32_t* index, int64_t n);
  const std::byte* Keys(int64_t block) const { return packed_.data() + size_t(block) * layout_.KeyBlockBytes(); }
  const std::byte* Values(int64_t block) const { return Keys(blocks()) + size_t(block) * layout_.ValueBlockBytes(); }

  simd::TileLayout layout_;
  int64_t keys_ = 0;
  Buffer packed_;                     // blocks of keys, then blocks of values
  std::vector<float> bias_, factor_;  // base 2; empty: none
};

// Slots of a set that rows of a tile take in, one of several ranges of a call.
struct KeyRange {
  const KeySet* keys = nullptr;
  int64_t begin = 0, end = 0;
  int64_t first_row = 0, last_row = kTileRows;  // of the tile; first_row a multiple of 16
  std::span<const Range> visible = {};          // a row each, from first_row on: slots it sees; empty: all
  // Base 2, instead of the set's log-weights: of each slot from `begin` on, to the end of the last block; `begin` is a
  // multiple of 64 then. simd::kMasked leaves a slot out, but not all of them.
  std::span<const float> log2_weights = {};
  std::span<const float> row_factors = {};  // a row of the tile each, instead of those of Load
};

// Up to 64 query rows of one head and their running state. One a worker, used again and again; takes hardly any memory
// after construction.
class QueryTile {
 public:
  QueryTile(TileType type, int64_t dim, int64_t value_dim);

  // Rows index[0 .. rows) of q (empty: rows 0 .. rows); logits are scale * <q, k>. Forgets the state.
  // row_factors: one a row, for key sets with factors.
  void Load(const RowsView& q, int64_t rows, float scale, std::span<const int32_t> index = {},
            std::span<const float> row_factors = {});
  int64_t rows() const { return rows_; }

  // Takes in slots [begin, end) of a set, which must be of the tile's type and dims.
  void Attend(const KeySet& keys, int64_t begin, int64_t end);
  // Row r takes in [begin, end) and visible[r] only.
  void Attend(const KeySet& keys, int64_t begin, int64_t end, std::span<const Range> visible);

  // Takes in several ranges one after the other, for less than as many calls would cost.
  void Attend(std::span<const KeyRange> ranges);

  // Adds weights[r] sum_i q_i v_i to the sums of row r, with q its query in the precision of the tile and v_i the
  // values of slot i of a set of `dim` slots, whose keys do not matter. A step along a matrix.
  void AddProducts(const KeySet& matrix, std::span<const float> weights);

  // The state of a row; `a` stays the tile's. Valid until the next Load or Attend.
  Partial State(int64_t row);
  // Forgets what has been taken in, keeps the queries.
  void Clear();
  // Takes in states kept elsewhere: m, l of one row and a [value_dim].
  void Merge(int64_t row, const Partial& from);
  // A row's state as it stands, in base 2, to be kept elsewhere and taken up again without rounding. max is
  // simd::kMasked where nothing has been seen.
  float Max2(int64_t row) const { return max_[size_t(row)]; }
  float Mass(int64_t row) const { return mass_[size_t(row)]; }
  std::span<float> Sums(int64_t row) { return {sums_.Row(row), size_t(layout_.value_dim)}; }
  void Resume(int64_t row, float max2, float mass, std::span<const float> sums);
  // The answer of a row and the log-sum-exp (kEmptyMax where nothing was seen).
  float Finalize(int64_t row, std::span<float> out) { return attention::Finalize(State(row), out); }

 private:
  void Run(std::span<const simd::TileRange> ranges);

  simd::TileLayout layout_;
  const simd::TileKernels* kernels_;
  int64_t rows_ = 0;
  float scale_ = 1, query_factor_ = 1;  // of products; of packed queries
  Buffer queries_, scratch_;
  Matrix<float> sums_;
  std::vector<float> max_, mass_, row_factor_, weights_;
  std::vector<simd::TileRange> ranges_;
  std::vector<int32_t> first_, last_;  // of the rows of each range
};

}  // namespace croquis::attention
