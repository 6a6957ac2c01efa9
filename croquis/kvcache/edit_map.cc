#include "croquis/kvcache/edit_map.h"

#include <algorithm>

namespace croquis::kvcache {

int64_t EditMap::Tokens(int64_t slots) const {
  if (!edited_) return slots;
  return segments_.empty() ? 0 : segments_.back().end + segments_.back().shift;
}

void EditMap::Begin(int64_t slots) {
  if (edited_) return;
  edited_ = true;
  if (slots > 0) segments_ = {{0, slots, 0}};
}

size_t EditMap::CutAt(int64_t position) {
  for (size_t i = 0; i < segments_.size(); ++i) {
    EditSegment& s = segments_[i];
    const int64_t into = position - s.position();
    if (into <= 0) return i;
    if (into >= s.tokens()) continue;
    const EditSegment rest = {s.begin + into, s.end, s.shift};
    s.end = rest.begin;
    segments_.insert(segments_.begin() + std::ptrdiff_t(i) + 1, rest);
    return i + 1;
  }
  return segments_.size();
}

// Neighbours that are neighbours in memory too become one.
void EditMap::Merge() {
  std::vector<EditSegment> merged;
  for (const EditSegment& s : segments_) {
    if (!merged.empty() && merged.back().end == s.begin && merged.back().shift == s.shift)
      merged.back().end = s.end;
    else
      merged.push_back(s);
  }
  segments_ = std::move(merged);
}

void EditMap::Delete(int64_t slots, int64_t begin, int64_t end) {
  if (begin == end) return;
  Begin(slots);
  const size_t first = CutAt(begin), last = CutAt(end);
  segments_.erase(segments_.begin() + std::ptrdiff_t(first), segments_.begin() + std::ptrdiff_t(last));
  for (size_t i = first; i < segments_.size(); ++i) segments_[i].shift -= end - begin;
  if (insert_at_ >= end)
    insert_at_ -= end - begin;
  else if (insert_at_ > begin)
    insert_at_ = begin;
  Merge();
}

void EditMap::InsertAt(int64_t slots, int64_t at) {
  if (at == Tokens(slots)) {
    insert_at_ = -1;
    return;
  }
  Begin(slots);
  insert_at_ = at;
}

void EditMap::Append(int64_t slots, int64_t tokens) {
  if (tokens == 0) return;
  const int64_t at = Cursor(slots);
  const size_t i = CutAt(at);
  segments_.insert(segments_.begin() + std::ptrdiff_t(i), {slots, slots + tokens, at - slots});
  for (size_t j = i + 1; j < segments_.size(); ++j) segments_[j].shift += tokens;
  if (insert_at_ >= 0) insert_at_ += tokens;
  Merge();
}

bool EditMap::Restore(std::vector<EditSegment> segments, int64_t insert_at, int64_t slots) {
  int64_t position = 0;
  for (const EditSegment& s : segments) {
    // Written so that no sum overflows.
    if (s.begin < 0 || s.begin >= s.end || s.end > slots || s.shift != position - s.begin) return false;
    position += s.tokens();
    if (position > slots) return false;
  }
  std::vector<EditSegment> sorted = segments;
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < sorted.size(); ++i)
    if (sorted[i].begin < sorted[i - 1].end) return false;
  if (insert_at < -1 || insert_at > position) return false;
  segments_ = std::move(segments);
  insert_at_ = insert_at;
  edited_ = true;
  return true;
}

}  // namespace croquis::kvcache
