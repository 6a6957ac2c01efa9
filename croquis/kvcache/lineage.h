// Which tokens two caches hold alike because one was branched off the other, or both off a third.
#pragma once

#include <cstdint>
#include <memory>

namespace croquis::kvcache {

// Where a cache's tokens come from: a chain of segments, the last one its own. Tokens that two caches hold in the same
// segment were appended once, before a branch; sinks, ring rows and codes of them are the same bytes in both. Copied
// with the cache. As safe for threads as a cache: Grow and Cut write.
class Lineage {
 public:
  struct Segment {
    int64_t begin = 0;  // its first token; it ends where that of the next one begins, or with the cache
    std::shared_ptr<const Segment> parent;
    int64_t depth = 0;  // parents of it
  };

  // The last segment; others behind it. Equal addresses mean equal segments while any cache of them lives.
  const Segment* last() const { return last_.get(); }

  // Tokens are appended behind the first `length`.
  void Grow(int64_t length);
  // The first `length` tokens stay as they are; what follows is changed or gone.
  void Cut(int64_t length);

  // Leading tokens that caches of such lineages and lengths have in common.
  static int64_t Common(const Lineage& a, int64_t a_length, const Lineage& b, int64_t b_length);

 private:
  std::shared_ptr<const Segment> last_ = std::make_shared<const Segment>();
};

}  // namespace croquis::kvcache
