// What centring removed from the keys, added back to the logits: <q, R_p mu>, exactly (spec kv-cache 0.4).
//
// With z_i = conj(q_i) mu_i by complex pair, <q, R_p mu> = Re sum_i z_i e^{i w_i p}. Each half of a page folds the
// phase of its middle into z; what is left are waves about that middle by a table of cos and sin that depends neither
// on mu nor on the head: the even parts (cos) are the same on both sides, the odd ones (sin) opposite, so each product
// serves two tokens.
#pragma once

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
  float* waves;     // [turning][64]: RopeTable::Waves
};

class CenterScore {
 public:
  // Bytes of working memory (multiple of 64).
  static size_t Bytes(int64_t head_dim);

  // For pages from first_page on. `query` must outlive it.
  CenterScore(const kvcache::HeadView& head, const CenterQuery& query, int64_t first_page, std::byte* memory);
  // logits [rows * 128] += the correction of page j; pages must be asked for in ascending order, some more than once.
  void Add(int64_t page, float* logits);

 private:
  // Numbers by turning pair, for both halves of the page: e^{i w middle}.
  struct Phase {
    double *re, *im;
  };
  // to = by e^{i 64 w}.
  void Turn(const Phase& by, const Phase& to) const;

  const CenterQuery& query_;
  int64_t page_;
  Phase phase_[2], step_;
};

}  // namespace croquis::attention
