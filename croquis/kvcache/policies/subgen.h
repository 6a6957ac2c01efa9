// The two forms of subgen; docs/methods/subgen.md explains them.
#pragma once

#include "croquis/kvcache/policies/policy.h"

namespace croquis::kvcache {

Result<std::unique_ptr<const Policy>> MakeSubgenMerge(const PolicyRequest& request);
Result<std::unique_ptr<const Policy>> MakeSubgenPaper(const PolicyRequest& request);

}  // namespace croquis::kvcache
