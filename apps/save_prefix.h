// croquis attn --save-prefix: keys and values of a prefix made into a state of fixed size, as a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/cli.h"
#include "croquis/attention/problem.h"

namespace croquis::apps {

struct SavePrefixOptions {
  Common common;
  std::string out;
  std::vector<std::string> methods;  // none, or one ntk-prefix
  std::optional<float> scale;        // of logits; none: 1 / sqrt(dim)
  uint64_t seed = 0;
};

// Before the tensors are read. Errors: another method than ntk-prefix, parameters that a conversion has not, a file
// that cannot be written.
Status CheckSavePrefix(const SavePrefixOptions& options);
// All rows of k and v, [kv_heads, n, dim] each. Writes the file and prints what it holds.
Status SavePrefix(const SavePrefixOptions& options, Executor& executor, const attention::TensorView& k,
                  const attention::TensorView& v);

}  // namespace croquis::apps
