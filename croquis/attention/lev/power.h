// The score function |x|^p: row i's weight of key j is |<q_i, k_j>|^p over its sum along the row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"

namespace croquis::attention::lev {

// Attention with weights |scale <q, k>|^p in double; lse is the logarithm of their sum. A row whose weights are all
// zero gets zeros and kEmptyMax. O(nk) memory a worker.
Status PowerReference(Executor& executor, const Problem& problem, double p, const Output& output);

// Up to 64 query rows of one head against keys in f32, one running state a row; products by linalg::Gemm. The
// counterpart of QueryTile for this score function: states are Partials with logits p ln |x|.
class PowerTile {
 public:
  PowerTile(int64_t dim, int64_t value_dim, double p);

  // Rows of q; forgets the state.
  void Load(const RowsView& q, float scale);
  int64_t rows() const { return rows_; }
  MatView<const float> queries() const { return queries_.View().Rows(0, rows_); }
  // Takes in keys [n, dim], values [n, value_dim]. Key j of them counts weights[j] times (none: once each). Row r takes
  // in keys visible[r] only, as numbers from `first` on (none: all).
  void Attend(MatView<const float> k, MatView<const float> v, std::span<const float> weights = {},
              std::span<const Range> visible = {}, int64_t first = 0);
  Partial State(int64_t row);
  void Clear();

 private:
  void Weigh(int64_t row, float* scores, int64_t n, const float* weights);

  double p_;
  float scale_ = 1;
  int64_t rows_ = 0;
  Matrix<float> queries_, scores_, sums_;
  std::vector<float> top_, mass_;  // top_: largest |x| seen, what mass and sums are relative to (to the power of p)
};

}  // namespace croquis::attention::lev
