// Exact attention over a KV cache: one streaming softmax for dense rows and compressed pages alike.
#pragma once

#include <cstdint>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/cache.h"

namespace croquis::attention {

struct AttendOptions {
  int64_t layer = 0;
  float scale = 1;     // usually 1 / sqrt(head_dim)
  int64_t window = 0;  // sliding window: a query at position p sees keys in (p - window, p]; 0 = all
  bool causal = true;  // false: every query of the chunk sees the whole chunk
};

// For a chunk of T tokens at positions cache.length() .. + T: attends q [T, heads * head_dim] to what the cache
// holds and to the chunk's own k, v [T, kv_heads * head_dim] (all after RoPE, rounded to the ring's type first, so that
// chunking does not change what is seen of a ring token), then appends k, v to the layer. out: [T, heads * head_dim].
// heads is a multiple of kv_heads. Results do not depend on the number of threads.
// Errors: those of KvCache::Append; shapes.
Status AttendAndAppend(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options,
                       MatView<const float> q, MatView<const float> k, MatView<const float> v, MatView<float> out);

// What every form of the call checks: the shapes of the queries of `tokens` tokens and of the output, and the options.
Status CheckQueries(const kvcache::CacheConfig& config, const AttendOptions& options, MatView<const float> q,
                    int64_t tokens, MatView<float> out);

}  // namespace croquis::attention
