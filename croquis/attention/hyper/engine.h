// HyperAttention for one kv head at a time: stage after stage, groups of rows in hash order and then rows in order,
// each row's state kept in the output.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/attention/hyper/index.h"
#include "croquis/attention/hyper/segment_keys.h"
#include "croquis/attention/method.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention::hyper {

class Engine {
 public:
  // Takes the memory for a head and `threads` workers; check Bytes() first. Data of the problem and the output may be
  // others at each RunHead, nothing else.
  Engine(int threads, const Problem& problem, const Output& output, const Options& options, const Plan& plan,
         TileType type);
  static int64_t Bytes(const Problem& problem, const Plan& plan, TileType type);

  // Answers the query heads of a kv head, by the threads of `executor`; adds to the report's sums (est_error and
  // lse_std as sums over rows).
  void RunHead(Executor& executor, int64_t kv, RunReport* report);

 private:
  // Neighbouring rows of a tile that meet the same keys of a segment, or keys close by: ranks among the sorted ones.
  struct Share {
    int64_t first = 0, rows = 0;
    Range window;      // of all the rows
    bool same = true;  // each row's
  };
  // What is known of a row, but for its sums. Base 2; deviations are relative to 2^max: the mass that cells gave, for
  // the certificate; with samples, see AddSpread.
  struct RowState {
    float max = simd::kMasked, mass = 0;  // kMasked: nothing seen yet
    float deviation = 0, mass_deviation = 0;
  };
  struct Worker {
    Worker(TileType type, int64_t dim, int64_t value_dim);
    QueryTile tile;
    std::vector<KeyRange> ranges;  // of the next call
    std::vector<Share> shares;     // of each segment of a group: kShares
    std::vector<Range> windows;    // of each segment: a row each, where rows of a share have windows of their own
    std::vector<float> squares;    // of each row: |q|^2
    std::vector<Range> visible;    // what `ranges` refer to
    std::vector<float> weights, factors;
    size_t visible_used = 0, weights_used = 0;
    Matrix<float> covariance;      // of a group
    std::vector<float> steps;      // of each row
    std::vector<float> cell_mass;  // of each row: what cells gave, relative to 2^reference
    // States of a tile before residuals and between the halves of samples.
    std::vector<float> before, between, before_m, before_l, between_m, between_l;
    std::vector<float> reference;  // of each row, base 2: what its deviations are relative to
    double pairs = 0;
  };
  // What the rows of a group step along, where steps are cut, and the mean spread of a cell.
  struct Slope {
    KeySet covariance;  // its rows as values
    double spread = 0, entropy = 0;
  };
  struct GroupTile {
    const Group* group;
    int64_t g, first, rows;  // in the order of codes
  };
  struct LeafTile {
    const Leaf* leaf;
    int64_t g, first, rows;
  };
  struct StageTiles {
    std::vector<std::vector<GroupTile>> passes;
    std::vector<LeafTile> leaves;
  };

  void TakeHead(int64_t kv);
  void RunStage(int64_t kv, size_t stage);
  void RunLeaf(const LeafTile& t, int64_t kv, Worker& w);
  void Resume(int64_t kv, int64_t g, int64_t row, int64_t at, Worker& w);
  void Keep(int64_t g, int64_t row, int64_t at, Worker& w);

  // group_tiles.cc
  void MakeSlope(const Group& group, Worker& w);
  void RunTile(const GroupTile& t, int64_t kv, Worker& w);
  void Fetch(const GroupTile& t, int64_t kv) const;
  void FetchKeys(const GroupTile& t) const;
  void Windows(const GroupTile& t, size_t segment, Worker& w) const;
  void AddWindows(const GroupTile& t, size_t segment, Worker& w) const;
  void AddResiduals(const GroupTile& t, size_t segment, int half, Worker& w) const;
  void AddOwnResiduals(size_t segment, int half, const Share& share, KeyRange range, const Segment& s, Worker& w) const;
  void RowFactors(const Segment& s, std::span<const float> squares, float* factors) const;
  void AddMassOfCells(const GroupTile& t, std::span<const int32_t> rows, Worker& w);
  void Step(const GroupTile& t, Worker& w) const;
  void KeepState(Worker& w, int64_t rows, std::vector<float>& m, std::vector<float>& l, std::vector<float>& a) const;
  void AddSpread(const GroupTile& t, std::span<const int32_t> rows, Worker& w);

  // certificate.cc
  struct ProbeResult {
    std::vector<int32_t> rows;
    std::vector<double> errors, lse_errors;
  };
  void Certify(int64_t kv, RunReport* report);
  void CertifyHead(int64_t kv, int64_t g, double floor, const ProbeResult& probes, std::vector<int32_t>& failed,
                   RunReport* report) const;
  std::vector<int32_t> ProbeRows(int64_t head) const;
  std::vector<ProbeResult> Probe(int64_t kv, double floor);
  void AttendExactly(int64_t g, std::span<const int32_t> rows, Range part, Worker& w);
  void Recompute(int64_t kv, int64_t g, const std::vector<int32_t>& rows);

  bool moment() const { return options_.residual == Residual::kMoment; }
  const RowState& State(int64_t g, int64_t row) const { return states_[size_t(g * problem_.q.rows + row)]; }
  RowState& State(int64_t g, int64_t row) { return states_[size_t(g * problem_.q.rows + row)]; }
  std::span<const Share> Shares(size_t segment, const Worker& w) const;
  // Holds a row's weighted sums until its leaf is done, then its answer.
  std::span<float> Answer(int64_t kv, int64_t g, int64_t row) const {
    return output_.Head(kv * problem_.Group() + g, problem_.q.rows, problem_.v.dim)[row];
  }

  Executor* executor_ = nullptr;  // of the head that is being answered
  const Problem& problem_;
  const Output& output_;
  const Options& options_;
  const Plan& plan_;
  TileType type_;
  // One kv head and its queries; where rows of other heads lie between theirs they are copied: rows are gathered many
  // times, and most gathers would miss the table of pages.
  Buffer copy_;
  Problem head_;
  Index index_;
  SegmentKeys segment_keys_;
  KeySet in_order_;  // empty where no part is exact
  bool certify_;     // deviations between halves of samples are kept
  std::vector<StageTiles> tiles_;
  std::vector<Slope> slopes_;  // of each group
  std::vector<Worker> workers_;
  std::vector<RowState> states_;
};

}  // namespace croquis::attention::hyper
