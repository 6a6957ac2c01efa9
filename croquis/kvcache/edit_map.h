// Where the tokens of an edited cache stand (Positional Integrity Encoding, arXiv 2407.03157).
//
// Tokens lie in slots in the order in which they were appended, and the key in slot s is rotated as of position s;
// edits change neither. What they change is kept here: runs of slots that stand shifted by a constant, in the order of
// their positions. Attention turns the query instead of the keys: <q, R_delta k> = <R_-delta q, k>.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace croquis::kvcache {

// Slots [begin, end) stand at positions slot + shift.
struct EditSegment {
  int64_t begin = 0, end = 0, shift = 0;
  int64_t position() const { return begin + shift; }
  int64_t tokens() const { return end - begin; }
  bool operator==(const EditSegment&) const = default;
};

class EditMap {
 public:
  // Whether positions differ from slots, now or for what is appended next.
  bool edited() const { return edited_; }
  // In the order of their positions, which they cover from 0 on without gaps; only when edited.
  std::span<const EditSegment> segments() const { return segments_; }
  // Tokens that stand, given `slots` slots in use.
  int64_t Tokens(int64_t slots) const;
  // The position of the next token that is appended.
  int64_t Cursor(int64_t slots) const { return insert_at_ >= 0 ? insert_at_ : Tokens(slots); }

  // 0 <= begin <= end <= Tokens(slots).
  void Delete(int64_t slots, int64_t begin, int64_t end);
  // What is appended goes before position `at` <= Tokens(slots) from now on; Tokens(slots): at the end, as usual.
  void InsertAt(int64_t slots, int64_t at);
  // `tokens` were appended in slots `slots` ..; those behind the cursor move on. Only when edited.
  void Append(int64_t slots, int64_t tokens);

  // For snapshots: sets the segments and the cursor (-1: the end); false when they make no sense for `slots`.
  bool Restore(std::vector<EditSegment> segments, int64_t insert_at, int64_t slots);
  int64_t insert_at() const { return insert_at_; }

 private:
  void Begin(int64_t slots);
  // The index of the segment that begins at `position`, made by cutting one if need be.
  size_t CutAt(int64_t position);
  void Merge();

  bool edited_ = false;
  std::vector<EditSegment> segments_;
  int64_t insert_at_ = -1;
};

}  // namespace croquis::kvcache
