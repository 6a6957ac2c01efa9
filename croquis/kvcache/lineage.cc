#include "croquis/kvcache/lineage.h"

#include <algorithm>

namespace croquis::kvcache {

// A segment that others refer to has ended for them where they left it, so what follows is a new one. A parent that no
// other refers to any longer becomes part of its child: chains stay as short as there are branches alive. (Nobody can
// come to refer to what this one alone refers to, but through a copy of this; a count that is out of date is too high,
// which costs a segment and changes nothing.)
void Lineage::Grow(int64_t length) {
  if (last_.use_count() > 1) last_ = std::make_shared<const Segment>(Segment{length, last_, last_->depth + 1});
  while (last_->parent != nullptr && last_->parent.use_count() == 1) {
    const Segment& parent = *last_->parent;
    last_ = std::make_shared<const Segment>(Segment{parent.begin, parent.parent, parent.depth});
  }
}

void Lineage::Cut(int64_t length) {
  while (last_ != nullptr && last_->begin >= length) last_ = last_->parent;
  const int64_t depth = last_ == nullptr ? 0 : last_->depth + 1;
  last_ = std::make_shared<const Segment>(Segment{std::max<int64_t>(0, length), std::move(last_), depth});
}

int64_t Lineage::Common(const Lineage& a, int64_t a_length, const Lineage& b, int64_t b_length) {
  const Segment *x = a.last(), *y = b.last();
  while (x != y) {  // the deeper one steps back, or the first of two that are as deep
    if (x == nullptr || (y != nullptr && y->depth > x->depth))
      b_length = y->begin, y = y->parent.get();
    else
      a_length = x->begin, x = x->parent.get();
  }
  return x == nullptr ? 0 : std::min(a_length, b_length);
}

}  // namespace croquis::kvcache
