// Exact attention of many sequences that share beginnings (Hydragen, arXiv 2402.05099): pages that several caches share
// are read once for all of them.
#pragma once

#include <cstdint>
#include <span>

#include "croquis/attention/attention.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/cache.h"

namespace croquis::attention {

// One new token for each of B sequences, as B calls of AttendAndAppend would: row b of q [B, heads * head_dim] attends
// to what caches[b] holds and to row b of k, v [B, kv_heads * head_dim] (after RoPE at position caches[b]->length()),
// which is then appended to caches[b]. out: [B, heads * head_dim]. The caches may have different lengths.
//
// Pages that caches share (KvCache::Branch) are found here, in every call. The queries of all sequences below a node of
// the tree of shared pages make one product with its keys and values; the parts of an answer are merged by their
// log-sum-exps in f32. So it is with rows of sinks and rings that sequences hold alike, each for itself, since they
// were branched off later. What remains, a sequence reads alone. The results are those of AttendAndAppend but for the
// order of sums (f16 and bf16 pages: and for queries and weights rounded to 17 bits, where tiles read them), and do not
// depend on the number of threads. Errors: those of AttendAndAppend, with the number of the
// sequence; a cache that comes twice; caches of different shapes. Nothing is appended then. When any of the caches is
// edited, all are read one by one. options.causal makes no difference to a single token.
Status AttendBatch(Executor& executor, std::span<kvcache::KvCache* const> caches, const AttendOptions& options,
                   MatView<const float> q, MatView<const float> k, MatView<const float> v, MatView<float> out);

// What AttendBatch saves in one layer.
struct SharingReport {
  int64_t nodes = 0;       // runs of pages read once for several sequences
  int64_t depth = 0;       // most such runs above one sequence
  int64_t pages = 0;       // pages of all sequences, shared ones as often as sequences hold them
  int64_t pages_read = 0;  // pages that are read
  double share_read() const { return pages > 0 ? double(pages_read) / double(pages) : 1; }
};
// group: query heads of a kv head.
SharingReport DescribeSharing(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group);

}  // namespace croquis::attention
