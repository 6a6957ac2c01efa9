// What centring removed from the keys, added back to the logits: <q, R_p mu>, exactly (spec kv-cache 0.4).
//
// With z_i = conj(q_i) mu_i by complex pair, <q, R_p mu> = Re sum_i z_i e^{i w_i p}. For the page that starts at P the
// factor e^{i w_i P} is folded into z, and what is left is a product of [pages x rows, 2 pairs] with the table
// [2 pairs, 128] of cos(w delta) and -sin(w delta), which depends neither on mu nor on the head. It is computed for
// many pages at a time: for one page the product has as few rows as there are query heads in the group.
#pragma once

#include <complex>
#include <cstddef>
#include <cstdint>

#include "croquis/base/view.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {

// What the corrections of one head's query rows are made of; the same for all pages.
struct CenterQuery {
  // Bytes of memory for `rows` rows (a multiple of 64).
  static size_t Bytes(int64_t rows, int64_t head_dim);
  // q [rows, head_dim], already scaled; `head.center` must be set.
  CenterQuery(const kvcache::HeadView& head, MatView<const float> q, std::byte* memory);

  int64_t rows;
  int64_t turning;  // pairs that rotate; all others sum to one constant a row
  float* z;         // [rows][2 * turning]: real, then imaginary parts
  float* still;     // [rows]: the constants
  float* table;     // [2 * turning][128]
};

class CenterScore {
 public:
  // Bytes of working memory for up to `rows` query rows (multiple of 64).
  static size_t Bytes(int64_t rows, int64_t head_dim);

  // For pages first_page .. last_page. `query` must outlive it.
  CenterScore(const kvcache::HeadView& head, const CenterQuery& query, int64_t first_page, int64_t last_page,
              std::byte* memory);
  // logits [rows * 128] += the correction of page j; pages must be asked for in ascending order, from the first on.
  void Add(int64_t page, float* logits);

 private:
  // Pages computed together for `rows` rows.
  static int64_t Batch(int64_t rows);
  void Fill();

  const CenterQuery& query_;
  const int64_t last_page_;
  int64_t begin_, end_;          // pages in the batch
  float* coefficients_;          // [batch * rows][2 * turning]
  float* sums_;                  // [batch * rows][128]
  std::complex<double>* phase_;  // e^{i w P} at page end_
  std::complex<double>* step_;   // e^{i 128 w}
};

}  // namespace croquis::attention
