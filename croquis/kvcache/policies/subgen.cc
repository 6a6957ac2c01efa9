// subgen: streaming attention from clusters of keys and samples of values (Zandieh et al., "SubGen: Token Generation in
// Sublinear Time and Memory", arXiv 2402.06082).
#include "croquis/kvcache/policies/subgen.h"

namespace croquis::kvcache {
namespace {

constexpr ParamInfo kParams[] = {
    kMemoryParam,
    kSlotsParam,
    kRecentParam,
    {"variant", "merge", 0, 0, "merge|paper", "merge: weighted rows; paper: reservoirs of clusters, sampled values"},
    {"samples", "4", 1, 1 << 16, {}, "paper: keys kept of a cluster"},
    {"clusters", "0", 0, 1 << 24, {}, "paper: most clusters; 0: as many as memory allows"},
    {"values", "50", 1, 99, {}, "paper: per cent of the bytes that goes to sampled values"},
};

Result<std::unique_ptr<const Policy>> Make(const PolicyRequest& request) {
  const bool keeps_all = Budget(request).keeps_all();
  return request.spec.Word("variant") == "paper" && !keeps_all ? MakeSubgenPaper(request) : MakeSubgenMerge(request);
}

}  // namespace

extern const PolicyInfo kPolicy_subgen;
const PolicyInfo kPolicy_subgen = {
    .name = "subgen",
    .summary = "clusters of similar tokens as weighted rows",
    .paper = "arXiv 2402.06082",
    .params = kParams,
    .make = Make,
};

}  // namespace croquis::kvcache
