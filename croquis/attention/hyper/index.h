// Hash codes, orders and global keys of one kv head and the query heads that share it, for all segments of a plan.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/hyper/hash.h"
#include "croquis/attention/hyper/plan.h"
#include "croquis/base/executor.h"
#include "croquis/base/view.h"

namespace croquis::attention::hyper {

class Index {
 public:
  // Takes the memory for a problem of one kv head, which is read again by each Build.
  Index(const Problem& problem, const Options& options, const Plan& plan);
  static int64_t Bytes(const Problem& problem, const Plan& plan);

  // Hashes and sorts keys and queries. kv: numbers the random directions.
  void Build(Executor& executor, int64_t kv);

  // Keys of a level's slots: a segment's globals at its slot, sorted keys from SortedSlot() on.
  std::span<const int32_t> Order(size_t level) const { return orders_[level]; }
  // Rows of a segment in the order of their codes, for query head g of the group; and the codes.
  std::span<const int32_t> SortedRows(const Segment& s, int64_t g) const {
    return {row_order_.data() + g * plan_.rows + s.row_at, size_t(s.rows.size())};
  }
  std::span<const uint16_t> SortedCodes(const Segment& s, int64_t g) const {
    return {row_code_.data() + g * plan_.rows + s.row_at, size_t(s.rows.size())};
  }
  // The `block` keys, in ranks among the sorted keys, around the place of a code (clipped to the ends, not moved).
  Range CodeWindow(const Segment& s, uint32_t code) const;
  float KeySquare(int64_t key) const { return key_square_[size_t(key)]; }
  float RowSquare(int64_t g, int64_t row) const { return row_square_[size_t(g * problem_.q.rows + row)]; }

 private:
  struct Chunk {  // of a segment's keys (g < 0) or of its rows for query head g
    int64_t segment;
    int64_t g, first, last;
  };
  struct Candidate {
    float score;
    int32_t key;
  };
  static constexpr int64_t kWidth = 16;  // of projections: directions and padding
  using Sums = std::array<double, kWidth>;

  void MakeProbes(Executor& executor, int64_t kv);
  void Project(Executor& executor);
  void Survey(const Chunk& chunk, size_t at);
  static void Best(const std::vector<float>& numbers, const Chunk& chunk, size_t most, std::vector<Candidate>& heap);
  void Decide(size_t segment);
  void ChooseGlobals(size_t segment);
  void Hash(const Chunk& chunk, size_t at);
  void Starts(size_t segment);
  void Scatter(const Chunk& chunk, size_t at);
  Range PastRows() const;

  const Problem& problem_;
  const Options& options_;
  const Plan& plan_;
  int64_t key_width_;                     // of projections of keys: directions, then scores of global keys; padded
  std::vector<const Segment*> segments_;  // those that are not exact
  std::vector<size_t> level_of_;
  std::vector<Chunk> chunks_;
  std::vector<std::pair<size_t, size_t>> chunks_of_;  // of each segment: its chunks, keys first, then rows by head

  std::vector<float> key_probes_, row_probes_;  // what rows are multiplied with: [dim, key_width_], [dim, 16]
  Matrix<float> key_projection_, row_projection_;
  std::vector<float> key_square_, row_square_, key_score_, key_distance_;
  std::vector<Sums> chunk_sums_;
  std::vector<std::vector<Candidate>> by_score_, by_distance_;      // best of each chunk
  std::vector<std::vector<uint16_t>> rank_tables_;                  // by bits; empty where none has so many
  std::vector<std::vector<uint32_t>> counts_;                       // of codes in each chunk, then where to put them
  std::vector<std::vector<std::array<float, kWidth>>> thresholds_;  // of each segment: keys', then each head's
  std::vector<std::vector<int32_t>> globals_;                       // of each segment, ascending
  std::vector<uint16_t> key_code_, row_hash_, row_code_;
  std::vector<std::vector<int32_t>> orders_;
  std::vector<int32_t> row_order_, starts_;
};

}  // namespace croquis::attention::hyper
