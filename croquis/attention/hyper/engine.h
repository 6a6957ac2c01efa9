// HyperAttention for one kv head at a time: exact leaves, then level after level, each row's state kept in the output.
#pragma once

#include <cstdint>
#include <vector>

#include "croquis/attention/hyper/index.h"
#include "croquis/attention/hyper/level_keys.h"
#include "croquis/attention/method.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention::hyper {

// Attention with these options, all heads; what methods' Run does.
Status RunWith(const Options& options, TileType type, Executor& executor, const Problem& p, const Output& output,
               RunReport* report);

class Engine {
 public:
  // Takes the memory for a head; check Bytes() first.
  Engine(Executor& executor, const Problem& problem, const Output& output, const Options& options, const Plan& plan,
         TileType type);
  static int64_t Bytes(const Problem& problem, const Plan& plan, TileType type);

  // Answers the query heads of a kv head; adds to the report's sums (est_error and lse_std as sums over rows).
  void RunHead(int64_t kv, RunReport* report);

 private:
  struct Worker {
    Worker(TileType type, int64_t dim, int64_t value_dim);
    QueryTile tile;
    std::vector<float> queries, steps;  // [64, dim], [64, value_dim]
    // States of a tile before residuals and between the halves of samples.
    std::vector<float> before, between, before_m, before_l, between_m, between_l;
    std::vector<float> reference;  // of each row: what its deviations are relative to
    std::vector<float> factors;
    std::vector<Range> windows, visible;
    std::vector<float> log_weights;
    double pairs = 0;
  };
  struct Tile {  // of a segment
    const Segment* segment;
    size_t index;
    int64_t g, first, rows;  // in the order of codes; of the order of rows where the segment is exact
  };

  void TakeHead(int64_t kv);
  void RunLeaf(const Segment& leaf, int64_t g, int64_t first, Worker& w);
  void RunTile(const Tile& t, Worker& w);
  void Fetch(const Tile& t);
  void Windows(const Tile& t, std::span<const uint16_t> codes, Worker& w) const;
  void AttendResiduals(const Tile& t, int half, Worker& w);
  void AttendRun(const KeySet& keys, int64_t base, int64_t n, int64_t rows, bool inside, Worker& w);
  void AddShares(const Tile& t, std::span<const int32_t> rows, Worker& w);
  void RowFactors(const Tile& t, std::span<const int32_t> rows, Worker& w) const;
  void KeepState(Worker& w, int64_t rows, std::vector<float>& m, std::vector<float>& l, std::vector<float>& a);
  void AddSpread(const Tile& t, std::span<const int32_t> rows, Worker& w);
  void Restore(int64_t g, int64_t row, int64_t at, Worker& w);
  void Store(int64_t g, int64_t row, int64_t at, Worker& w);
  void MakeSlopes();
  void Finish(int64_t kv);
  void FinishTile(const Tile& t, int64_t kv, Worker& w);

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

  size_t State(int64_t g, int64_t row) const { return size_t(g * problem_.q.rows + row); }
  std::span<float> Answer(int64_t kv, int64_t g, int64_t row) const {
    return output_.Head(kv * problem_.Group() + g, problem_.q.rows, problem_.v.dim)[row];
  }
  std::span<float> Sums(int64_t g, int64_t row) { return {sums_.Row(int64_t(State(g, row))), size_t(problem_.v.dim)}; }

  Executor& executor_;
  const Problem& problem_;
  const Output& output_;
  const Options& options_;
  const Plan& plan_;
  TileType type_;
  // One kv head and its queries, copied to memory of large pages: rows are gathered many times, and over small pages
  // most gathers miss the table of pages.
  Buffer copy_;
  Problem head_;
  Index index_;
  LevelKeys level_keys_;
  KeySet in_order_;                            // empty where no part is exact
  bool certify_;                               // deviations between halves of samples are kept
  std::vector<std::vector<Tile>> tiles_;       // of each level
  std::vector<Tile> leaf_tiles_, last_tiles_;  // of leaves; of spans
  // Of each span: the covariance that its rows step along, where steps are cut, and the mean spread of a cell.
  struct Slope {
    Matrix<float> covariance;
    double spread = 0, entropy = 0;
  };
  std::vector<Slope> slopes_;
  std::vector<Worker> workers_;
  Matrix<float> sums_;                             // of each row
  std::vector<float> max_, mass_;                  // natural
  std::vector<float> deviation_, mass_deviation_;  // relative to e^max: see AddSpread
};

}  // namespace croquis::attention::hyper
