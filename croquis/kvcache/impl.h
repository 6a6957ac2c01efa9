// The mutable state of a cache. Internal to kvcache.
#pragma once

#include <cstdio>
#include <memory>
#include <vector>

#include "croquis/base/memory.h"
#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/edit_map.h"
#include "croquis/kvcache/layer_view.h"
#include "croquis/kvcache/lineage.h"
#include "croquis/kvcache/plan.h"
#include "croquis/kvcache/unit_pool.h"

namespace croquis::kvcache {

// What an append overwrote, until it is committed. Pages only grow, so little is needed: ring rows whose slots were
// used again, and the unit that was being filled.
struct Undo {
  std::vector<std::byte> rows;    // all sinks and rings of the layer; empty when no live slot was overwritten
  std::vector<std::byte> unit;    // payload of the last unit; empty when it was full or not written
  std::vector<PolicyState> kept;  // by head, of an eviction policy; empty when no token left the ring
  std::vector<std::vector<std::byte>> notes;  // by head: what observing changed of a state that is not in `kept`
};

struct LayerState {
  std::vector<Unit*> units;           // one reference each
  std::vector<Center> centers;        // by head; empty when the plan has no centring
  std::vector<PolicyState> kept;      // by head, of a layer with an eviction policy
  std::vector<Observation> observed;  // by head, of a policy that observes; taken by the next append
  int64_t pending = 0;                // tokens appended and not committed
  Undo undo;
};

struct KvCache::Impl {
  std::shared_ptr<const Plan> plan;
  std::shared_ptr<UnitPool> pool;
  Buffer rows;  // sinks and rings of all layers and heads
  std::vector<LayerState> layers;
  int64_t length = 0;
  EditMap edits;
  Lineage lineage;
  Buffer workspace;

  explicit Impl(std::shared_ptr<const Plan> p);
  Impl(const Impl& other);  // shares the units
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  struct HeadRows {
    std::byte *sink_k, *sink_v, *ring_k, *ring_v;
    int64_t row_bytes;
  };
  HeadRows Rows(int64_t layer, int64_t head);
  // The empty states of a layer with an eviction policy.
  void ResetKept(int64_t layer);
  void KeepForUndo(int64_t layer, bool leaving);
  // Errors: a policy that evicts; its rows have no position that could change.
  Status CheckEditable() const;
  // The rows of one layer, contiguous.
  std::span<std::byte> LayerRows(int64_t layer);

  bool Pending() const;
  // The steps of an append: whatever must be done once a layer, then each head on its own, in any order.
  void BeginAppend(int64_t layer, int64_t tokens);
  void AppendHead(int64_t layer, int64_t head, MatView<const float> k, MatView<const float> v);
  void EndAppend(int64_t layer, int64_t tokens) { layers[size_t(layer)].pending = tokens; }
  // Encodes the next run of tokens from the ring into pages; `encoded` are in pages already.
  void EncodeRun(int64_t layer, int64_t head, int64_t encoded);
  Center DecideCenter(int64_t layer, int64_t head, int64_t tokens) const;
  // Makes the unit safe to write: a copy when a branch shares it.
  void Unshare(Unit*& unit);
  void Rollback();
  void Truncate(int64_t to);
  void TruncateLayer(int64_t layer, int64_t to);
};

// The bytes of a snapshot, without pending tokens in the cache; false when the stream does not take them.
bool WriteSnapshot(FILE* f, KvCache::Impl& impl);

}  // namespace croquis::kvcache
