// Attention in double precision, row by row: what methods are held against, for any score function.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"

namespace croquis::attention {

// Softmax attention on the numbers as they are, sums in double. Needs O(nk) memory a worker.
Status SoftmaxReference(Executor& executor, const Problem& problem, const Output& output);

// How far an answer is from the reference (spec attention.md, 0.3).
struct ErrorReport {
  double op = 0;  // |O~ - O| / (|P| |V|), spectral norms by power iteration, mean over heads; -1 when not asked for
  double frobenius = 0;                                                        // |O~ - O|_F / |O|_F over all heads
  double row_mean = 0, row_median = 0, row_p90 = 0, row_p99 = 0, row_max = 0;  // of |o~ - o| / (|o| + 1e-3 max_j |v_j|)
  double lse_mean = 0, lse_max = 0;  // of |lse~ - lse|; rows that see no key left out
};
// output against reference, which must be of the same shape (lse null in either: lse errors 0).
// operator_norm: form P's products too, O(60 nq nk) a head.
ErrorReport Compare(Executor& executor, const Problem& problem, const Output& output, const Output& reference,
                    bool operator_norm = false);

}  // namespace croquis::attention
