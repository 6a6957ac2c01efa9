// Which pages several sequences share: the tree of common prefixes, read off the page tables of their caches.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/kvcache/unit_pool.h"

namespace croquis::attention {

// A node of the tree: a run of pages that some sequences hold in common.
struct SharedRun {
  int64_t first = 0, sequences = 0;   // order[first .. first + sequences) of the tree
  int64_t first_page = 0, pages = 0;  // at the same places in all of their page tables
};

struct PrefixTree {
  // The sequences in depth-first order: those below a node are neighbours.
  std::vector<int64_t> order;
  // Every page of every sequence is in exactly one run of it. Parents come before their children.
  std::vector<SharedRun> runs;
};

// A run gets a pass of its own when it is shared by sequences with at least kLeastSharedRows query rows together and
// has at least kLeastSharedPages pages (256 tokens); otherwise it is read as part of the runs below it. (Hydragen,
// arXiv 2402.05099, leaves this open; passes over short runs cost more in states and merging than they save.)
inline constexpr int64_t kLeastSharedRows = 4, kLeastSharedPages = 2;

// tables: the page tables of the sequences; two sequences share a page when they hold the same unit at the same place.
// group: query heads of a kv head, the query rows that a sequence brings.
PrefixTree FindPrefixTree(std::span<const std::span<kvcache::Unit* const>> tables, int64_t group);

}  // namespace croquis::attention
