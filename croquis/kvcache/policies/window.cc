// window: the most recent tokens, and the first (Xiao et al., "Efficient Streaming Language Models with Attention
// Sinks", arXiv 2309.17453). Positions stay those of the text.
#include "croquis/kvcache/policies/ordered.h"

namespace croquis::kvcache {
namespace {

constexpr ParamInfo kParams[] = {kMemoryParam, kSlotsParam, kRecentParam};

class Window final : public Policy {
 public:
  explicit Window(const PolicyRequest& request) : Policy(request), budget_(request), row_bytes_(2 * request.head_dim) {}

  StateLayout Layout(int64_t left) const override { return LayoutOf(Rows(left)); }

  void Absorb(const PolicyRun& run, PolicyState& state) const override {
    auto left = state.header().left, rows = state.header().rows[0];
    const int64_t keep = Rows(left + kPolicyRun);
    state.Resize(LayoutOf(rows + kPolicyRun));
    PutRun(run, row_bytes_, rows, state.Part<std::byte>(kKeys), state.Part<std::byte>(kValues));
    rows += kPolicyRun;
    constexpr size_t kParts[] = {kKeys, kValues};
    rows = DropRows(state, kParts, rows, [drop = rows - keep](int64_t r) { return r < drop; });
    state.Resize(LayoutOf(keep));
    state.header().left = left + kPolicyRun;
    state.header().rows[0] = rows;
  }

  KeptView View(const PolicyState& state) const override {
    return {KeptRows{state.Part<std::byte>(kKeys), state.Part<std::byte>(kValues), nullptr, state.header().rows[0]}};
  }

  bool Valid(const PolicyState& state) const override { return state.header().rows[0] == Rows(state.header().left); }

 private:
  enum : size_t { kKeys, kValues };

  int64_t Rows(int64_t left) const {
    return budget_.keeps_all() ? left : budget_.Rows(left, 2 * row_bytes_, int64_t(sizeof(PolicyState::Header)));
  }
  StateLayout LayoutOf(int64_t rows) const {
    StateLayout l;
    l.Add(StatePart::Holds::kKeys, row_bytes_, rows);
    l.Add(StatePart::Holds::kValues, row_bytes_, rows);
    return l;
  }

  const Budget budget_;
  const int64_t row_bytes_;
};

Result<std::unique_ptr<const Policy>> Make(const PolicyRequest& request) {
  CROQUIS_CHECK_OK(Budget(request).Check(request, 4 * request.head_dim, int64_t(sizeof(PolicyState::Header))));
  return std::unique_ptr<const Policy>(std::make_unique<Window>(request));
}

}  // namespace

extern const PolicyInfo kPolicy_window;
const PolicyInfo kPolicy_window = {
    .name = "window",
    .summary = "the first and the most recent tokens, the others dropped",
    .paper = "arXiv 2309.17453",
    .params = kParams,
    .make = Make,
};

}  // namespace croquis::kvcache
