#include "croquis/attention/hyper/level_keys.h"

#include <algorithm>
#include <cmath>

#include "croquis/linalg/gemm.h"

namespace croquis::attention::hyper {
namespace {

constexpr uint64_t kPurpose = Purpose("attention.hyper.samples");

int64_t MostSlots(const Plan& plan) {
  int64_t most = 0;
  for (const Level& l : plan.levels) most = std::max(most, l.slots);
  return most;
}
int64_t MostResiduals(const Plan& plan) {
  int64_t most = 0;
  for (const Level& l : plan.levels) most = std::max(most, l.residual_slots);
  return most;
}
int64_t MostCovarianceRows(const Plan& plan) {
  int64_t most = 0;
  for (const Level& l : plan.levels) most = std::max(most, l.covariance_rows);
  return most;
}
}  // namespace

LevelKeys::LevelKeys(TileType type, const Problem& problem, const Options& options, const Plan& plan, int threads)
    : problem_(problem),
      options_(options),
      plan_(plan),
      sorted_(type, MostSlots(plan), problem.k.dim, problem.v.dim),
      residual_(type, MostResiduals(plan), problem.k.dim, problem.v.dim) {
  const auto residuals = size_t(MostResiduals(plan));
  const int64_t dim = problem.k.dim, width = problem.v.dim;
  const bool moment = options.residual == Residual::kMoment;
  for (int i = 0; i < threads; ++i)
    scratch_.push_back({std::vector<float>(size_t(kTileKeys * dim)), std::vector<float>(size_t(kTileKeys * width)),
                        std::vector<float>(size_t(dim + width))});
  in_block_.resize(residuals), ranks_.resize(residuals), picks_.resize(residuals), cell_spread_.resize(residuals);
  counts_.resize(residuals / kTileKeys);
  for (size_t i = 0; i < residuals; ++i) in_block_[i] = int32_t(i) % int32_t(kTileKeys);
  if (moment) {
    centred_keys_ = Matrix<float>(MostCovarianceRows(plan), dim);
    centred_values_ = Matrix<float>(MostCovarianceRows(plan), width);
    for (size_t i = 0; i < plan.segments; ++i) covariances_.emplace_back(dim, width);
    spreads_.resize(plan.segments);
  }
  // Tables are set up here, because slots are filled from several threads.
  if (residuals > 0) residual_.SetLogWeight(0, 0);
  if (residuals > 0 && moment) residual_.SetFactor(0, 0);
}

int64_t LevelKeys::Bytes(TileType type, const Problem& p, const Plan& plan) {
  return int64_t(KeySet::Bytes(type, MostSlots(plan), p.k.dim, p.v.dim) +
                 KeySet::Bytes(type, MostResiduals(plan), p.k.dim, p.v.dim)) +
         24 * MostResiduals(plan) + 4 * MostCovarianceRows(plan) * (p.k.dim + p.v.dim) +
         4 * int64_t(plan.segments) * p.k.dim * p.v.dim;
}

int64_t LevelKeys::Residuals(const Segment& s, int half) const {
  if (options_.residual == Residual::kMoment) return half == 0 ? s.residuals : 0;
  return half == 0 || s.halves ? counts_[size_t(s.residual_slot + half * s.ResidualHalf()) / kTileKeys] : 0;
}

Range LevelKeys::Inside(const Segment& s, int half, Range window) const {
  const int64_t n = Residuals(s, half);
  if (options_.residual == Residual::kMoment)  // windows are whole cells then
    return {window.first / s.cell, std::min(n, (window.last + s.cell - 1) / s.cell)};
  const auto first = ranks_.begin() + s.residual_slot + half * s.ResidualHalf(), last = first + n;
  return {std::lower_bound(first, last, int32_t(window.first)) - first,
          std::lower_bound(first, last, int32_t(window.last)) - first};
}

void LevelKeys::Fill(Executor& executor, const Index& index, size_t level, int64_t kv) {
  const RowsView k = problem_.k.Head(kv), v = problem_.v.Head(kv);
  const std::span<const int32_t> order = index.Order(level);
  const std::vector<Segment>& segments = plan_.levels[level].segments;
  const bool moment = options_.residual == Residual::kMoment;
  if (!moment)
    executor.ParallelFor(int64_t(segments.size()), [&](int64_t i, int) {
      if (!segments[size_t(i)].exact) Draw(segments[size_t(i)], level, size_t(i), kv, order);
    });
  // Blocks of cells come first, they take longest.
  const int64_t residual_blocks = plan_.levels[level].residual_slots / kTileKeys,
                blocks = plan_.levels[level].slots / kTileKeys;
  executor.ParallelFor(residual_blocks + blocks, [&](int64_t task, int worker) {
    if (task >= residual_blocks) return sorted_.PackBlock(task - residual_blocks, k, v, order);
    if (!moment) return residual_.PackBlock(task, k, v, picks_);
    const auto s = std::partition_point(segments.begin(), segments.end(), [&](const Segment& x) {
      return x.residual_slot + (x.exact ? 0 : x.ResidualSlots()) <= task * kTileKeys;
    });
    PackCells(index, *s, task, k, v, order, scratch_[size_t(worker)]);
  });
  if (!moment) return;
  executor.ParallelFor(int64_t(segments.size()), [&](int64_t i, int) {
    if (!segments[size_t(i)].exact) Multiply(segments[size_t(i)]);
  });
}

// Samples of a segment, by rank in each half.
void LevelKeys::Draw(const Segment& s, size_t level, size_t at, int64_t kv, std::span<const int32_t> order) {
  const Stream random = Stream{options_.seed, kPurpose}.Sub(uint64_t(kv)).Sub(level).Sub(at);
  const int64_t m = s.sorted();
  const auto below = [&](uint64_t i, int64_t n) { return int64_t((uint64_t(random.U32(i)) * uint64_t(n)) >> 32); };
  std::vector<int32_t> halves[2];
  for (int64_t i = 0; i < s.residuals; ++i) {
    if (options_.residual == Residual::kStratified)
      halves[i % 2].push_back(int32_t(i * s.cell + below(uint64_t(i), std::min(s.cell, m - i * s.cell))));
    else if (options_.residual == Residual::kUniform)
      halves[i % 2].push_back(int32_t(below(uint64_t(i), m)));
  }
  if (options_.residual == Residual::kSinks)
    for (int64_t rank = 0; rank < m; ++rank)
      if (order[size_t(s.SortedSlot() + rank)] < s.keys.first + s.residuals) halves[0].push_back(int32_t(rank));
  for (int half = 0; half < 2; ++half) {
    if (half == 0 || s.halves)
      counts_[size_t(s.residual_slot + half * s.ResidualHalf()) / kTileKeys] = int64_t(halves[half].size());
    std::sort(halves[half].begin(), halves[half].end());
    for (size_t i = 0; i < halves[half].size(); ++i) {
      const int32_t rank = halves[half][i];
      const auto slot = size_t(s.residual_slot + half * s.ResidualHalf()) + i;
      ranks_[slot] = rank;
      picks_[slot] = order[size_t(s.SortedSlot() + rank)];
      double weight = 1;
      if (options_.residual == Residual::kStratified)
        weight = double(std::min(s.cell, m - rank / s.cell * s.cell));
      else if (options_.residual == Residual::kUniform)
        weight = double(m) / double(s.residuals);
      residual_.SetLogWeight(int64_t(slot), float(std::log(weight)));
    }
  }
}

// 64 virtual keys: means of cells.
void LevelKeys::PackCells(const Index& index, const Segment& s, int64_t block, const RowsView& k, const RowsView& v,
                          std::span<const int32_t> order, Scratch& scratch) {
  const int64_t first = block * kTileKeys - s.residual_slot, dim = k.dim, width = v.dim;
  std::fill(scratch.keys.begin(), scratch.keys.end(), 0.f);
  std::fill(scratch.values.begin(), scratch.values.end(), 0.f);
  for (int64_t cell = first; cell < std::min(s.residuals, first + kTileKeys); ++cell) {
    float* const key = scratch.keys.data() + (cell - first) * dim;
    float* const value = scratch.values.data() + (cell - first) * width;
    const int64_t at = cell * s.cell, n = std::min(s.cell, s.sorted() - at);
    const auto members = order.subspan(size_t(s.SortedSlot() + at), size_t(n));
    AddRows(k, members, key);
    AddRows(v, members, value);
    double squares = 0;
    for (const int32_t member : members) squares += double(index.KeySquare(member));
    const float inverse = 1 / float(n);
    double mean_square = 0;
    for (int64_t i = 0; i < dim; ++i) key[i] *= inverse, mean_square += double(key[i]) * double(key[i]);
    for (int64_t i = 0; i < width; ++i) value[i] *= inverse;
    const int64_t slot = s.residual_slot + cell;
    cell_spread_[size_t(slot)] = float(std::max(0., squares / double(n) - mean_square) / double(dim));
    residual_.SetLogWeight(slot, std::log(float(n)));
    residual_.SetFactor(slot, cell_spread_[size_t(slot)]);
    AddCovariance(s, cell, members, k, v, key, value, scratch.row.data());
  }
  residual_.PackBlock(block, RowsView(MatView<const float>(scratch.keys.data(), kTileKeys, dim)),
                      RowsView(MatView<const float>(scratch.values.data(), kTileKeys, width)), in_block_);
}

// Some of a cell's keys and values less their means.
void LevelKeys::AddCovariance(const Segment& s, int64_t cell, std::span<const int32_t> members, const RowsView& k,
                              const RowsView& v, const float* key_mean, const float* value_mean, float* row) {
  const int64_t each = s.covariance_rows / s.residuals, n = int64_t(members.size());
  const auto centre = [row](const RowsView& from, int32_t member, const float* mean, float* to) {
    ReadRows(from, member, 1, row);
    for (int64_t i = 0; i < from.dim; ++i) to[i] = row[i] - mean[i];
  };
  for (int64_t t = 0; t < each; ++t) {
    const int32_t member = members[size_t((2 * t + 1) * n / (2 * each))];
    const int64_t at = s.covariance_at + cell * each + t;
    centre(k, member, key_mean, centred_keys_.Row(at));
    centre(v, member, value_mean, centred_values_.Row(at));
  }
}

void LevelKeys::Multiply(const Segment& s) {
  linalg::Gemm(true, false, 1 / float(s.covariance_rows), centred_keys_.View().Rows(s.covariance_at, s.covariance_rows),
               centred_values_.View().Rows(s.covariance_at, s.covariance_rows), 0, covariances_[s.id].View());
  double sum = 0;
  for (int64_t c = 0; c < s.residuals; ++c) sum += double(cell_spread_[size_t(s.residual_slot + c)]);
  spreads_[s.id] = float(sum / double(s.residuals));
}

}  // namespace croquis::attention::hyper
