// Model::Forward for callers that have checked ids and capacity.
#pragma once

#include <cstdint>
#include <span>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"

namespace croquis::eval {

// Forward where token ids and capacity are known to be right: an argument that is refused then is a number the model
// made (not finite, or too large for the cache), and is reported as Code::kNumeric.
inline Status Forward(Executor& executor, model::Model& model, std::span<const int32_t> tokens, kvcache::KvCache& cache,
                      MatView<float> logits, int64_t chunk, model::Model::Progress progress = nullptr,
                      void* context = nullptr) {
  Status status = model.Forward(executor, tokens, cache, logits, chunk, progress, context);
  if (!status && (status.error().code == Code::kInvalidArgument || status.error().code == Code::kOutOfRange)) {
    return Numeric(status.error().message);
  }
  return status;
}

}  // namespace croquis::eval
