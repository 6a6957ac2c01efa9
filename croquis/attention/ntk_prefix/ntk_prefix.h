// A prefix of any length as a state of fixed size (NTK-Attention, arXiv 2406.14036): instead of keys and values K_P,
// V_P a head keeps Z = phi(K_P)^T V_P [features, value_dim] and z = phi(K_P)^T 1 [features]. A query reads phi(q)^T Z
// and phi(q)^T z, which stand for its weighted sum over the prefix and the weights' sum, and merge with exact softmax
// over the real tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "croquis/attention/linear/feature_map.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/spec.h"

namespace croquis::attention {

// phi with <phi(q), phi(k)> in place of e^(scale <q, k>); x = sqrt(scale) q or k, d = dim.
enum class PrefixFeatures : uint32_t {
  kElu = 0,       // (elu(x) + 1) / sqrt(d), d features: weights of about 1, like those of softmax
  kEluPaper = 1,  // elu(x) + 1, as in the paper's code: weights of about d, for states trained with it
  kTaylor1 = 2,   // [1, x]: e^s as 1 + s, which may be negative
  kTaylor2 = 3,   // [1, x, pairs]: e^s as 1 + s + s^2 / 2 (at least 1/2), (d + 1)(d + 2) / 2 features
  kFavor = 4      // e^(w.x - |x|^2 / 2) / sqrt(m) for m Gaussian w (Performers, arXiv 2009.14794): unbiased, positive
};

struct PrefixConfig {
  PrefixFeatures features = PrefixFeatures::kElu;
  int64_t favor = 256;  // m of kFavor
  float scale = 1;      // of logits
  uint64_t seed = 0;    // of the w of kFavor

  int64_t Features(int64_t dim) const;
  // From the parameters of ntk-prefix, completed.
  static PrefixConfig From(const Spec& spec, float scale, uint64_t seed);
};

// The states of all kv heads of a layer. Copies are cheap to make and independent.
class NtkPrefix {
 public:
  // From a real prefix: k [heads, n, dim], v [heads, n, value_dim]. Errors: shapes, sizes, memory, sums that do not fit
  // f32 (kNumeric).
  static Result<NtkPrefix> FromKeysValues(Executor& executor, const TensorView& k, const TensorView& v,
                                          const PrefixConfig& config);
  // From numbers trained elsewhere: sums [heads, features, value_dim] and masses [heads, features], which enter by
  // magnitude as in the paper.
  static Result<NtkPrefix> FromState(const PrefixConfig& config, int64_t heads, int64_t dim, int64_t value_dim,
                                     std::span<const float> sums, std::span<const float> masses);

  // The file: "CRQNTKP" and a digit, the version (2); uint32 features (the enumerator), heads, dim, value_dim, features
  // of a head; float32 scale; uint64 seed; then for each head float32 exponents [features] (zeros but for kFavor), Z
  // [features, value_dim], z [features]: the state is e^exponent times Z and z; then the CRC-32 of all that.
  // Little-endian, nothing after it. Written to a temporary name and renamed. Errors name the path: kNotFound, kIo,
  // kCorrupt, kUnsupported (another version), kNoMemory (found before memory is taken).
  Status Save(const std::string& path) const;
  static Result<NtkPrefix> Load(const std::string& path);

  const PrefixConfig& config() const { return config_; }
  int64_t heads() const { return heads_; }
  int64_t dim() const { return dim_; }
  int64_t value_dim() const { return value_dim_; }
  int64_t features() const { return map_.features(); }
  int64_t bytes() const { return int64_t(states_.size() + exponents_.size()) * 4; }

  // Buffers of Evaluate for tiles of at most `rows` rows; one a thread.
  struct Scratch {
    std::vector<float> inputs, features;
  };
  Scratch MakeScratch(int64_t rows) const;
  // What the prefix of a kv head contributes to queries q [rows, dim]: a [rows, value_dim] is overwritten, m and l
  // [rows] are set; row r is Partial{m[r], l[r], a[r]}. l is positive unless the features allow otherwise (kTaylor1,
  // and trained states) or the numbers left f32: check that 0 < l < infinity before merging.
  void Evaluate(int64_t head, MatView<const float> q, MatView<float> a, float* m, float* l, Scratch& scratch) const;

 private:
  NtkPrefix(const PrefixConfig& config, int64_t heads, int64_t dim, int64_t value_dim);
  static Result<NtkPrefix> Make(const PrefixConfig& config, int64_t heads, int64_t dim, int64_t value_dim);
  // x [rows, inputs]: what the map takes; for kFavor the exponents of the features.
  void Inputs(const RowsView& rows, bool queries, float* x) const;
  float* State(int64_t head) { return states_.data() + head * map_.StateFloats(value_dim_); }
  Status CheckFinite(const std::string& what) const;

  PrefixConfig config_;
  int64_t heads_, dim_, value_dim_;
  linear::FeatureMap map_;
  std::vector<float> random_;     // kFavor: [dim, m]
  std::vector<float> states_;     // [heads, StateFloats]
  std::vector<float> exponents_;  // [heads, features]
};

}  // namespace croquis::attention
