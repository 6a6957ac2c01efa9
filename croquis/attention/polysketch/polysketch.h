// Polynomial attention of even degree p (PolySketchFormer, arXiv 2310.01655):
//   o_i = sum_j w_ij v_j / (bias + sum_j w_ij),   w_ij = <q~_i, k~_j>^p,
// q~, k~ layer-normalised rows. Sketched, w_ij is <M(q~_i), M(k~_j)>^2 with E <M(q), M(k)> = <q, k>^(p/2): never
// negative, and a state of r (r + 1) / 2 x (value_dim + 1) numbers stands for all keys seen.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "croquis/attention/linear/feature_map.h"
#include "croquis/attention/polysketch/sketch.h"
#include "croquis/attention/problem.h"
#include "croquis/base/result.h"

namespace croquis::attention::polysketch {

struct PolyConfig {
  int degree = 4;       // p: 2, 4 or 8; any even number up to 8 without a sketch
  int64_t rank = 32;    // r of the sketch; p = 2 needs none
  int64_t block = 256;  // keys of a block, 1 to 1024
  bool mixed = false;   // causal: weights within a block exact, sketched across blocks
  std::optional<SketchKind> sketch = SketchKind::kGaussian;  // none: exact weights
  bool normalise = true;                                     // otherwise w_ij = (scale <q_i, k_j>)^p
  double bias = 1;
  uint64_t seed = 0;

  // Whether all keys fit a state: p = 2 exactly, others through a sketch.
  bool HasState() const { return sketch.has_value() || degree == 2; }
};

// A configuration made ready for heads of `dim` numbers: rows in, inputs of the feature map and of exact weights out.
//
// Normalised rows are divided by sqrt(dim) here, which divides all weights by dim^p and keeps them at most 1: at degree
// 8 and dim 1024 they would not fit f32. The bias is divided by the same, and the log-sum-exp moved back.
class PolyForm {
 public:
  PolyForm(const PolyConfig& config, int64_t dim, float scale);

  const PolyConfig& config() const { return config_; }
  const linear::FeatureMap& map() const { return map_; }
  int64_t dim() const { return dim_; }
  int64_t rank() const { return sketch_.rank(); }
  // What exact weights, or the sketch's, are made of: inputs and the power of their inner product.
  int64_t LocalInputs() const { return exact_local_ ? dim_ : rank(); }
  int LocalPower() const { return exact_local_ ? config_.degree : 2; }
  bool ExactLocal() const { return exact_local_; }
  float bias() const { return bias_; }
  // Natural log of the normaliser in the units of the definition.
  float Lse(float mass) const;

  int64_t ScratchFloats(int64_t rows) const { return sketch_.ScratchFloats(rows); }
  // x [rows, dim]: rows as they enter inner products; queries carry the scale.
  void Prepare(const RowsView& rows, bool queries, float* x) const;
  // m [rows, rank()], row stride ldm, of prepared rows.
  void Sketch(const float* x, int64_t rows, float* m, int64_t ldm, float* scratch) const {
    sketch_.Apply({x, rows, dim_}, m, ldm, scratch);
  }

 private:
  PolyConfig config_;
  int64_t dim_;
  float scale_;
  bool exact_local_;
  PolySketch sketch_;
  linear::FeatureMap map_;
  float bias_;
  double lse_shift_ = 0;
};

// One head, token by token: a state instead of a KV cache. With mixed = 1 the keys and values of the current block are
// kept beside it.
class PolySketchState {
 public:
  // Errors: configurations without a state (exact weights of degree 4 and up), sizes out of range, memory.
  static Result<PolySketchState> Make(const PolyConfig& config, int64_t dim, int64_t value_dim, float scale = 1);

  // k [dim], v [value_dim].
  void Append(std::span<const float> k, std::span<const float> v);
  // The answer of a query that sees all tokens appended so far, and the log of its normaliser; zeros and kEmptyMax
  // before the first.
  float Attend(std::span<const float> q, std::span<float> out);
  int64_t tokens() const { return tokens_; }
  // Bytes of the state and the buffer, which do not grow.
  int64_t bytes() const { return int64_t(state_.size() + block_k_.size() + block_v_.size()) * 4; }

 private:
  PolySketchState(const PolyConfig& config, int64_t dim, int64_t value_dim, float scale);
  void AddToState(const float* k, const float* v);

  PolyForm form_;
  int64_t value_dim_, tokens_ = 0, held_ = 0;  // held_: tokens of the current block, kept when mixed
  std::vector<float> state_, block_k_, block_v_;
  std::vector<float> row_, sketch_, features_, scratch_;
};

}  // namespace croquis::attention::polysketch
