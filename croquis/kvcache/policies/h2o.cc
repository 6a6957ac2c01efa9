// h2o: the most recent tokens and those that were attended to most (Zhang et al., "H2O: Heavy-Hitter Oracle for
// Efficient Generative Inference of Large Language Models", arXiv 2306.14048).
#include <algorithm>
#include <cmath>
#include <numeric>

#include "croquis/kvcache/policies/ordered.h"

namespace croquis::kvcache {
namespace {

constexpr ParamInfo kParams[] = {
    kMemoryParam,
    kSlotsParam,
    kRecentParam,
    {"local",
     "50",
     0,
     100,
     {},
     "per cent of what is kept that goes to the most recent tokens, the rest to heavy hitters"}};

class HeavyHitters final : public Policy {
 public:
  explicit HeavyHitters(const PolicyRequest& request)
      : Policy(request),
        budget_(request),
        row_bytes_(2 * request.head_dim),
        ring_slots_(std::min(request.ring + kPolicyRun, request.capacity)),
        ring_(request.ring),
        local_(request.spec.Int("local")) {}

  static int64_t RowBytes(int64_t head_dim) { return 4 * head_dim + int64_t(sizeof(float)); }
  static int64_t Fixed(const PolicyRequest& request) {
    return int64_t(sizeof(PolicyState::Header)) + 4 * (request.ring + kPolicyRun) + 64;
  }

  Sees Observes() const override { return budget_.keeps_all() ? Sees::kNothing : Sees::kMass; }
  size_t ObservedParts() const override { return 2; }
  StateLayout Layout(int64_t left) const override { return LayoutOf(Rows(left)); }

  void Observe(const Observation& seen, PolicyState& state) const override {
    float* mass = state.Part<float>(kMass);
    for (size_t r = 0; r < seen.kept.size(); ++r) mass[r] += seen.kept[r];
  }

  void Absorb(const PolicyRun& run, PolicyState& state) const override {
    const int64_t left = state.header().left + kPolicyRun, keep = Rows(left);
    int64_t rows = state.header().rows[0];
    state.Resize(LayoutOf(rows + kPolicyRun));
    PutRun(run, row_bytes_, rows, state.Part<std::byte>(kKeys), state.Part<std::byte>(kValues));
    float* mass = state.Part<float>(kMass);
    if (run.mass != nullptr) std::copy_n(run.mass, kPolicyRun, mass + rows);
    rows += kPolicyRun;
    if (rows > keep) {
      const std::vector<bool> drop = Lightest({mass, size_t(rows)}, rows - keep, Protected(left, keep));
      constexpr size_t kParts[] = {kMass, kKeys, kValues};
      rows = DropRows(state, kParts, rows, [&](int64_t r) { return drop[size_t(r)]; });
    }
    state.Resize(LayoutOf(keep));
    state.header().left = left;
    state.header().rows[0] = rows;
  }

  KeptView View(const PolicyState& state) const override {
    return {KeptRows{state.Part<std::byte>(kKeys), state.Part<std::byte>(kValues), nullptr, state.header().rows[0]}};
  }

  bool Valid(const PolicyState& state) const override {
    const int64_t rows = state.header().rows[0];
    if (rows != Rows(state.header().left)) return false;
    if (budget_.keeps_all()) return true;
    const float* mass = state.Part<float>(kMass);
    return std::all_of(mass, mass + rows, [](float x) { return std::isfinite(x) && x >= 0; });
  }

 private:
  enum : size_t { kRing, kMass, kKeys, kValues };
  static_assert(kRing == kRingMassPart);

  int64_t Rows(int64_t left) const {
    if (budget_.keeps_all()) return left;
    return budget_.Rows(left, 2 * row_bytes_ + int64_t(sizeof(float)),
                        int64_t(sizeof(PolicyState::Header)) + (4 * ring_slots_ + 63) / 64 * 64);
  }
  StateLayout LayoutOf(int64_t rows) const {
    const bool notes = !budget_.keeps_all();
    StateLayout l;
    l.Add(StatePart::Holds::kTables, sizeof(float), notes ? ring_slots_ : 0);
    l.Add(StatePart::Holds::kTables, notes ? sizeof(float) : 0, rows);
    l.Add(StatePart::Holds::kKeys, row_bytes_, rows);
    l.Add(StatePart::Holds::kValues, row_bytes_, rows);
    return l;
  }
  // The most recent rows that belong to the local share, beside those in the ring.
  int64_t Protected(int64_t left, int64_t keep) const {
    return std::clamp<int64_t>(budget_.Tokens(left) * local_ / 100 - ring_, 0, keep);
  }
  // Marks the `n` rows of least mass outside the last `recent`; of equals the older one goes.
  static std::vector<bool> Lightest(std::span<const float> mass, int64_t n, int64_t recent) {
    std::vector<int64_t> order(mass.size() - size_t(recent));
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + (n - 1), order.end(), [&](int64_t a, int64_t b) {
      return mass[size_t(a)] != mass[size_t(b)] ? mass[size_t(a)] < mass[size_t(b)] : a < b;
    });
    std::vector<bool> drop(mass.size());
    for (int64_t i = 0; i < n; ++i) drop[size_t(order[size_t(i)])] = true;
    return drop;
  }

  const Budget budget_;
  const int64_t row_bytes_, ring_slots_, ring_, local_;
};

Result<std::unique_ptr<const Policy>> Make(const PolicyRequest& request) {
  CROQUIS_CHECK_OK(
      Budget(request).Check(request, HeavyHitters::RowBytes(request.head_dim), HeavyHitters::Fixed(request)));
  return std::unique_ptr<const Policy>(std::make_unique<HeavyHitters>(request));
}

}  // namespace

extern const PolicyInfo kPolicy_h2o;
const PolicyInfo kPolicy_h2o = {
    .name = "h2o",
    .summary = "heavy hitters: the most recent tokens and those attended to most",
    .paper = "arXiv 2306.14048",
    .params = kParams,
    .make = Make,
};

}  // namespace croquis::kvcache
