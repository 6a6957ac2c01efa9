// What a configuration fixes: codecs, where everything lies, how many bytes it takes. Immutable, shared by branches.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/center.h"
#include "croquis/kvcache/policies/policy.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::kvcache {

struct HeadPlan {
  const codecs::Codec* key = nullptr;
  const codecs::Codec* value = nullptr;
  simd::RowType type = simd::RowType::kF16;
  size_t key_offset = 0, value_offset = 0;  // of its pages in a unit
  size_t rows_offset = 0;                   // of its sinks and ring: sink k, sink v, ring k, ring v
};

struct LayerPlan {
  std::vector<HeadPlan> heads;
  const Policy* policy = nullptr;             // what becomes of tokens that leave the ring; null: they go into pages
  int64_t ring = 0;                           // most recent tokens kept exactly
  int64_t granularity = 0;                    // tokens encoded together
  int64_t slots = 0;                          // of the ring
  size_t unit_bytes = 0, unit_key_bytes = 0;  // pages of all heads for 128 tokens; those of the keys
};

struct Plan {
  CacheConfig config;  // sinks cut to the capacity
  std::vector<std::unique_ptr<const codecs::Codec>> codecs;
  std::vector<std::unique_ptr<const Policy>> policies;
  std::vector<LayerPlan> layers;
  size_t rows_bytes = 0, sink_bytes = 0;  // of all sinks and rings; of the sinks
  bool centering = false;                 // some key codec may ask for it
  std::unique_ptr<const RopeTable> rope;  // when centering

  // Errors: those of KvCache::Make but for the memory check.
  static Result<std::shared_ptr<const Plan>> Make(const CacheConfig& config);

  // Tokens that have left the ring: those in pages, or those the layer's policy has seen.
  int64_t Encoded(int64_t layer, int64_t length) const;
  int64_t Units(int64_t layer, int64_t length) const;
  // What the policy has allocated for one head of the layer.
  StateLayout Kept(int64_t layer, int64_t length) const {
    return layers[size_t(layer)].policy->Layout(Encoded(layer, length));
  }
  // Bytes at `length` tokens: the formula. Fails where it does not fit an int64_t.
  Result<Report> Formula(int64_t length) const;
};

// Adds what `heads` heads of a layer keep under a policy.
void AddKept(const StateLayout& layout, int64_t heads, Report& report);
// Fills in what the sizes do not tell: kernels, bits a number, ratios.
void DescribeCodecs(const Plan& plan, Report& report);

}  // namespace croquis::kvcache
