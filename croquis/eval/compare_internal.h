// What comparisons over windows of text share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/eval/metrics.h"
#include "croquis/model/model.h"

namespace croquis::eval {

// The tokens a window starts with: BOS where the vocabulary asks for one.
Result<std::vector<int32_t>> WindowPrefix(const model::Model& model);

// Compares rows of two logit matrices, from row `skip` on, threads sharing the rows. targets[r]: next token or -1.
void CompareRows(Executor& executor, MatView<const float> reference, MatView<const float> test,
                 std::span<const int32_t> targets, int64_t skip, DivergenceCollector& into);

// Errors of window sizes: a window of `ctx` tokens that begins with `prefix` given ones, from a text of `text` tokens.
Status CheckWindows(int64_t ctx, int64_t windows, int64_t prefix, int64_t text);
// Memory for two matrices of `rows` logits.
Status CheckLogits(const model::Model& model, int64_t rows);

}  // namespace croquis::eval
