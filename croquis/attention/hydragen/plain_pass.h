// Passes over shared pages of plain rows (f32, f16, bf16): many query rows on split products, the softmax included.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "croquis/attention/stream.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {

// Whether a head's pages are rows like those of its ring, which can be read with them.
bool PagesAreRows(const kvcache::HeadView& head);

// Query rows of one kv head, prepared for its pages. Made once, used for any runs of pages, also at the same time.
class PlainQuery {
 public:
  // Whether this machine has kernels for `rows` query rows on the pages of a head.
  static bool Takes(const kvcache::HeadView& head, int64_t rows);
  // Bytes of memory for `rows` rows (a multiple of 64), and of working memory for `pages` pages.
  static size_t Bytes(int64_t rows, int64_t dim);
  static size_t WorkBytes(int64_t rows, int64_t dim, int64_t pages);

  // q [rows, head_dim]: times scale * log2 e; not needed afterwards. visible: one for each row. The latter and the head
  // must outlive this.
  PlainQuery(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible,
             std::byte* memory);

  // Pages [begin, end) of a head.
  struct Pages {
    const kvcache::HeadView* head = nullptr;  // null: none
    int64_t begin = 0, end = 0;
  };
  // The state of pages [begin, end). next: what this thread is likely to read after them, fetched meanwhile.
  void Attend(int64_t begin, int64_t end, const Pages& next, StreamState state, std::byte* work) const;

 private:
  const kvcache::HeadView& head_;
  const std::span<const Visible> visible_;
  const int64_t dim_;
  std::byte* const prepared_;
};

}  // namespace croquis::attention
