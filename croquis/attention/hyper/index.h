// Hash codes, orders and global keys of one kv head and the query heads that share it, for all segments of a plan.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/hyper/hash.h"
#include "croquis/attention/hyper/plan.h"
#include "croquis/attention/tiles.h"
#include "croquis/base/executor.h"
#include "croquis/base/view.h"

namespace croquis::attention::hyper {

class Index {
 public:
  // Takes the memory for a problem of one kv head, which is read again by each Build.
  // type: of the products that rows are hashed by.
  Index(TileType type, const Problem& problem, const Options& options, const Plan& plan);
  static int64_t Bytes(const Problem& problem, const Plan& plan);

  // Hashes and sorts keys and queries. kv: numbers the random directions.
  void Build(Executor& executor, int64_t kv);

  // Keys of a segment's slots: its globals, on a block's boundary the sorted keys; something to read in unused slots.
  std::span<const int32_t> Order(const Segment& s) const { return {orders_.data() + s.order_at, size_t(s.Slots())}; }
  // Rows of a group in the order of their codes, for query head g of the group of heads; and the codes.
  std::span<const int32_t> SortedRows(const Group& group, int64_t g) const {
    return {row_order_.data() + g * plan_.rows + group.row_at, size_t(group.rows.size())};
  }
  std::span<const uint16_t> SortedCodes(const Group& group, int64_t g) const {
    return {row_code_.data() + g * plan_.rows + group.row_at, size_t(group.rows.size())};
  }
  // The `block` keys of a segment, in ranks among the sorted keys, around the place of the code of a row of `bits` bits
  // (clipped to the ends, not moved).
  Range CodeWindow(const Segment& s, uint32_t code, int bits) const;
  float KeySquare(int64_t key) const { return key_square_[size_t(key)]; }
  float RowSquare(int64_t g, int64_t row) const { return row_square_[size_t(g * problem_.q.rows + row)]; }

 private:
  struct Chunk {  // of a segment's keys (g < 0) or of a group's rows for query head g
    size_t owner;
    int64_t g;
    Range rows;
  };
  struct Candidate {
    float score;
    int32_t key;
  };
  static constexpr int64_t kWidth = 16;  // of projections: directions and padding
  using Sums = std::array<double, kWidth>;

  // Keys between two places where segments begin or end, and what all segments that hold them need of them.
  struct Piece {
    Range keys;
    Sums sums = {};
    std::vector<Candidate> by_score = {}, by_distance = {};  // the best
  };
  using Thresholds = std::array<float, kWidth>;
  struct Bounds {
    size_t first = 0, last = 0;
  };

  void CutPieces();
  void CutChunks();
  void MakeProbes(Executor& executor, int64_t kv);
  void Project(Executor& executor);
  void ProjectTile(bool key, int64_t g, int64_t first, QueryTile& tile);
  static void Best(const std::vector<float>& numbers, Range keys, size_t most, std::vector<Candidate>& heap);
  static Sums SumOf(const float* z, int64_t stride, int64_t n);
  void Survey(Piece& piece);
  void Centre(const Group& group, int64_t g);
  void Decide(const Segment& s);
  void ChooseGlobals(const Segment& s);
  void Hash(const Chunk& chunk, size_t at);
  template <class Fn>
  void Places(Bounds chunks, const Fn& fn);
  void StartKeys(const Segment& s);
  void Scatter(const Chunk& chunk, size_t at);
  Range PastRows() const;
  const float* RowProjection(int64_t g, int64_t row) const { return row_projection_.Row(g * problem_.q.rows + row); }

  const TileType type_;
  const Problem& problem_;
  const Options& options_;
  const Plan& plan_;
  int64_t key_width_;                 // of projections of keys: directions, then scores of global keys; padded
  std::vector<const Group*> groups_;  // by id
  std::vector<Piece> pieces_;
  std::vector<Chunk> chunks_;
  std::vector<Bounds> pieces_of_, key_chunks_;  // of each segment
  std::vector<Bounds> row_chunks_;              // of each group, head by head

  // What rows are multiplied with: [dim, key_width_] and [dim, 16], as values of a set.
  Matrix<float> key_probes_, row_probes_;
  KeySet packed_key_probes_, packed_row_probes_;
  Matrix<float> key_projection_, row_projection_;
  std::vector<float> key_square_, row_square_, key_score_, key_distance_;
  std::vector<std::vector<uint16_t>> rank_tables_;           // by bits; empty where none has so many
  std::vector<std::vector<uint32_t>> counts_;                // of codes in each chunk, then where to put them
  std::vector<Thresholds> key_thresholds_, row_thresholds_;  // of each segment; of each group, head by head
  std::vector<std::vector<int32_t>> globals_;                // of each segment, ascending
  std::vector<uint16_t> key_code_, row_hash_, row_code_;
  std::vector<int32_t> orders_, row_order_, starts_;
};

}  // namespace croquis::attention::hyper
