#include "croquis/attention/hyper/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

#include "croquis/simd/tile_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kBlock = simd::kTileKeys;

int64_t WholeBlocks(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// What hashing, sorting and packing a key costs, in pairs; found by measurement, only the order matters.
constexpr int64_t kKeyCost = 200, kRowCost = 200;

constexpr int64_t kGroupKeys = 2048;  // of a node whose rows are sorted together for the segments inside of a stage
constexpr int64_t kStageKeys = 8192;  // of a node whose segments and rows are worked on together

class Planner {
 public:
  Planner(const Problem& p, const Options& o)
      : p_(p), o_(o), stage_keys_(by_rank() ? std::numeric_limits<int64_t>::max() : kStageKeys) {}

  Plan Make() {
    const int64_t nk = p_.k.rows, nq = p_.q.rows;
    if (!p_.mask.causal) {
      All({0, nq});
    } else {
      // Queries before the first key, those at keys, and those behind them.
      const int64_t first = RowsAt(0, 0).first, last = RowsAt(nk, nk).first;
      if (first > 0) OpenStage().leaves.push_back({.rows = {0, first}, .keys = {}, .earlier = {}});
      stage_ = false;
      Split(0, nk, 0, {}, {});
      All({last, nq});
    }
    Lay();
    return std::move(plan_);
  }

 private:
  using Segments = std::vector<const Segment*>;

  bool by_rank() const { return o_.match == Match::kRank; }
  Range RowsAt(int64_t first, int64_t last) const {
    return {std::clamp<int64_t>(first - p_.mask.offset, 0, p_.q.rows),
            std::clamp<int64_t>(last - p_.mask.offset, 0, p_.q.rows)};
  }

  // Rows that see all keys.
  void All(Range rows) {
    if (rows.size() == 0) return;
    OpenStage();
    const Range keys{0, p_.k.rows};
    std::vector<Range> earlier;
    if (const auto segment = Approximate(keys, rows))
      AddGroup(rows, {Keep(*segment, 0)}, 0);
    else
      earlier = {keys};
    plan_.stages.back().leaves.push_back({.rows = rows, .keys = {}, .earlier = earlier});
    stage_ = false;
  }

  // meets, earlier: what the rows of all of the node meet, approximately and exactly.
  void Split(int64_t first, int64_t last, size_t depth, Segments meets, const std::vector<Range>& earlier) {
    const Range rows = RowsAt(first, last);
    if (rows.size() == 0) return;
    const int64_t n = last - first;
    const bool leaf = n <= std::max<int64_t>(o_.min_length, 1), opens = !stage_ && (leaf || n <= stage_keys_);
    if (opens) OpenStage(), stage_depth_ = depth;
    const bool group = leaf || n <= kGroupKeys;
    if ((opens || group) && !meets.empty()) AddGroup(rows, std::move(meets), opens ? 0 : 1), meets.clear();
    if (leaf) {
      plan_.stages.back().leaves.push_back({.rows = rows, .keys = {first, last}, .earlier = earlier});
    } else {
      // Parts of whole blocks; where there are not enough, fewer parts, and halves of anything in the end.
      int64_t part = WholeBlocks((n + o_.split - 1) / o_.split);
      if (part >= n) part = (n + 1) / 2;
      for (int64_t at = first; at < last; at += part) {
        const int64_t end = std::min(last, at + part);
        const Range part_rows = RowsAt(at, end);
        Segments part_meets = meets;
        std::vector<Range> part_earlier = earlier;
        if (at > first && part_rows.size() > 0) {
          if (const auto segment = Approximate({first, at}, part_rows); !segment)
            part_earlier.push_back({first, at});
          else if (const Segment* const s = Keep(*segment, depth); group || by_rank())
            AddGroup(part_rows, {s}, depth - stage_depth_ + 2);
          else
            part_meets.push_back(s);
        }
        Split(at, end, depth + 1, std::move(part_meets), part_earlier);
      }
    }
    if (opens) stage_ = false;
  }

  // The new stage fills the segments that were kept since the last one was closed.
  Stage& OpenStage() {
    stage_ = true;
    plan_.stages.emplace_back().fill.swap(waiting_);
    slots_ = residual_slots_ = 0;
    return plan_.stages.back();
  }

  // Slots of a segment that outlives stages are those of its depth: at each depth one such segment is in use at a time.
  const Segment* Keep(const Segment& segment, size_t depth) {
    Segment* const s = &plan_.segments.emplace_back(segment);
    if (stage_) {
      plan_.stages.back().fill.push_back(s);
      s->slot = slots_, s->residual_slot = residual_slots_;
      slots_ += s->Slots(), residual_slots_ += s->ResidualSlots();
      plan_.slots = std::max(plan_.slots, slots_);
      plan_.residual_slots = std::max(plan_.residual_slots, residual_slots_);
      return s;
    }
    waiting_.push_back(s);
    if (depths_.size() <= depth) depths_.resize(depth + 1);
    Depth& d = depths_[depth];
    d.segments.push_back(s);
    d.slots = std::max(d.slots, s->Slots()), d.residual_slots = std::max(d.residual_slots, s->ResidualSlots());
    return s;
  }

  void AddGroup(Range rows, Segments segments, size_t pass) {
    Stage& stage = plan_.stages.back();
    if (stage.passes.size() <= pass) stage.passes.resize(pass + 1);
    Group g{.rows = rows, .segments = std::move(segments), .bits = 0, .row_at = plan_.rows, .id = plan_.groups++};
    for (const Segment* s : g.segments) g.bits = std::max(g.bits, s->bits);
    plan_.rows += rows.size();
    stage.passes[pass].push_back(std::move(g));
  }

  // Nothing where an approximation would not be cheaper.
  std::optional<Segment> Approximate(Range keys, Range rows) const {
    Segment s{.keys = keys, .rows = rows};
    const int64_t n = keys.size();
    s.globals = std::min(n, o_.globals);
    s.recent = p_.mask.causal ? std::min(o_.recent, s.globals) : 0;
    const int64_t m = s.sorted();
    // 128 cells, and more where they would hold more than sqrt(n) keys.
    const double each = std::max(16., std::min(double(n) / 128, std::sqrt(double(n))));
    s.cell = o_.samples > 0 ? std::max<int64_t>(1, (m + o_.samples - 1) / o_.samples)
                            : int64_t(std::bit_ceil(uint64_t(std::ceil(each))));
    const bool by_cells = o_.residual == Residual::kMoment || o_.residual == Residual::kStratified;
    const int64_t wanted = o_.samples > 0 ? o_.samples : (m + s.cell - 1) / s.cell;
    s.residuals = by_cells ? (m + s.cell - 1) / s.cell : o_.residual == Residual::kSinks ? std::min(wanted, n) : wanted;
    s.halves = SplitsSamples(o_.residual);
    s.block = o_.block > 0 ? o_.block : 128;
    s.bits = int(o_.bits > 0 ? o_.bits : std::clamp<int64_t>(std::bit_width(uint64_t(n / 8 + 1)) - 1, 2, 10));
    if (o_.residual == Residual::kMoment)
      s.covariance_rows =
          s.residuals *
          std::clamp<int64_t>(std::clamp<int64_t>(n / 4, 256, 1024) / std::max<int64_t>(1, s.residuals), 1, s.cell);
    const int64_t pairs = s.globals + s.block + s.residuals, nq = rows.size() * p_.Group();
    const bool exact = (!p_.mask.causal && n <= o_.min_length) || s.block >= n || pairs >= n ||
                       (!o_.paper && nq * n <= nq * (pairs + kRowCost) + n * kKeyCost);
    return exact ? std::nullopt : std::optional(s);
  }

  // Gives each segment its place: slots of depths come behind those of stages.
  void Lay() {
    for (const Depth& d : depths_) {
      for (Segment* s : d.segments) s->slot = plan_.slots, s->residual_slot = plan_.residual_slots;
      plan_.slots += d.slots, plan_.residual_slots += d.residual_slots;
    }
    for (size_t i = 0; i < plan_.segments.size(); ++i) {
      Segment& s = plan_.segments[i];
      s.id = i, s.key_at = plan_.keys, s.start_at = plan_.starts, s.order_at = plan_.orders;
      plan_.keys += s.keys.size(), plan_.starts += (int64_t(1) << s.bits) + 1, plan_.orders += s.Slots();
    }
    for (const Stage& stage : plan_.stages) {
      int64_t at = 0;
      for (const Segment* s : stage.fill) {
        plan_.segments[s->id].covariance_at = at;
        at += s->covariance_rows;
      }
      plan_.covariance_rows = std::max(plan_.covariance_rows, at);
    }
  }

  const Problem& p_;
  const Options& o_;
  int64_t stage_keys_;
  Plan plan_;
  bool stage_ = false;      // one is open: the last
  size_t stage_depth_ = 0;  // of its node
  int64_t slots_ = 0, residual_slots_ = 0;
  Segments waiting_;  // to be filled by the next stage
  struct Depth {
    std::vector<Segment*> segments;
    int64_t slots = 0, residual_slots = 0;
  };
  std::vector<Depth> depths_;  // of segments kept while no stage was open
};

}  // namespace

int64_t Segment::GlobalSlots() const { return WholeBlocks(globals); }
int64_t Segment::Slots() const { return WholeBlocks(globals) + WholeBlocks(sorted()); }
int64_t Segment::ResidualHalf() const { return WholeBlocks(halves ? (residuals + 1) / 2 : residuals); }
int64_t Segment::ResidualSlots() const { return (halves ? 2 : 1) * ResidualHalf(); }

Plan MakePlan(const Problem& problem, const Options& options) { return Planner(problem, options).Make(); }

}  // namespace croquis::attention::hyper
