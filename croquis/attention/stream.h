// The streaming softmax: tiles of keys and values go by, the running maximum, mass and weighted sum stay. Written once
// for coded pages and dense rows; base 2 inside (log2 e is folded into the queries), natural log in a Partial.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "croquis/attention/center_score.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/layer_view.h"
#include "croquis/simd/upcoming.h"

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

// What a head holds exactly, in ascending order of position: sinks, the ring in its two parts, and `tokens` new rows at
// new_k, new_v, which follow it.
std::array<DenseRows, 4> ExactRows(const kvcache::HeadView& head, const std::byte* new_k, const std::byte* new_v,
                                   int64_t tokens);

// Query rows of one kv head, prepared for its pages. Made once, used by all streams over them, also at the same time.
class HeadQuery {
 public:
  // Bytes of memory for `rows` rows (a multiple of 64).
  static size_t Bytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim);

  // q [rows, head_dim]: times scale * log2 e. visible: one for each row. All must outlive this.
  HeadQuery(const kvcache::HeadView& head, MatView<const float> q, std::span<const Visible> visible, std::byte* memory);

 private:
  friend class Stream;
  const kvcache::HeadView& head_;
  const MatView<const float> q_;
  const std::span<const Visible> visible_;
  int64_t first_visible_, last_visible_;  // by any row
  int64_t first_common_, last_common_;    // by all rows
  std::byte* prepared_;
  std::optional<CenterQuery> center_;
};

// What a stream leaves behind; Join puts those over different keys together.
struct StreamState {
  MatView<float> sums;                    // [rows, width], relative to 2^max
  float *max = nullptr, *mass = nullptr;  // [rows], base 2; mass 0 where nothing was seen

  // Bytes of one of `rows` rows and `width` numbers (a multiple of 64), and one that lies there.
  static size_t Bytes(int64_t rows, int64_t width);
  static StreamState At(std::byte* memory, int64_t rows, int64_t width);
};

class Stream {
 public:
  // Bytes of working memory for `rows` rows over any head like these (multiples of 64): a stream's own, and what
  // streams that take turns share.
  static size_t Bytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim);
  static size_t SharedBytes(const kvcache::HeadView& head, int64_t rows);

  // Begins with the empty state; or goes on from the state that a stream with the same rows, otherwise rotated, left.
  Stream(const HeadQuery& query, StreamState state, std::byte* memory, std::byte* shared, bool goes_on = false);

  // Takes pages [begin, end) into all streams: kv heads of one layer, or further query rows of one. Page by page and
  // stream by stream, which is the order of the pages in memory. Called at most once; the states are as wide as the
  // value codec's AccDim. then: the page that is likely read after these, to be prefetched; -1: not known.
  static void Pages(std::span<Stream> streams, int64_t begin, int64_t end, int64_t then = -1);
  // Takes in dense rows; segments come in ascending order of position. Then the rows that an eviction policy keeps,
  // which every query row sees. The state is head_dim wide.
  void Dense(std::span<const DenseRows> segments);

 private:
  // Slots [first, last) of a tile.
  struct Slots {
    int64_t first = 0, last = 0;
    bool operator==(const Slots&) const = default;
  };
  // Turns a tile of logits, `stride` apart from row to row, into weights: row r sees slots_[r] of its `width` slots,
  // the others get exactly 0. Returns whether any row's weights matter. counts: whether they are part of the mass.
  bool Softmax(int64_t width, int64_t stride, bool counts = true);
  // Whether every row has seen something.
  bool HasMaxima() const;
  // The same for logits of whole pages that every row sees, against the maxima so far: rescaling what was summed is
  // left to pages that rise far above them. nullopt: this is one, and its logits are gone.
  std::optional<bool> WeighAgainstMaxima();
  // One row's part of it, once its weights, of maximum logit `top` and sum `sum`, are made.
  bool TakeIn(int64_t row, float top, float sum, bool counts);
  // next: what is read later; this page's part of it is two shares from next.share on.
  void Page(int64_t j, simd::Upcoming next);
  void DenseTile(std::span<const DenseRows> segments, int64_t tokens);
  void Kept(const kvcache::KeptRows& kept);

  const HeadQuery& query_;
  const StreamState state_;
  float *p_scale_, *logits_;
  Slots* slots_;
  std::byte *scratch_, *center_memory_;
  std::optional<CenterScore> center_;
};

// The states that a pass over some pages left, as StreamState::At lays them out: `runs` of them, number i at data + i *
// stride bytes, each of `rows` query rows. Those from `first` on are meant.
struct PassStates {
  const std::byte* data = nullptr;
  size_t stride = 0;
  int64_t runs = 0, rows = 0, first = 0;
};
// The states of all streams over one kv head's keys: passes over pages (of one value codec), and one over dense rows.
struct JoinedStates {
  std::span<const PassStates> passes;
  const std::byte* dense = nullptr;
  int64_t Runs() const;
};
// out [rows, head_dim]: the answers. memory: JoinBytes for as many runs as all passes have together.
size_t JoinBytes(const kvcache::HeadView& head, int64_t rows, int64_t head_dim, int64_t runs);
void Join(const kvcache::HeadView& head, const JoinedStates& states, MatView<float> out, std::byte* memory);

}  // namespace croquis::attention
