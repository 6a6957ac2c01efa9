#include "croquis/attention/hyper/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "croquis/attention/hyper/hash.h"
#include "croquis/simd/tile_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kBlock = simd::kTileKeys;

int64_t WholeBlocks(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// What hashing, sorting and packing a key costs, in pairs; found by measurement, only the order matters.
constexpr int64_t kKeyCost = 200, kRowCost = 200;

class Planner {
 public:
  Planner(const Problem& p, const Options& o) : p_(p), o_(o) {}

  Plan Make() {
    const int64_t nk = p_.k.rows, nq = p_.q.rows;
    if (!p_.mask.causal) {
      Add(0, {0, nk}, {0, nq});
    } else {
      Split(0, nk, 1);
      Add(0, {0, nk}, {std::clamp<int64_t>(nk - p_.mask.offset, 0, nq), nq});
    }
    // Level 0 holds the queries behind the keys, then come levels by depth.
    std::reverse(plan_.levels.begin(), plan_.levels.end());
    Lay();
    MakeSpans();
    return std::move(plan_);
  }

 private:
  Range RowsAt(int64_t first, int64_t last) const {
    return {std::clamp<int64_t>(first - p_.mask.offset, 0, p_.q.rows),
            std::clamp<int64_t>(last - p_.mask.offset, 0, p_.q.rows)};
  }

  void Split(int64_t first, int64_t last, size_t depth) {
    const Range rows = RowsAt(first, last);
    if (rows.size() == 0) return;
    if (last - first <= std::max<int64_t>(o_.min_length, 1)) {
      plan_.leaves.push_back({.keys = {first, last}, .rows = rows, .exact = true});
      return;
    }
    // Parts of whole blocks; where there are not enough, fewer parts, and halves of anything in the end.
    int64_t part = WholeBlocks((last - first + o_.split - 1) / o_.split);
    if (part >= last - first) part = (last - first + 1) / 2;
    for (int64_t at = first; at < last; at += part) {
      const int64_t end = std::min(last, at + part);
      Split(at, end, depth + 1);
      Add(depth, {first, at}, RowsAt(at, end));
    }
  }

  void Add(size_t depth, Range keys, Range rows) {
    if (plan_.levels.size() <= depth) plan_.levels.resize(depth + 1);
    if (keys.size() > 0 && rows.size() > 0) plan_.levels[depth].segments.push_back(Approximate(keys, rows));
  }

  Segment Approximate(Range keys, Range rows) const {
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
    s.exact = (!p_.mask.causal && n <= o_.min_length) || s.block >= n || pairs >= n ||
              (!o_.paper && nq * n <= nq * (pairs + kRowCost) + n * kKeyCost);
    return s;
  }

  // Gives each segment its place.
  void Lay() {
    for (Level& level : plan_.levels)
      for (Segment& s : level.segments) {
        s.slot = level.slots, s.residual_slot = level.residual_slots, s.covariance_at = level.covariance_rows;
        if (s.exact) continue;
        s.id = plan_.segments++;
        level.slots += s.Slots(), level.residual_slots += s.ResidualSlots(), level.covariance_rows += s.covariance_rows;
        s.key_at = plan_.keys, s.row_at = plan_.rows, s.start_at = plan_.starts;
        plan_.keys += s.keys.size(), plan_.rows += s.rows.size();
        plan_.starts += (int64_t(1) << s.bits) + 1;
      }
  }

  // Between two ends of segments all rows meet the same ones.
  void MakeSpans() {
    std::vector<int64_t> ends = {0, p_.q.rows};
    for (const Level& level : plan_.levels)
      for (const Segment& s : level.segments) ends.insert(ends.end(), {s.rows.first, s.rows.last});
    std::sort(ends.begin(), ends.end());
    for (size_t i = 1; i < ends.size(); ++i) {
      if (ends[i] == ends[i - 1]) continue;
      plan_.spans.push_back({{ends[i - 1], ends[i]}, {}});
      for (const Level& level : plan_.levels)
        for (const Segment& s : level.segments)
          if (!s.exact && s.rows.first <= ends[i - 1] && ends[i] <= s.rows.last)
            plan_.spans.back().segments.push_back(&s);
    }
  }

  const Problem& p_;
  const Options& o_;
  Plan plan_;
};

}  // namespace

int64_t Segment::SortedSlot() const { return slot + WholeBlocks(globals); }
int64_t Segment::Slots() const { return WholeBlocks(globals) + WholeBlocks(sorted()); }
int64_t Segment::ResidualHalf() const { return WholeBlocks(halves ? (residuals + 1) / 2 : residuals); }
int64_t Segment::ResidualSlots() const { return (halves ? 2 : 1) * ResidualHalf(); }

Plan MakePlan(const Problem& problem, const Options& options) { return Planner(problem, options).Make(); }

}  // namespace croquis::attention::hyper
