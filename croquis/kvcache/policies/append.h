// The part of an append that hands tokens of one head to its eviction policy.
#pragma once

#include <cstdint>

#include "croquis/kvcache/impl.h"

namespace croquis::kvcache {

class PolicyAppend {
 public:
  // Takes in what attention saw of the head since the last append.
  PolicyAppend(KvCache::Impl& impl, int64_t layer, int64_t head);
  // Tokens `left` .. + kPolicyRun after the sinks leave the ring, where they still are.
  void Leave(int64_t left);
  // After the last token: the cache then holds `length` tokens, of which `left` have left the ring.
  void Finish(int64_t left, int64_t length);

 private:
  // Attention received so far by the token that is number `i` after the sinks.
  float Mass(int64_t i) const;
  void KeepRingMass(int64_t left, int64_t length);

  KvCache::Impl& impl_;
  const int64_t layer_, head_;
  const Policy& policy_;
  PolicyState& state_;
  Observation* const seen_;  // null where the policy does not observe
  const bool mass_;
  const int64_t first_;   // of the ring, before the append, counted after the sinks
  const int64_t before_;  // tokens before the append, after the sinks
};

}  // namespace croquis::kvcache
