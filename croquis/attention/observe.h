// What a call of attention saw, for cache policies that keep what is attended to (kvcache/policies).
#pragma once

#include "croquis/attention/attention.h"

namespace croquis::attention {

// Errors: layers with a sliding window of their own and an eviction policy, whose rows have no single position.
Status CheckEviction(const kvcache::KvCache& cache, const AttendOptions& options);

// Leaves the softmax weights of every key, summed over the query rows of its kv head, and the energy of the queries for
// the append that follows. Exact f32 logits in a second pass. Does nothing for layers that do not observe. Arguments as
// in AttendAndAppend; heads in parallel.
void Observe(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q,
             MatView<const float> k);

}  // namespace croquis::attention
