#include "croquis/attention/hydragen/prefix_tree.h"

#include <algorithm>
#include <numeric>

namespace croquis::attention {
namespace {

using kvcache::Unit;

class Builder {
 public:
  Builder(std::span<const std::span<Unit* const>> tables, int64_t group) : tables_(tables), group_(group) {
    tree_.order.resize(tables.size());
    std::iota(tree_.order.begin(), tree_.order.end(), int64_t{0});
  }

  // Sequences order[lo, hi) share all pages below `page`; those from `begin` on are in no run yet.
  void Visit(int64_t lo, int64_t hi, int64_t begin, int64_t page) {
    if (hi - lo == 1) return Emit(lo, hi, begin, Pages(lo));
    while (AllShare(lo, hi, page)) ++page;
    if ((hi - lo) * group_ >= kLeastSharedRows && page - begin >= kLeastSharedPages) {
      Emit(lo, hi, begin, page);
      begin = page;
    }
    // Those that hold the same page next come together, in the order in which each page is met first; those that end
    // here are alone.
    while (lo < hi) {
      const Unit* const unit = At(lo, page);
      const auto from = tree_.order.begin() + lo + 1, to = tree_.order.begin() + hi;
      const auto next = std::stable_partition(
          from, to, [&](int64_t s) { return unit != nullptr && UnitOf(tables_[size_t(s)], page) == unit; });
      const int64_t end = next - tree_.order.begin();
      Visit(lo, end, begin, page);
      lo = end;
    }
  }

  PrefixTree Take() { return std::move(tree_); }

 private:
  static const Unit* UnitOf(std::span<Unit* const> table, int64_t page) {
    return page < int64_t(table.size()) ? table[size_t(page)] : nullptr;
  }
  std::span<Unit* const> Table(int64_t at) const { return tables_[size_t(tree_.order[size_t(at)])]; }
  const Unit* At(int64_t at, int64_t page) const { return UnitOf(Table(at), page); }
  int64_t Pages(int64_t at) const { return int64_t(Table(at).size()); }

  bool AllShare(int64_t lo, int64_t hi, int64_t page) const {
    const Unit* const unit = At(lo, page);
    for (int64_t i = lo + 1; unit != nullptr && i < hi; ++i)
      if (At(i, page) != unit) return false;
    return unit != nullptr;
  }

  void Emit(int64_t lo, int64_t hi, int64_t begin, int64_t end) {
    if (end > begin) tree_.runs.push_back({lo, hi - lo, begin, end - begin});
  }

  const std::span<const std::span<Unit* const>> tables_;
  const int64_t group_;
  PrefixTree tree_;
};

}  // namespace

PrefixTree FindPrefixTree(std::span<const std::span<Unit* const>> tables, int64_t group) {
  Builder builder(tables, group);
  if (!tables.empty()) builder.Visit(0, int64_t(tables.size()), 0, 0);
  return builder.Take();
}

}  // namespace croquis::attention
