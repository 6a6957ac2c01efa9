// One call of AttendBatch over sequences that are read together: how it is cut, run and joined.
#pragma once

#include <cstdint>
#include <span>

#include "croquis/attention/attention.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/cache.h"

namespace croquis::attention {

// What AttendBatch is given.
struct BatchInputs {
  std::span<kvcache::KvCache* const> caches;
  const AttendOptions& options;
  MatView<const float> q, k, v;
  MatView<float> out;
};

// AttendBatch on inputs that passed its checks: at least one cache, none edited or evicting. Errors: memory.
Status AttendTogether(Executor& executor, const BatchInputs& in);

}  // namespace croquis::attention
