// Attention whose weights are inner products of features, <phi(q), phi(k)>: keys and values enter a state
//   Z = sum_j phi(k_j) v_j^T [features, value_dim],   z = sum_j phi(k_j) [features],
// and a query reads phi(q)^T Z and phi(q)^T z. What is here turns tiles of inputs into features, and those into states
// and answers; what the inputs are (sketches, scaled keys, monomials) is the methods' business.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/base/view.h"
#include "croquis/simd/feature_kernels.h"

namespace croquis::attention::linear {

// Rows a tile of keys or queries may have, and what columns of transposed tiles are padded to (with zeros).
inline constexpr int64_t kMaxTile = 1024;
inline constexpr int64_t kTileStep = 16;
constexpr int64_t Padded(int64_t tokens) { return (tokens + kTileStep - 1) / kTileStep * kTileStep; }

class FeatureMap {
 public:
  // phi(x) = x: weights <x, y>.
  static FeatureMap Linear(int64_t inputs) { return FeatureMap(inputs, false, 1, 1); }
  // The products x_u x_v, u <= v, on the side of keys times `same` where u = v and `other` elsewhere. (1, 2): weights
  // <x, y>^2 with n (n + 1) / 2 features instead of n^2.
  static FeatureMap Square(int64_t inputs, float same = 1, float other = 2) {
    return FeatureMap(inputs, true, same, other);
  }

  int64_t inputs() const { return inputs_; }
  int64_t features() const { return features_; }
  // A state: Z row by row, then z.
  int64_t StateFloats(int64_t value_dim) const { return features_ * (value_dim + 1); }
  // Scratch of Add and Apply for tiles of at most `rows` rows.
  int64_t ScratchFloats(int64_t rows) const { return largest_ * Padded(rows) + simd::kFeatureSlack; }

  // state += phi(x)^T [v, 1] for a tile of keys, x transposed: xt [inputs, Padded(v.rows)], columns past v.rows zero,
  // ldx a multiple of kTileStep.
  void Add(const float* xt, int64_t ldx, MatView<const float> v, float* state, float* scratch) const;
  // out[r] += phi(x_r)^T Z, mass[r] += phi(x_r)^T z for out.rows rows; kFeatureSlack floats may be read past the last.
  void Apply(const float* x, int64_t ldx, const float* state, MatView<float> out, float* mass, float* scratch) const;

 private:
  struct Chunk {
    int64_t begin, end;       // inputs u
    int64_t first, features;  // features that these u begin
  };
  FeatureMap(int64_t inputs, bool square, float same, float other);

  int64_t inputs_, features_ = 0, largest_ = 0;
  bool square_;
  float same_, other_;
  std::vector<Chunk> chunks_;
};

// to [cols, Padded(rows)] = from^T for from [rows, cols] with row stride ld; columns past `rows` become zero.
void Transpose(const float* from, int64_t ld, int64_t rows, int64_t cols, float* to, int64_t ldt);

}  // namespace croquis::attention::linear
