#include "croquis/attention/hydragen/common_rows.h"

#include <algorithm>
#include <unordered_map>

#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {
namespace {

using kvcache::HeadView;
using kvcache::KvCache;
using kvcache::Lineage;
constexpr int64_t kPage = codecs::kPageTokens;
constexpr int64_t kLeastRows = 16;  // sinks and tokens of a pass; joining its states costs as much as reading fewer

// Tokens in page j.
int64_t TokensOf(const HeadView& head, int64_t j) { return std::clamp<int64_t>(head.encoded - j * kPage, 0, kPage); }

// For every sequence the one before it that it has most tokens in common with, or -1: the one that went furthest in the
// last segment of its lineage that any was in.
std::vector<int64_t> Nearest(std::span<KvCache* const> caches) {
  struct Furthest {
    int64_t sequence = 0, end = 0;
  };
  std::unordered_map<const Lineage::Segment*, Furthest> seen;
  std::vector<int64_t> nearest(caches.size(), -1);
  for (size_t b = 0; b < caches.size(); ++b) {
    int64_t end = caches[b]->length();
    for (const auto* s = kvcache::LineageOf(*caches[b]).last(); s != nullptr; end = s->begin, s = s->parent.get()) {
      const auto [found, is_new] = seen.try_emplace(s, Furthest{int64_t(b), end});
      if (is_new) continue;
      if (nearest[b] < 0) nearest[b] = found->second.sequence;
      if (end > found->second.end) found->second = {int64_t(b), end};
    }
  }
  return nearest;
}

}  // namespace

std::vector<PageTable> PageTables(std::span<KvCache* const> caches, int64_t layer) {
  std::vector<HeadView> heads;
  std::vector<PageTable> tables;
  for (const KvCache* cache : caches) {
    heads.push_back(kvcache::ViewHead(*cache, layer, 0));
    const HeadView& head = heads.back();
    tables.emplace_back(head.units, head.units + head.Pages());
  }
  const std::vector<int64_t> nearest = Nearest(caches);
  for (size_t b = 0; b < caches.size(); ++b) {
    if (nearest[b] < 0) continue;
    const auto a = size_t(nearest[b]);
    const auto pages = int64_t(std::min(tables[a].size(), tables[b].size()));
    if (pages == 0 || heads[a].units[0] != heads[b].units[0]) continue;
    const int64_t common = kvcache::CommonTokens(*caches[a], *caches[b]) - heads[b].sinks;
    for (int64_t j = 0; j < pages; ++j) {
      const int64_t tokens = TokensOf(heads[b], j);
      if (j * kPage + tokens > common || tokens != TokensOf(heads[a], j)) break;
      tables[b][size_t(j)] = tables[a][size_t(j)];
    }
  }
  return tables;
}

PrefixTree BatchTree(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group) {
  const std::vector<PageTable> tables = PageTables(caches, layer);
  return FindPrefixTree(std::vector<std::span<kvcache::Unit* const>>(tables.begin(), tables.end()), group);
}

std::vector<CommonRows> FindCommonRows(std::span<KvCache* const> caches, int64_t layer, int64_t group,
                                       const PrefixTree& tree, bool pages_are_rows) {
  // By run, those that share no later one. Parents come first, so the last run that names a sequence is that.
  std::vector<size_t> last(caches.size(), tree.runs.size());
  for (size_t r = 0; r < tree.runs.size(); ++r) {
    const SharedRun& run = tree.runs[r];
    for (int64_t i = run.first; run.sequences > 1 && i < run.first + run.sequences; ++i)
      last[size_t(tree.order[size_t(i)])] = r;
  }
  std::vector<CommonRows> all(tree.runs.size());
  for (const int64_t b : tree.order)
    if (last[size_t(b)] < all.size()) all[last[size_t(b)]].sequences.push_back(b);
  for (size_t r = 0; r < all.size(); ++r) {
    CommonRows& rows = all[r];
    if (rows.sequences.empty()) continue;
    rows.source = rows.sequences[0], rows.end = caches[size_t(rows.source)]->length();
    int64_t least = rows.end, most = 0, sinks = 0;  // tokens that any of them, and all, have in pages
    for (const int64_t b : rows.sequences) {
      const HeadView head = kvcache::ViewHead(*caches[size_t(b)], layer, 0);
      if (head.encoded < least) least = head.encoded, rows.source = b;
      most = std::max(most, head.encoded), sinks = head.sinks;
    }
    for (const int64_t b : rows.sequences)
      rows.end = std::min(rows.end, kvcache::CommonTokens(*caches[size_t(rows.source)], *caches[size_t(b)]));
    const int64_t pages_end = (tree.runs[r].first_page + tree.runs[r].pages) * kPage;
    rows.begin = sinks + (pages_are_rows ? std::min(pages_end, least) : most);
    rows.end = std::max(rows.begin, rows.end);
    if (rows.end - rows.begin + sinks < kLeastRows || int64_t(rows.sequences.size()) * group < kLeastSharedRows)
      rows.sequences.clear();
  }
  std::erase_if(all, [](const CommonRows& rows) { return rows.sequences.size() < 2; });
  return all;
}

}  // namespace croquis::attention
