// The streaming softmax: tiles of keys and values go by, the running maximum, mass and weighted sum stay. Written once
// for coded pages and dense rows; base 2 inside (log2 e is folded into the queries), natural log in a Partial.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "croquis/attention/center_score.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention {

inline constexpr int64_t kDenseTile = 256;  // dense tokens that share one softmax pass

// Positions [first, last) that a query row may see.
struct Visible {
  int64_t first = 0, last = 0;
};

// Exact keys and values of consecutive positions, [tokens, head_dim] of the ring's type.
struct DenseRows {
  const std::byte *k = nullptr, *v = nullptr;
  int64_t position = 0, tokens = 0;
};

class Stream {
 public:
  // Bytes of working memory for `rows` rows over any head like these (multiples of 64): a stream's own, and what
  // streams that take turns share.
  static size_t Bytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim);
  static size_t SharedBytes(const kvcache::HeadView& head, int64_t rows);

  // q [rows, head_dim]: times scale * log2 e. visible: one for each row. Both must outlive the stream.
  Stream(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible, std::byte* memory,
         std::byte* shared);

  // Takes pages [begin, end) into all streams: kv heads of one layer that see the same positions. Page by page and head
  // by head, which is the order of the pages in memory. Called at most once, before Dense.
  static void Pages(std::span<Stream> streams, int64_t begin, int64_t end);
  // Takes in dense rows; segments come in ascending order of position.
  void Dense(std::span<const DenseRows> segments);

  // The state, once all was taken in: rows of the weighted sum, in the model's basis.
  MatView<float> sums() { return out_; }
  float max(int64_t row) const;  // natural log; kEmptyMax when the row saw nothing
  float mass(int64_t row) const { return l_[row]; }

 private:
  // Turns a tile of logits into weights: row r sees [lo, hi) of its n slots, the others get exactly 0, up to `width`.
  // acc are the sums to rescale. Returns whether any row's weights matter.
  bool Softmax(int64_t row, int64_t lo, int64_t hi, int64_t width, float* x, float* acc, int64_t acc_cols);
  void BeginPages(int64_t begin, int64_t end);
  // `next`: the key page that is read after this head's value page, or null.
  void Page(int64_t j, const std::byte* next, size_t next_bytes);
  void DenseTile(std::span<const DenseRows> segments, int64_t tokens);

  const kvcache::HeadView& head_;
  const MatView<const float> q_;
  const std::span<const Visible> visible_;
  MatView<float> acc_, out_;  // in the codec's basis; in the model's
  float *m_, *l_, *p_scale_, *logits_;
  std::byte *query_, *scratch_, *center_memory_;
  std::optional<CenterScore> center_;
  int64_t first_visible_, last_visible_;  // over all rows
};

}  // namespace croquis::attention
