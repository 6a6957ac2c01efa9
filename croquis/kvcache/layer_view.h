// What attention sees of the inside of a cache: one kv head of one layer, and the steps of an append.
// Internal to the library; the layers above use cache.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "croquis/base/executor.h"
#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/center.h"
#include "croquis/kvcache/edit_map.h"
#include "croquis/kvcache/lineage.h"
#include "croquis/kvcache/policies/kept.h"
#include "croquis/kvcache/unit_pool.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::kvcache {

// Committed tokens of one kv head. Positions: sinks [0, sinks), pages [sinks, sinks + encoded), ring [sinks + encoded,
// length). Page j holds positions sinks + 128 j .. + 128. Valid until the cache is written to.
struct HeadView {
  const codecs::Codec* key = nullptr;
  const codecs::Codec* value = nullptr;
  simd::RowType type = simd::RowType::kF16;  // of sinks and ring
  int64_t row_bytes = 0;
  int64_t length = 0, sinks = 0, encoded = 0;  // tokens; sinks = those there are
  int64_t slots = 0;                           // ring slots: position p >= sinks is in slot (p - sinks) % slots
  const std::byte *sink_k = nullptr, *sink_v = nullptr;  // [sinks, head_dim]
  const std::byte *ring_k = nullptr, *ring_v = nullptr;  // [slots, head_dim]
  Unit* const* units = nullptr;                          // one a page
  size_t key_offset = 0, value_offset = 0;
  const Center* center = nullptr;   // null when nothing was removed from the keys
  const RopeTable* rope = nullptr;  // set with center
  // Set when tokens stand elsewhere than in their slots; "position" above is "slot" then.
  const EditMap* edits = nullptr;
  bool evicts = false;  // `encoded` tokens have left the ring, but there are no pages: `kept` is what remains of them
  Sees sees = Sees::kNothing;  // what attention reports
  KeptView kept;

  int64_t Pages() const { return evicts ? 0 : (encoded + codecs::kPageTokens - 1) / codecs::kPageTokens; }
  const std::byte* KeyPage(int64_t j) const { return units[j]->data() + key_offset; }
  const std::byte* ValuePage(int64_t j) const { return units[j]->data() + value_offset; }
};

HeadView ViewHead(const KvCache& cache, int64_t layer, int64_t head);

// Where the tokens of a cache come from.
const Lineage& LineageOf(const KvCache& cache);
// Leading tokens that two caches hold alike because they are branches. Their sinks and ring rows are the same bytes,
// and so are their codes where the layer's first page is one unit (the keys' common part was decided before the
// branch).
int64_t CommonTokens(const KvCache& a, const KvCache& b);

// Tokens of a layer that are in pages when it holds `length`: a function of the length alone, so it does not depend on
// how the tokens were cut into chunks.
int64_t EncodedTokens(int64_t length, int64_t sinks, int64_t ring, int64_t granularity);

// Append in two steps, for callers that use k and v between them: the checks of KvCache::Append ...
Status CheckAppend(const KvCache& cache, int64_t layer, MatView<const float> k, MatView<const float> v);
// ... and the append itself, of rows that passed, heads in parallel.
void AppendChecked(Executor& executor, KvCache& cache, int64_t layer, MatView<const float> k, MatView<const float> v);

// Where attention leaves what it saw of a head, for the append that follows; only for layers that observe.
Observation& PendingObservation(KvCache& cache, int64_t layer, int64_t head);

// Working memory of attention calls, at least `bytes`, 64-byte aligned, contents unspecified. It stays with the cache
// so that a decode step takes no memory; it is not part of what the cache holds and not in its report.
std::byte* Workspace(KvCache& cache, size_t bytes);

// Rows of numbers in the ring's type.
void RoundRow(simd::RowType type, const float* x, int64_t n, std::byte* out);
void WidenRow(simd::RowType type, const std::byte* x, int64_t n, float* out);

}  // namespace croquis::kvcache
