// Which rows meet which keys, and how: causal attention by cutting in parts. Depends on shapes and options only.
//
// A node of keys [a, b) longer than min_length is cut into parts [h, e), which are nodes, and the queries of each part
// meet the keys [a, h) of earlier ones without a mask, which is a segment. Two parts are the paper's halving. With s
// parts a query is in (1 - 1/s) / log2 s segments for each doubling of the length, .5 for two and .375 for four, a key
// in (s - 1) / (2 log2 s), .5 and .75, where several query heads share it. Lengths need no padding; cuts are at whole
// tiles. Queries behind the last key meet all keys in one segment; without a mask that segment is all there is.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/attention/hyper/options.h"
#include "croquis/attention/problem.h"

namespace croquis::attention::hyper {

struct Segment {
  Range keys, rows;    // rows: of each head of the group
  bool exact = false;  // all pairs, because an approximation would not be cheaper
  int bits = 0;
  int64_t block = 0;                // keys of a window
  int64_t globals = 0, recent = 0;  // recent ones counted among the globals
  int64_t cell = 0, residuals = 0;  // keys of a cell; cells or samples
  bool halves = false;              // samples come in two halves, for the certificate
  int64_t covariance_rows = 0;      // keys that the first-order term is estimated from
  // Where its pieces lie among those of its level, or of the whole plan.
  int64_t slot = 0, residual_slot = 0;  // of packed keys and residuals, multiples of 64
  int64_t key_at = 0, row_at = 0;       // in arrays over keys and rows of the plan
  int64_t start_at = 0;                 // in the table of codes
  int64_t covariance_at = 0;
  size_t id = 0;  // among the segments that are not exact

  int64_t sorted() const { return keys.size() - globals; }
  int64_t SortedSlot() const;    // of the first sorted key: behind the globals, on a block's boundary
  int64_t Slots() const;         // whole blocks
  int64_t ResidualHalf() const;  // slots between the first and second half of the samples
  int64_t ResidualSlots() const;
};

struct Level {
  std::vector<Segment> segments;
  int64_t slots = 0, residual_slots = 0, covariance_rows = 0;
};

// Rows that meet the same segments.
struct Span {
  Range rows;
  std::vector<const Segment*> segments;  // of any level, those that are not exact
};

struct Plan {
  std::vector<Segment> leaves;             // exact with the causal mask; rows and keys at the same positions
  std::vector<Level> levels;               // the shortest segments first
  std::vector<Span> spans;                 // all rows, in order; points into levels
  int64_t keys = 0, rows = 0, starts = 0;  // sizes of arrays over all segments that are not exact
  size_t segments = 0;                     // that are not exact
};

// Not to be copied: spans point into it.
Plan MakePlan(const Problem& problem, const Options& options);

}  // namespace croquis::attention::hyper
