// The two ways polynomial attention is evaluated on tensors.
#pragma once

#include "croquis/attention/method.h"
#include "croquis/attention/polysketch/polysketch.h"

namespace croquis::attention::polysketch {

// Through states, linear in the length. Errors: memory, weights that do not fit f32.
Status RunStates(Executor& executor, const PolyForm& form, const Problem& problem, const Output& output,
                 RunReport* report);
// Pair by pair with exact weights. Errors as above.
Status RunPairs(Executor& executor, const PolyForm& form, const Problem& problem, const Output& output,
                RunReport* report);

}  // namespace croquis::attention::polysketch
