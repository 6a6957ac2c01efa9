#include "croquis/kvcache/impl.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "croquis/kvcache/policies/append.h"

namespace croquis::kvcache {

using codecs::kPageTokens;

KvCache::Impl::Impl(std::shared_ptr<const Plan> p)
    : plan(std::move(p)), rows(plan->rows_bytes), layers(size_t(plan->config.layers)) {
  size_t reserve = 0;
  for (int64_t l = 0; l < plan->config.layers; ++l) {
    LayerState& state = layers[size_t(l)];
    const int64_t units = plan->Units(l, plan->config.capacity);
    state.units.reserve(size_t(units));
    if (plan->centering) state.centers.resize(size_t(plan->config.kv_heads));
    if (plan->layers[size_t(l)].policy != nullptr) ResetKept(l);
    reserve += size_t(units) * (plan->layers[size_t(l)].unit_bytes + sizeof(Unit));
  }
  pool = std::make_shared<UnitPool>(reserve);
}

KvCache::Impl::Impl(const Impl& other)
    : plan(other.plan),
      pool(other.pool),
      rows(other.rows.size()),
      layers(other.layers),
      length(other.length),
      edits(other.edits),
      lineage(other.lineage) {
  std::memcpy(rows.data(), other.rows.data(), rows.size());
  for (size_t l = 0; l < layers.size(); ++l) {
    layers[l].units.reserve(other.layers[l].units.capacity());
    for (Unit* unit : layers[l].units) UnitPool::Share(unit);
  }
}

KvCache::Impl::~Impl() {
  for (LayerState& layer : layers)
    for (Unit* unit : layer.units) pool->Drop(unit);
}

// Whole states when tokens will leave the ring; else no more than observing changes.
void KvCache::Impl::KeepForUndo(int64_t layer, bool leaving) {
  const Policy& policy = *plan->layers[size_t(layer)].policy;
  LayerState& state = layers[size_t(layer)];
  if (leaving) {
    state.undo.kept = state.kept;
  } else if (policy.Observes() != Sees::kNothing) {
    for (const PolicyState& kept : state.kept) {
      const auto notes = kept.First(policy.ObservedParts());
      state.undo.notes.emplace_back(notes.begin(), notes.end());
    }
  }
}

Status KvCache::Impl::CheckEditable() const {
  for (const LayerPlan& layer : plan->layers)
    if (layer.policy != nullptr)
      return Unsupported("cache: tokens cannot be edited under " + std::string(layer.policy->Method()) +
                         ", whose rows stand for several tokens or none; take a codec or f16");
  return {};
}

void KvCache::Impl::ResetKept(int64_t layer) {
  const Policy& policy = *plan->layers[size_t(layer)].policy;
  LayerState& state = layers[size_t(layer)];
  state.kept.assign(size_t(plan->config.kv_heads), PolicyState(policy.Layout(0)));
  state.observed.assign(policy.Observes() != Sees::kNothing ? size_t(plan->config.kv_heads) : 0, Observation());
}

KvCache::Impl::HeadRows KvCache::Impl::Rows(int64_t layer, int64_t head) {
  const LayerPlan& l = plan->layers[size_t(layer)];
  const HeadPlan& h = l.heads[size_t(head)];
  HeadRows r;
  r.row_bytes = plan->config.head_dim * simd::RowTypeBytes(h.type);
  r.sink_k = rows.data() + h.rows_offset;
  r.sink_v = r.sink_k + plan->config.sinks * r.row_bytes;
  r.ring_k = r.sink_v + plan->config.sinks * r.row_bytes;
  r.ring_v = r.ring_k + l.slots * r.row_bytes;
  return r;
}

std::span<std::byte> KvCache::Impl::LayerRows(int64_t layer) {
  const size_t begin = plan->layers[size_t(layer)].heads[0].rows_offset;
  const size_t end =
      layer + 1 < plan->config.layers ? plan->layers[size_t(layer + 1)].heads[0].rows_offset : rows.size();
  return {rows.data() + begin, end - begin};
}

bool KvCache::Impl::Pending() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerState& l) { return l.pending > 0; });
}

void KvCache::Impl::Unshare(Unit*& unit) {
  if (unit->refs.load(std::memory_order_acquire) == 1) return;
  const size_t payload = size_t(unit->bytes) - sizeof(Unit);
  Unit* copy = pool->New(payload);
  std::memcpy(copy->data(), unit->data(), payload);
  pool->Drop(unit);
  unit = copy;
}

void KvCache::Impl::BeginAppend(int64_t layer, int64_t tokens) {
  const LayerPlan& lp = plan->layers[size_t(layer)];
  LayerState& state = layers[size_t(layer)];
  const int64_t before = plan->Encoded(layer, length), after = plan->Encoded(layer, length + tokens);
  const int64_t in_ring = std::max<int64_t>(0, length - plan->config.sinks - before);
  const int64_t to_ring = std::max<int64_t>(0, length + tokens - std::max(length, plan->config.sinks));
  if (in_ring > 0 && in_ring + to_ring > lp.slots) {
    const auto live = LayerRows(layer);
    state.undo.rows.assign(live.begin(), live.end());
  }
  if (lp.policy != nullptr) {
    KeepForUndo(layer, after > before);
    return;
  }
  if (after > before && before % kPageTokens != 0) {
    Unshare(state.units.back());
    const std::byte* data = state.units.back()->data();
    state.undo.unit.assign(data, data + lp.unit_bytes);
  }
  const int64_t units = plan->Units(layer, length + tokens);
  while (int64_t(state.units.size()) < units) state.units.push_back(pool->New(lp.unit_bytes));
}

void KvCache::Impl::AppendHead(int64_t layer, int64_t head, MatView<const float> k, MatView<const float> v) {
  const LayerPlan& lp = plan->layers[size_t(layer)];
  const simd::RowType type = lp.heads[size_t(head)].type;
  const int64_t d = plan->config.head_dim, sinks = plan->config.sinks, ring = lp.ring;
  const HeadRows to = Rows(layer, head);
  std::optional<PolicyAppend> evict;
  if (lp.policy != nullptr) evict.emplace(*this, layer, head);
  int64_t encoded = plan->Encoded(layer, length);
  for (int64_t t = 0; t < k.rows; ++t) {
    const int64_t position = length + t;
    const bool sink = position < sinks;
    const int64_t at = (sink ? position : (position - sinks) % lp.slots) * to.row_bytes;
    RoundRow(type, k.Row(t) + head * d, d, (sink ? to.sink_k : to.ring_k) + at);
    RoundRow(type, v.Row(t) + head * d, d, (sink ? to.sink_v : to.ring_v) + at);
    if (position + 1 - sinks - encoded == ring + lp.granularity) {
      if (evict)
        evict->Leave(encoded);
      else
        EncodeRun(layer, head, encoded);
      encoded += lp.granularity;
    }
  }
  if (evict) evict->Finish(encoded, length + k.rows);
}

void KvCache::Impl::EncodeRun(int64_t layer, int64_t head, int64_t encoded) {
  const LayerPlan& lp = plan->layers[size_t(layer)];
  const HeadPlan& hp = lp.heads[size_t(head)];
  LayerState& state = layers[size_t(layer)];
  const HeadRows from = const_cast<Impl*>(this)->Rows(layer, head);
  const int64_t d = plan->config.head_dim, first = encoded % kPageTokens;
  std::byte* const unit = state.units[size_t(encoded / kPageTokens)]->data();
  alignas(64) std::array<float, kPageTokens * 256> x;
  const MatView<float> rows_view(x.data(), lp.granularity, d);
  for (int64_t t = 0; t < lp.granularity; ++t)
    WidenRow(hp.type, from.ring_k + (encoded + t) % lp.slots * from.row_bytes, d, rows_view.Row(t));
  if (plan->centering) {
    Center& center = state.centers[size_t(head)];
    if (!center.decided) center = DecideCenter(layer, head, plan->config.ring + lp.granularity);
    if (center.pairs > 0) AddCommon(*plan->rope, center, plan->config.sinks + encoded - first, first, -1.f, rows_view);
  }
  hp.key->Encode(rows_view, first, unit + hp.key_offset);
  for (int64_t t = 0; t < lp.granularity; ++t)
    WidenRow(hp.type, from.ring_v + (encoded + t) % lp.slots * from.row_bytes, d, rows_view.Row(t));
  hp.value->Encode(rows_view, first, unit + hp.value_offset);
}

// The first `tokens` tokens after the sinks are in the ring, whatever the chunks were: the estimate does not depend on
// them. Sinks are left out, for their norms are outliers.
Center KvCache::Impl::DecideCenter(int64_t layer, int64_t head, int64_t tokens) const {
  const LayerPlan& lp = plan->layers[size_t(layer)];
  const HeadPlan& hp = lp.heads[size_t(head)];
  const HeadRows from = const_cast<Impl*>(this)->Rows(layer, head);
  CenterEstimate estimate(*plan->rope);
  if (hp.key->GetCenter() == codecs::Center::kNone) return estimate.Decide(codecs::Center::kNone);
  alignas(64) std::array<float, 256> k;
  for (int64_t t = 0; t < tokens; ++t) {
    WidenRow(hp.type, from.ring_k + t % lp.slots * from.row_bytes, plan->config.head_dim, k.data());
    estimate.Add(k.data(), plan->config.sinks + t);
  }
  return estimate.Decide(hp.key->GetCenter());
}

void KvCache::Impl::Rollback() {
  for (int64_t l = 0; l < plan->config.layers; ++l) {
    LayerState& state = layers[size_t(l)];
    if (state.pending == 0) continue;
    state.pending = 0;
    if (!state.undo.kept.empty()) state.kept = std::move(state.undo.kept);
    for (size_t h = 0; h < state.undo.notes.size(); ++h)
      std::copy(state.undo.notes[h].begin(), state.undo.notes[h].end(), state.kept[h].bytes().begin());
    if (!state.undo.rows.empty()) std::memcpy(LayerRows(l).data(), state.undo.rows.data(), state.undo.rows.size());
    for (const int64_t units = plan->Units(l, length); int64_t(state.units.size()) > units; state.units.pop_back())
      pool->Drop(state.units.back());
    if (!state.undo.unit.empty()) {
      Unshare(state.units.back());
      std::memcpy(state.units.back()->data(), state.undo.unit.data(), state.undo.unit.size());
    }
    if (plan->Encoded(l, length) == 0) std::fill(state.centers.begin(), state.centers.end(), Center());
    state.undo = Undo();
  }
}

void KvCache::Impl::Truncate(int64_t to) {
  // What comes back into the ring is decoded: no longer what others hold of it.
  int64_t same = to;
  for (int64_t l = 0; l < plan->config.layers; ++l) {
    const int64_t keep = plan->Encoded(l, to);
    if (keep != plan->Encoded(l, length)) same = std::min(same, plan->config.sinks + keep);
    TruncateLayer(l, to);
  }
  lineage.Cut(same);
  length = to;
}

void KvCache::Impl::TruncateLayer(int64_t layer, int64_t to) {
  const LayerPlan& lp = plan->layers[size_t(layer)];
  LayerState& state = layers[size_t(layer)];
  const int64_t sinks = plan->config.sinks, d = plan->config.head_dim;
  const int64_t had = plan->Encoded(layer, length), keep = plan->Encoded(layer, to);
  if (keep == had) return;
  if (lp.policy != nullptr) return ResetKept(layer);  // keep = 0: anything else was refused
  alignas(64) std::array<float, kPageTokens * 256> x;
  for (int64_t h = 0; h < plan->config.kv_heads; ++h) {
    const HeadPlan& hp = lp.heads[size_t(h)];
    const HeadRows ring = Rows(layer, h);
    // Tokens that come back into the ring, a run at a time. Runs do not cross pages.
    for (int64_t run = keep; run < std::min(had, to - sinks); run += lp.granularity) {
      const int64_t n = std::min(lp.granularity, std::min(had, to - sinks) - run), first = run % kPageTokens;
      const std::byte* unit = state.units[size_t(run / kPageTokens)]->data();
      const MatView<float> view(x.data(), n, d);
      for (const bool keys : {true, false}) {
        if (keys)
          hp.key->Decode(unit + hp.key_offset, first, view);
        else
          hp.value->Decode(unit + hp.value_offset, first, view);
        if (keys && plan->centering && state.centers[size_t(h)].pairs > 0)
          AddCommon(*plan->rope, state.centers[size_t(h)], sinks + run - first, first, 1.f, view);
        // A decoded number may pass the largest f16 by the codec's error.
        if (hp.type == simd::RowType::kF16)
          for (int64_t i = 0; i < n * d; ++i) x[size_t(i)] = std::clamp(x[size_t(i)], -65504.f, 65504.f);
        for (int64_t t = 0; t < n; ++t)
          RoundRow(hp.type, view.Row(t), d, (keys ? ring.ring_k : ring.ring_v) + (run + t) % lp.slots * ring.row_bytes);
      }
    }
  }
  const size_t units = size_t(plan->Units(layer, to));
  for (; state.units.size() > units; state.units.pop_back()) pool->Drop(state.units.back());
  // Slots of the last page that are free again become zeros, as unused slots are.
  const int64_t first = keep % kPageTokens;
  if (first != 0 && (had - keep > 0)) {
    Unshare(state.units.back());
    x.fill(0);
    const MatView<const float> zeros(x.data(), std::min(kPageTokens, first + had - keep) - first, d);
    for (const HeadPlan& hp : lp.heads) {
      hp.key->Encode(zeros, first, state.units.back()->data() + hp.key_offset);
      hp.value->Encode(zeros, first, state.units.back()->data() + hp.value_offset);
    }
  }
  if (keep == 0) std::fill(state.centers.begin(), state.centers.end(), Center());
}

}  // namespace croquis::kvcache
