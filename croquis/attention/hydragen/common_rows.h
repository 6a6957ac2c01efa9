// What sequences hold alike without sharing its memory: pages that were finished after a branch, and rows of sinks and
// rings, which every cache has for itself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/hydragen/prefix_tree.h"
#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/unit_pool.h"

namespace croquis::attention {

// The page tables of a layer, with one unit for all pages of the same tokens and codes.
using PageTable = std::vector<kvcache::Unit*>;
std::vector<PageTable> PageTables(std::span<kvcache::KvCache* const> caches, int64_t layer);
// The tree of these. group: query heads of a kv head.
PrefixTree BatchTree(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group);

// Rows that sequences below one run of pages hold alike: sinks, and tokens [begin, end), which follow the run.
struct CommonRows {
  std::vector<int64_t> sequences;  // two or more
  int64_t source = 0;              // the one of them whose rows are read
  int64_t begin = 0, end = 0;      // maybe empty
};

// Those that are worth a pass. Every sequence is in one of them at most, that of the last run it shares. Where
// pages_are_rows, rows that stand in pages count as well.
std::vector<CommonRows> FindCommonRows(std::span<kvcache::KvCache* const> caches, int64_t layer, int64_t group,
                                       const PrefixTree& tree, bool pages_are_rows);

}  // namespace croquis::attention
