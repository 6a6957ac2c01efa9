#include "croquis/kvcache/policies/append.h"

#include <algorithm>
#include <cstring>

namespace croquis::kvcache {

PolicyAppend::PolicyAppend(KvCache::Impl& impl, int64_t layer, int64_t head)
    : impl_(impl),
      layer_(layer),
      head_(head),
      policy_(*impl.plan->layers[size_t(layer)].policy),
      state_(impl.layers[size_t(layer)].kept[size_t(head)]),
      seen_(policy_.Observes() != Sees::kNothing ? &impl.layers[size_t(layer)].observed[size_t(head)] : nullptr),
      mass_(policy_.Observes() == Sees::kMass),
      first_(impl.plan->Encoded(layer, impl.length)),
      before_(std::max<int64_t>(0, impl.length - impl.plan->config.sinks)) {
  if (seen_ != nullptr && seen_->queries > 0) policy_.Observe(*seen_, state_);
}

float PolicyAppend::Mass(int64_t i) const {
  if (i < before_) {
    const auto slot = size_t(i - first_);
    return state_.Part<float>(kRingMassPart)[slot] + (seen_->queries > 0 ? seen_->ring[slot] : 0.f);
  }
  // The chunk begins before the end of the sinks when these are being filled.
  const int64_t chunk = i - before_ + std::max<int64_t>(0, impl_.plan->config.sinks - impl_.length);
  return seen_->queries > 0 ? seen_->chunk[size_t(chunk)] : 0.f;
}

void PolicyAppend::Leave(int64_t left) {
  const int64_t slots = impl_.plan->layers[size_t(layer_)].slots;
  const auto ring = impl_.Rows(layer_, head_);
  std::vector<std::byte> k(size_t(kPolicyRun * ring.row_bytes)), v(k.size());
  std::array<float, kPolicyRun> mass{};
  for (int64_t t = 0; t < kPolicyRun; ++t) {
    const int64_t at = (left + t) % slots * ring.row_bytes;
    std::memcpy(k.data() + t * ring.row_bytes, ring.ring_k + at, size_t(ring.row_bytes));
    std::memcpy(v.data() + t * ring.row_bytes, ring.ring_v + at, size_t(ring.row_bytes));
    if (mass_) mass[size_t(t)] = Mass(left + t);
  }
  const PolicyRun run{.k = k.data(),
                      .v = v.data(),
                      .mass = mass_ ? mass.data() : nullptr,
                      .position = impl_.plan->config.sinks + left,
                      .head = uint64_t(layer_ * impl_.plan->config.kv_heads + head_)};
  policy_.Absorb(run, state_);
}

void PolicyAppend::Finish(int64_t left, int64_t length) {
  if (seen_ == nullptr) return;
  if (mass_) KeepRingMass(left, length);
  *seen_ = Observation();
}

void PolicyAppend::KeepRingMass(int64_t left, int64_t length) {
  const int64_t tokens = std::max<int64_t>(0, length - impl_.plan->config.sinks - left);
  // Ascending, so that a slot is read before it is written.
  float* ring = state_.Part<float>(kRingMassPart);
  const int64_t slots = state_.layout().parts[kRingMassPart].items;
  for (int64_t i = 0; i < tokens; ++i) ring[i] = Mass(left + i);
  std::fill(ring + tokens, ring + slots, 0.f);
}

}  // namespace croquis::kvcache
