#include "croquis/attention/hyper/segment_keys.h"

#include <algorithm>
#include <cmath>

#include "croquis/linalg/gemm.h"
#include "croquis/simd/row_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kUnit = 256;    // keys of a task, at least
constexpr int64_t kFetched = 16;  // first keys of a cell that are asked for while the one before is worked on
constexpr uint64_t kPurpose = Purpose("attention.hyper.samples");

// Asks for rows of keys and values: sorted ones lie scattered.
void FetchRows(std::span<const int32_t> rows, const RowsView& k, const RowsView& v) {
  constexpr int64_t kLine = 64;
  for (const int32_t row : rows)
    for (const RowsView* x : {&k, &v})
      for (int64_t at = 0; at < x->dim * simd::RowTypeBytes(x->type); at += kLine)
        __builtin_prefetch(x->Row(row) + at, 0, 3);
}

}  // namespace

SegmentKeys::SegmentKeys(TileType type, const Problem& problem, const Options& options, const Plan& plan)
    : problem_(problem),
      options_(options),
      plan_(plan),
      sorted_(type, plan.slots, problem.k.dim, problem.v.dim),
      residual_(type, plan.residual_slots, problem.k.dim, problem.v.dim) {
  const auto residuals = size_t(plan.residual_slots);
  const int64_t dim = problem.k.dim, width = problem.v.dim;
  const bool moment = options.residual == Residual::kMoment;
  ranks_.resize(residuals), picks_.resize(residuals), cell_spread_.resize(residuals), log_weights_.resize(residuals);
  counts_.resize(residuals / kTileKeys);
  if (moment) {
    centred_keys_ = Matrix<float>(plan.covariance_rows, dim);
    centred_values_ = Matrix<float>(plan.covariance_rows, width);
    for (size_t i = 0; i < plan.segments.size(); ++i) covariances_.emplace_back(dim, width);
    spreads_.resize(plan.segments.size());
    mean_keys_ = Matrix<float>(plan.residual_slots, dim), mean_values_ = Matrix<float>(plan.residual_slots, width);
    for (const Stage& stage : plan.stages) {
      units_.emplace_back();
      for (const Segment* s : stage.fill) {
        const int64_t each = std::max<int64_t>(1, kUnit / s->cell);
        for (int64_t at = 0; at < s->residuals; at += each)
          units_.back().push_back({s, {at, std::min(s->residuals, at + each)}});
      }
    }
  }
  // Tables are set up here, because slots are filled from several threads.
  if (residuals > 0) residual_.SetLogWeight(0, 0);
  if (residuals > 0 && moment) residual_.SetFactor(0, 0);
}

int64_t SegmentKeys::Bytes(TileType type, const Problem& p, const Plan& plan) {
  return int64_t(KeySet::Bytes(type, plan.slots, p.k.dim, p.v.dim) +
                 KeySet::Bytes(type, plan.residual_slots, p.k.dim, p.v.dim)) +
         (24 + 4 * (p.k.dim + p.v.dim)) * plan.residual_slots + 4 * plan.covariance_rows * (p.k.dim + p.v.dim) +
         4 * int64_t(plan.segments.size()) * p.k.dim * p.v.dim;
}

int64_t SegmentKeys::Residuals(const Segment& s, int half) const {
  if (options_.residual == Residual::kMoment) return half == 0 ? s.residuals : 0;
  return half == 0 || s.halves ? counts_[size_t(s.residual_slot + half * s.ResidualHalf()) / kTileKeys] : 0;
}

Range SegmentKeys::Inside(const Segment& s, int half, Range window) const {
  const int64_t n = Residuals(s, half);
  if (options_.residual == Residual::kMoment)  // windows are whole cells then
    return {window.first / s.cell, std::min(n, (window.last + s.cell - 1) / s.cell)};
  const auto first = ranks_.begin() + s.residual_slot + half * s.ResidualHalf(), last = first + n;
  return {std::lower_bound(first, last, int32_t(window.first)) - first,
          std::lower_bound(first, last, int32_t(window.last)) - first};
}

// Block `block` of a segment's slots.
void SegmentKeys::PackSorted(const Segment& s, int64_t block, std::span<const int32_t> order) {
  sorted_.PackRows(s.slot / kTileKeys + block, problem_.k.Head(0), problem_.v.Head(0),
                   order.subspan(size_t(block * kTileKeys), size_t(kTileKeys)));
}

void SegmentKeys::Fill(Executor& executor, const Index& index, size_t stage, int64_t kv) {
  if (options_.residual == Residual::kMoment) return FillMoments(executor, index, stage);
  const std::vector<const Segment*>& segments = plan_.stages[stage].fill;
  // Blocks of sorted keys and of residuals, segment by segment.
  std::vector<int64_t> ends;
  int64_t blocks = 0;
  for (const Segment* s : segments) ends.push_back(blocks += (s->Slots() + s->ResidualSlots()) / kTileKeys);
  executor.ParallelFor(int64_t(segments.size()),
                       [&](int64_t i, int) { Draw(*segments[size_t(i)], kv, index.Order(*segments[size_t(i)])); });
  executor.ParallelFor(blocks, [&](int64_t task, int) {
    const auto i = size_t(std::upper_bound(ends.begin(), ends.end(), task) - ends.begin());
    const Segment& s = *segments[i];
    const int64_t block = task - (i > 0 ? ends[i - 1] : 0), sorted = s.Slots() / kTileKeys;
    if (block < sorted)
      PackSorted(s, block, index.Order(s));
    else
      residual_.PackBlock(s.residual_slot / kTileKeys + block - sorted, problem_.k.Head(0), problem_.v.Head(0), picks_);
  });
}

// A cell's keys are summed and packed one after the other, while they are in the cache.
void SegmentKeys::FillMoments(Executor& executor, const Index& index, size_t stage) {
  const RowsView k = problem_.k.Head(0), v = problem_.v.Head(0);
  const std::vector<Unit>& units = units_[stage];
  executor.ParallelFor(int64_t(units.size()), [&](int64_t task, int) {
    const Segment& s = *units[size_t(task)].segment;
    const Range cells = units[size_t(task)].cells;
    const std::span<const int32_t> order = index.Order(s);
    const int64_t base = s.GlobalSlots();
    if (cells.first == 0)
      for (int64_t block = 0; block < base / kTileKeys; ++block) PackSorted(s, block, order);
    int64_t packed = (cells.first * s.cell + kTileKeys - 1) / kTileKeys * kTileKeys;
    for (int64_t cell = cells.first; cell < cells.last; ++cell) {
      const int64_t first = cell * s.cell, last = std::min(first + s.cell, s.sorted());
      FetchRows(order.subspan(size_t(base + last), size_t(std::min(kFetched, s.sorted() - last))), k, v);
      AddCell(index, s, cell, order.subspan(size_t(base + first), size_t(last - first)), k, v);
      for (; packed < last; packed += kTileKeys) PackSorted(s, (base + packed) / kTileKeys, order);
    }
  });
  const std::vector<const Segment*>& segments = plan_.stages[stage].fill;
  executor.ParallelFor(int64_t(segments.size()), [&](int64_t task, int) {
    const Segment& s = *segments[size_t(task)];
    for (int64_t block = s.residual_slot / kTileKeys; block < (s.residual_slot + s.ResidualSlots()) / kTileKeys;
         ++block)
      residual_.PackBlock(block, RowsView(mean_keys_.View()), RowsView(mean_values_.View()));
    Multiply(s);
  });
}

void SegmentKeys::MeasureValues(Executor& executor) {
  if (options_.residual != Residual::kValues) return;
  constexpr int64_t kRows = 256;
  const RowsView v = problem_.v.Head(0);
  value_squares_.resize(size_t(v.rows));
  executor.ParallelFor((v.rows + kRows - 1) / kRows, [&](int64_t task, int) {
    const int64_t first = task * kRows, n = std::min(kRows, v.rows - first);
    simd::RowLoops().squares(v.type, v.Row(first), v.stride, n, v.dim, value_squares_.data() + first);
  });
}

// Samples of a segment, by rank in each half.
void SegmentKeys::Draw(const Segment& s, int64_t kv, std::span<const int32_t> order) {
  const Stream random = Stream{options_.seed, kPurpose}.Sub(uint64_t(kv)).Sub(s.id);
  order = order.subspan(size_t(s.GlobalSlots()));
  const int64_t m = s.sorted();
  const auto below = [&](uint64_t i, int64_t n) { return int64_t((uint64_t(random.U32(i)) * uint64_t(n)) >> 32); };
  std::vector<int32_t> halves[2];
  // Probability of the key of a rank: half by the squared norm of its value, half alike.
  std::vector<double> below_rank;  // sums of squares of earlier ranks
  if (options_.residual == Residual::kValues) {
    below_rank.resize(size_t(m + 1));
    for (int64_t r = 0; r < m; ++r)
      below_rank[size_t(r + 1)] = below_rank[size_t(r)] + double(value_squares_[size_t(order[size_t(r)])]);
  }
  const auto probability = [&](int64_t rank) {
    const double all = below_rank.back(), alike = 1 / double(m);
    return all > 0 ? (below_rank[size_t(rank + 1)] - below_rank[size_t(rank)]) / all / 2 + alike / 2 : alike;
  };
  for (int64_t i = 0; i < s.residuals; ++i) {
    if (options_.residual == Residual::kValues) {
      // Two words a sample: which of the two, and where.
      const double where = (double(random.U32(uint64_t(2 * i + 1))) + .5) * 0x1p-32;
      const bool by_value = below_rank.back() > 0 && (random.U32(uint64_t(2 * i)) & 1) != 0;
      const auto found = std::upper_bound(below_rank.begin() + 1, below_rank.end() - 1, where * below_rank.back());
      halves[i % 2].push_back(by_value ? int32_t(found - below_rank.begin() - 1) : int32_t(where * double(m)));
    }
    if (options_.residual == Residual::kStratified)
      halves[i % 2].push_back(int32_t(i * s.cell + below(uint64_t(i), std::min(s.cell, m - i * s.cell))));
    else if (options_.residual == Residual::kUniform)
      halves[i % 2].push_back(int32_t(below(uint64_t(i), m)));
  }
  if (options_.residual == Residual::kSinks)
    for (int64_t rank = 0; rank < m; ++rank)
      if (order[size_t(rank)] < s.keys.first + s.residuals) halves[0].push_back(int32_t(rank));
  for (int half = 0; half < 2; ++half) {
    if (half == 0 || s.halves)
      counts_[size_t(s.residual_slot + half * s.ResidualHalf()) / kTileKeys] = int64_t(halves[half].size());
    std::sort(halves[half].begin(), halves[half].end());
    for (size_t i = 0; i < halves[half].size(); ++i) {
      const int32_t rank = halves[half][i];
      const auto slot = size_t(s.residual_slot + half * s.ResidualHalf()) + i;
      ranks_[slot] = rank;
      picks_[slot] = order[size_t(rank)];
      double weight = 1;
      if (options_.residual == Residual::kStratified)
        weight = double(std::min(s.cell, m - rank / s.cell * s.cell));
      else if (options_.residual == Residual::kUniform)
        weight = double(m) / double(s.residuals);
      else if (options_.residual == Residual::kValues)
        weight = 1 / (double(s.residuals) * probability(rank));
      residual_.SetLogWeight(int64_t(slot), float(std::log(weight)));
    }
  }
}

// A virtual key: the mean of a cell. Some of its keys and values, less their means, go into the covariance.
void SegmentKeys::AddCell(const Index& index, const Segment& s, int64_t cell, std::span<const int32_t> members,
                          const RowsView& k, const RowsView& v) {
  const int64_t slot = s.residual_slot + cell, n = int64_t(members.size()), dim = k.dim, width = v.dim;
  float *const key = mean_keys_.Row(slot), *const value = mean_values_.Row(slot);
  std::fill_n(key, dim, 0.f), std::fill_n(value, width, 0.f);
  AddRows(k, members, key);
  AddRows(v, members, value);
  double squares = 0, mean_square = 0;
  for (const int32_t member : members) squares += double(index.KeySquare(member));
  const float inverse = 1 / float(n);
  for (int64_t i = 0; i < dim; ++i) key[i] *= inverse, mean_square += double(key[i]) * double(key[i]);
  for (int64_t i = 0; i < width; ++i) value[i] *= inverse;
  cell_spread_[size_t(slot)] = float(std::max(0., squares / double(n) - mean_square) / double(dim));
  residual_.SetLogWeight(slot, std::log(float(n)));
  log_weights_[size_t(slot)] = std::log2(float(n));
  residual_.SetFactor(slot, cell_spread_[size_t(slot)]);
  const int64_t each = s.covariance_rows / s.residuals;
  for (int64_t t = 0; t < each; ++t) {
    const int32_t member = members[size_t((2 * t + 1) * n / (2 * each))];
    float *const centred_key = centred_keys_.Row(s.covariance_at + cell * each + t), *const centred_value =
                                                                                         centred_values_.Row(
                                                                                             s.covariance_at +
                                                                                             cell * each + t);
    ReadRows(k, member, 1, centred_key);
    ReadRows(v, member, 1, centred_value);
    for (int64_t i = 0; i < dim; ++i) centred_key[i] -= key[i];
    for (int64_t i = 0; i < width; ++i) centred_value[i] -= value[i];
  }
}

void SegmentKeys::Multiply(const Segment& s) {
  linalg::Gemm(true, false, 1 / float(s.covariance_rows), centred_keys_.View().Rows(s.covariance_at, s.covariance_rows),
               centred_values_.View().Rows(s.covariance_at, s.covariance_rows), 0, covariances_[s.id].View());
  double sum = 0;
  for (int64_t c = 0; c < s.residuals; ++c) sum += double(cell_spread_[size_t(s.residual_slot + c)]);
  spreads_[s.id] = float(sum / double(s.residuals));
}

}  // namespace croquis::attention::hyper
