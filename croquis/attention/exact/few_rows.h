// Exact attention of a few query rows: their keys and values are read once, from where they lie.
#pragma once

#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"

namespace croquis::attention {

// Query rows of a kv head, over its group, up to which packing keys costs more than it saves.
inline constexpr int64_t kFewRows = 8;

// For problems with Group() * q.rows <= kFewRows. Keys are cut into pieces of a fixed size, which are merged in order.
// Errors: not enough memory.
Status FewRows(Executor& executor, const Problem& problem, const Output& output);

}  // namespace croquis::attention
