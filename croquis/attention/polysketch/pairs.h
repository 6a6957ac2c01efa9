// Polynomial attention pair by pair: queries against the transposed keys of one block.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/attention/polysketch/polysketch.h"

namespace croquis::attention::polysketch {

// Keys of a block: their inputs (exact or sketched) transposed, [LocalInputs, Padded(v.rows)], and values.
struct KeyBlock {
  const float* inputs = nullptr;
  int64_t ld = 0;
  MatView<const float> v;
};

// Rows of a head in f32: where they lie if they are, otherwise converted into room [rows, dim].
MatView<const float> AsF32(const RowsView& rows, float* room);

// A tile of queries on its way through keys: numerators [rows, value_dim] and normalisers. One a worker.
class PolyTile {
 public:
  PolyTile(const PolyForm& form, int64_t rows, int64_t value_dim);

  // Reads queries first .. first + rows of a head: prepares them, and sketches them where weights are sketched.
  void Load(const RowsView& q, int64_t first, int64_t rows);
  // All rows take in a state of the form's map.
  void AddState(const float* state);
  // Row r takes in the first last[r] keys of a block (maybe none, maybe more than there are: all).
  void AddPairs(const KeyBlock& block, const int64_t* last);
  // Answers and log-sum-exps of the rows that see a key (sees[r] > 0; others get zeros and kEmptyMax). False when a
  // normaliser is not finite.
  bool Finish(MatView<float> out, float* lse, const int64_t* sees);

 private:
  const PolyForm& form_;
  int64_t value_dim_, rows_ = 0;
  std::vector<float> x_, m_, sums_, mass_, weights_, scratch_;
};

}  // namespace croquis::attention::polysketch
