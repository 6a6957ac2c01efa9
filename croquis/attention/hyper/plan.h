// Which rows meet which keys, and how: causal attention by cutting in parts. Depends on shapes and options only.
//
// A node of keys [a, b) longer than min_length is cut into parts [h, e), which are nodes, and the queries of each part
// meet the keys [a, h) of earlier ones without a mask, which is a segment. Two parts are the paper's halving. With s
// parts a query is in (1 - 1/s) / log2 s segments for each doubling of the length, .5 for two and .375 for four, a key
// in (s - 1) / (2 log2 s), .5 and .75, where several query heads share it. Lengths need no padding; cuts are at whole
// tiles. Queries behind the last key meet all keys in one segment; without a mask that segment is all there is.
//
// Rows are sorted in groups, each once for several segments. A tile of them meets these by two calls of the tile
// kernel, and its states stay where they are. The rows of a stage are a group for segments longer than the stage: the
// fewer keys lie between neighbouring rows' places, the more of their windows they share, and the less often long
// segments are read. Segments inside of a stage are met by groups of their own, and only those inside of such a group,
// and blocks that are matched by rank, have orders of rows of their own.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "croquis/attention/hyper/options.h"
#include "croquis/attention/problem.h"

namespace croquis::attention::hyper {

// Keys that some rows meet approximately.
struct Segment {
  Range keys, rows;  // rows: of each head of the group
  int bits = 0;
  int64_t block = 0;                // keys of a window
  int64_t globals = 0, recent = 0;  // recent ones counted among the globals
  int64_t cell = 0, residuals = 0;  // keys of a cell; cells or samples
  bool halves = false;              // samples come in two halves, for the certificate
  int64_t covariance_rows = 0;      // keys that the first-order term is estimated from
  size_t id = 0;                    // its place in Plan::segments
  int64_t slot = 0,
          residual_slot = 0;         // of packed keys and residuals, multiples of 64; others use them before and after
  int64_t key_at = 0, start_at = 0;  // in arrays over the keys, and the tables of codes, of all segments
  int64_t order_at = 0;              // in the array of the keys in all slots
  int64_t covariance_at = 0;         // among those that are filled together

  int64_t sorted() const { return keys.size() - globals; }
  int64_t GlobalSlots() const;  // whole blocks, as all slots; the sorted keys begin behind them
  int64_t Slots() const;
  int64_t ResidualHalf() const;  // slots between the first and second half of the samples
  int64_t ResidualSlots() const;
};

// Rows that are sorted together.
struct Group {
  Range rows;
  std::vector<const Segment*> segments;  // that they meet, at least one
  int bits = 0;                          // the most of its segments
  int64_t row_at = 0;                    // in arrays over the rows of all groups
  size_t id = 0;
};

// Rows in order, and what they meet exactly: their own keys up to their positions, and earlier keys without a mask.
struct Leaf {
  Range rows, keys;
  std::vector<Range> earlier;
};

// What is in memory together: segments are filled, groups run, one pass after the other, then leaves.
struct Stage {
  std::vector<const Segment*> fill;
  std::vector<std::vector<Group>> passes;  // a row is in one group of a pass
  std::vector<Leaf> leaves;                // each row in one leaf of one stage
};

struct Plan {
  std::deque<Segment> segments;
  std::vector<Stage> stages;
  size_t groups = 0;
  // Sizes of what all segments and groups lie in, and of what those of one stage lie in.
  int64_t keys = 0, rows = 0, starts = 0, orders = 0;
  int64_t slots = 0, residual_slots = 0, covariance_rows = 0;
};

// Not to be copied: groups point into it.
Plan MakePlan(const Problem& problem, const Options& options);

}  // namespace croquis::attention::hyper
