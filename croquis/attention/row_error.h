// The error of a row as all methods report it (spec attention.md, 0.3): relative to the row, and where rows of values
// cancel, to a thousandth of the longest value.
#pragma once

#include <span>

#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"

namespace croquis::attention {

// |a - b| / (|of| + 1e-3 largest), in double; 0 where the divisor is 0. All of the same length.
double RelativeDifference(std::span<const float> a, std::span<const float> b, std::span<const float> of,
                          double largest);
// The error of an answer: |got - want| / (|want| + 1e-3 largest).
inline double RowError(std::span<const float> got, std::span<const float> want, double largest) {
  return RelativeDifference(got, want, want, largest);
}
// max_j |v_j| of a head's values: `largest` above.
double LargestNorm(Executor& executor, const RowsView& v);

}  // namespace croquis::attention
