// Sketches of powers of inner products: M(x) [r] with E <M(x), M(y)> = <x, y>^t.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/base/view.h"

namespace croquis::attention::polysketch {

enum class SketchKind : uint8_t { kGaussian, kSrht };

// The recursion of arXiv 2310.01655 (section 2.3), t a power of two:
//   S(x, 1) = x,   S(x, t) = sqrt(1 / r) (S'(x, t/2) G1) o (S''(x, t/2) G2),
// G1, G2 with independent entries of mean 0 and variance 1, new ones at every place, the same for queries and keys.
// kSrht: the columns of G are those of D H, D random signs and H the Walsh-Hadamard matrix, drawn without replacement
// (rows padded to a power of two; more columns than that begin a new D); multiplied as a matrix, which at these sizes
// is faster than the transform.
class PolySketch {
 public:
  // power t = 1 (M(x) = x, any rank), 2 or 4; rank r >= 1.
  PolySketch(int64_t dim, int power, int64_t rank, SketchKind kind, uint64_t seed);

  int64_t rank() const { return power_ == 1 ? dim_ : rank_; }
  int64_t ScratchFloats(int64_t rows) const { return power_ == 1 ? 0 : 2 * power_ * rows * rank_; }
  // m [x.rows, rank()] with row stride ldm. x and m may not overlap.
  void Apply(MatView<const float> x, float* m, int64_t ldm, float* scratch) const;

 private:
  int64_t dim_;
  int power_;
  int64_t rank_;
  // Level 0: `power` matrices [dim, r]; further levels: [r, r] for each of the power / 2, power / 4, .. 2 products.
  std::vector<std::vector<Matrix<float>>> levels_;
};

}  // namespace croquis::attention::polysketch
