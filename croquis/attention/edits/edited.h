// Attention over an edited cache: tokens that stand elsewhere than they were computed (Positional Integrity Encoding,
// arXiv 2407.03157).
#pragma once

#include "croquis/attention/attention.h"

namespace croquis::attention {

// As AttendAndAppend, which calls it for caches with edits, without the append; the arguments have passed its checks.
// q and k are rotated as of slots cache.length() ..; where the tokens stand is the cache's knowledge. Segments of
// slots with one shift are attended to in turn, each by queries turned by the difference of the shifts:
// <R_(a) q, R_(b) k> = <R_(a-b) q, k>. Nothing that is stored is touched, so codes and centred keys are as good as they
// were; what centring removed turns with the query too. Work is shared out by kv head and block of rows only.
void AttendEdited(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q,
                  MatView<const float> k, MatView<const float> v, MatView<float> out);

}  // namespace croquis::attention
