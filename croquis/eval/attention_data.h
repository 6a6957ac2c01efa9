// Queries, keys and values that stress sub-quadratic attention in different ways: for measurements without a model.
#pragma once

#include <cstdint>
#include <string_view>

#include "croquis/eval/tensor.h"

namespace croquis::eval {

// Every kind has common parts: all keys of a kv head share a vector, and so do all queries of its group, as in models
// with biases; coordinates of both have standard deviation 1.5. Without them, and with values in front of noise,
// sampling and hashing both look better than they are.
enum class AttentionData : uint8_t {
  kGaussian,  // nothing to be found: queries and keys are independent
  kPlanted,   // each query has one heavy key: q = k of its partner + .6 times noise; partners are a permutation
  kClusters,  // queries and keys lie around 24 common centres, noise .5
  kSinks      // planted, and the first three keys are heavy for every query, with small values
};
Result<AttentionData> ParseAttentionData(std::string_view name);  // "gaussian", "planted", "clusters", "sinks"

struct AttentionDataOptions {
  AttentionData kind = AttentionData::kGaussian;
  int64_t heads = 1, kv_heads = 1, queries = 1024, keys = 1024, dim = 64, value_dim = 64;
  // Partners are drawn among the keys up to a query's own position, which is keys - queries + row: under a causal mask
  // a planted key should be one that the query sees.
  bool causal = false;
  uint64_t seed = 1;
  simd::RowType type = simd::RowType::kF32;  // what the numbers are rounded to
};

struct AttentionTensors {
  Tensor q, k, v;
  // With scale 1 / sqrt(dim), queries at the end of the keys.
  attention::Problem Problem(bool causal) const;
};

// Numbers are a function of the options alone. Values are a random linear map of the keys plus .5 times noise, so that
// they differ between keys that differ. Errors: sizes out of range, more memory than there is.
Result<AttentionTensors> MakeAttentionData(Executor& executor, const AttentionDataOptions& options);

}  // namespace croquis::eval
