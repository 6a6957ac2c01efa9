#include "croquis/attention/hyper/index.h"

#include <algorithm>
#include <cmath>

#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/row_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kChunk = 2048;      // keys or rows of a parallel task
constexpr int64_t kSinks = 4;         // first keys of the sequence, which are always global
constexpr uint16_t kGlobal = 0xFFFF;  // in place of a code
constexpr int64_t kMostHeads = 15;    // of a group, whose mean queries are looked at
constexpr uint64_t kPurpose = Purpose("attention.hyper.directions");

}  // namespace

Index::Index(const Problem& problem, const Options& options, const Plan& plan)
    : problem_(problem), options_(options), plan_(plan) {
  const int64_t scores = options.globals > 0 ? std::min(problem.Group(), kMostHeads) + 1 : 0;
  key_width_ = (kDirections + scores + kWidth - 1) / kWidth * kWidth;
  for (size_t level = 0; level < plan.levels.size(); ++level) {
    orders_.emplace_back(size_t(plan.levels[level].slots));
    for (const Segment& s : plan.levels[level].segments)
      if (!s.exact) segments_.push_back(&s), level_of_.push_back(level);
  }
  for (size_t i = 0; i < segments_.size(); ++i) {
    const Segment& s = *segments_[i];
    const size_t first = chunks_.size();
    for (int64_t at = s.keys.first; at < s.keys.last; at += kChunk)
      chunks_.push_back({int64_t(i), -1, at, std::min(at + kChunk, s.keys.last)});
    for (int64_t g = 0; g < problem.Group(); ++g)
      for (int64_t at = s.rows.first; at < s.rows.last; at += kChunk)
        chunks_.push_back({int64_t(i), g, at, std::min(at + kChunk, s.rows.last)});
    chunks_of_.emplace_back(first, chunks_.size());
  }
  const size_t chunks = chunks_.size(), keys = size_t(problem.k.rows), rows = size_t(problem.Group() * problem.q.rows);
  key_projection_ = Matrix<float>(problem.k.rows, key_width_);
  row_projection_ = Matrix<float>(problem.Group() * problem.q.rows, kWidth);
  key_square_.resize(keys), row_square_.resize(rows);
  if (scores > 0) key_score_.resize(keys), key_distance_.resize(keys);
  chunk_sums_.resize(chunks), by_score_.resize(chunks), by_distance_.resize(chunks), counts_.resize(chunks);
  for (size_t i = 0; i < chunks; ++i) counts_[i].resize(size_t(1) << segments_[size_t(chunks_[i].segment)]->bits);
  rank_tables_.resize(kDirections + 1);
  for (const Segment* s : segments_)
    if (rank_tables_[size_t(s->bits)].empty()) rank_tables_[size_t(s->bits)] = RankTable(s->bits);
  thresholds_.assign(segments_.size(), std::vector<std::array<float, kWidth>>(size_t(1 + problem.Group())));
  globals_.resize(segments_.size());
  key_code_.resize(size_t(plan.keys));
  row_hash_.resize(size_t(plan.rows * problem.Group()));
  row_code_.resize(row_hash_.size());
  row_order_.resize(row_hash_.size());
  starts_.resize(size_t(plan.starts));
}

int64_t Index::Bytes(const Problem& p, const Plan& plan) {
  const int64_t width = kDirections + kWidth + std::min(p.Group(), kMostHeads) + 1;
  int64_t slots = 0;
  for (const Level& level : plan.levels) slots += level.slots;
  return p.k.rows * (width + 3) * 4 + p.Group() * p.q.rows * (kWidth + 1) * 4 + plan.keys * 2 +
         plan.rows * p.Group() * 8 + plan.starts * 4 + slots * 4;
}

Range Index::CodeWindow(const Segment& s, uint32_t code) const {
  const int32_t* const start = starts_.data() + s.start_at + code;
  const int64_t middle = (int64_t(start[0]) + start[1]) / 2;
  return {std::max<int64_t>(0, middle - s.block / 2), std::min(s.sorted(), middle + (s.block + 1) / 2)};
}

void Index::Build(Executor& executor, int64_t kv) {
  if (segments_.empty()) return;
  MakeProbes(executor, kv);
  Project(executor);
  const auto chunks = int64_t(chunks_.size()), segments = int64_t(segments_.size());
  executor.ParallelFor(chunks, [&](int64_t i, int) { Survey(chunks_[size_t(i)], size_t(i)); });
  executor.ParallelFor(segments, [&](int64_t i, int) { Decide(size_t(i)); });
  executor.ParallelFor(chunks, [&](int64_t i, int) { Hash(chunks_[size_t(i)], size_t(i)); });
  executor.ParallelFor(segments, [&](int64_t i, int) { Starts(size_t(i)); });
  executor.ParallelFor(chunks, [&](int64_t i, int) { Scatter(chunks_[size_t(i)], size_t(i)); });
}

// Positions before all segments' queries: what a strict method may learn directions from.
Range Index::PastRows() const {
  int64_t first = problem_.k.rows;
  for (const Segment* s : segments_) first = std::min(first, s->rows.first + problem_.mask.offset);
  return {0, std::clamp<int64_t>(first, 0, problem_.k.rows)};
}

void Index::MakeProbes(Executor& executor, int64_t kv) {
  const RowsView k = problem_.k.Head(0);
  const int64_t dim = k.dim;
  const Stream random = Stream{options_.seed, kPurpose}.Sub(uint64_t(kv));
  const Range past = options_.strict && problem_.mask.causal ? PastRows() : Range{0, k.rows};
  const std::vector<float> directions =
      options_.paper ? RandomDirections(dim, random) : PrincipalDirections(k, past, random);
  key_probes_.assign(size_t(dim * key_width_), 0.f), row_probes_.assign(size_t(dim * kWidth), 0.f);
  for (int64_t i = 0; i < dim; ++i) {
    std::copy_n(directions.data() + i * kDirections, kDirections, key_probes_.data() + i * key_width_);
    std::copy_n(directions.data() + i * kDirections, kDirections, row_probes_.data() + i * kWidth);
  }
  if (key_score_.empty()) return;
  // Mean queries and the mean key, of up to 1024 rows each: columns behind the directions.
  const int64_t heads = std::min(problem_.Group(), kMostHeads);
  executor.ParallelFor(heads + 1, [&](int64_t c, int) {
    const bool key = c == heads;
    const RowsView from = key ? k : problem_.q.Head(c);
    const int64_t offset = problem_.mask.causal ? problem_.mask.offset : 0;
    const Range rows = key ? past
                       : options_.strict && problem_.mask.causal
                           ? Range{0, std::clamp<int64_t>(past.last - offset, 0, from.rows)}
                           : Range{0, from.rows};
    const int64_t n = std::min<int64_t>(1024, rows.size());
    std::vector<int32_t> sample(static_cast<size_t>(n));
    for (int64_t s = 0; s < n; ++s) sample[size_t(s)] = int32_t(rows.first + s * rows.size() / n);
    std::vector<float> sum(static_cast<size_t>(dim));
    AddRows(from, sample, sum.data());
    for (int64_t i = 0; i < dim && n > 0; ++i)
      key_probes_[size_t(i * key_width_ + kDirections + c)] = sum[size_t(i)] / float(n);
  });
}

void Index::Project(Executor& executor) {
  constexpr int64_t kRows = 64;
  const int64_t group = problem_.Group(), dim = problem_.k.dim, heads = std::min(group, kMostHeads);
  const int64_t key_tasks = (problem_.k.rows + kRows - 1) / kRows, row_tasks = (problem_.q.rows + kRows - 1) / kRows;
  std::vector<std::vector<float>> buffers(size_t(executor.threads()), std::vector<float>(size_t(kRows * dim)));
  executor.ParallelFor(key_tasks + group * row_tasks, [&](int64_t task, int worker) {
    const bool key = task < key_tasks;
    const int64_t g = key ? 0 : (task - key_tasks) / row_tasks;
    const RowsView from = key ? problem_.k.Head(0) : problem_.q.Head(g);
    const int64_t first = (key ? task : (task - key_tasks) % row_tasks) * kRows, n = std::min(kRows, from.rows - first);
    const float* rows = reinterpret_cast<const float*>(from.Row(first));
    int64_t stride = from.stride;
    if (from.type != simd::RowType::kF32) {
      ReadRows(from, first, n, buffers[size_t(worker)].data());
      rows = buffers[size_t(worker)].data(), stride = dim;
    }
    float* const squares = key ? key_square_.data() + first : row_square_.data() + g * from.rows + first;
    simd::RowLoops().squares(rows, stride, n, dim, squares);
    const int64_t width = key ? key_width_ : kWidth;
    float* const to = key ? key_projection_.Row(first) : row_projection_.Row(g * from.rows + first);
    std::fill_n(to, n * width, 0.f);
    simd::Dense().small_gemm(rows, stride, key ? key_probes_.data() : row_probes_.data(), width, to, width, n, width,
                             dim);
    if (!key || key_score_.empty()) return;
    for (int64_t r = 0; r < n; ++r) {
      const float* const z = to + r * width + kDirections;
      key_score_[size_t(first + r)] = *std::max_element(z, z + heads);
      key_distance_[size_t(first + r)] = squares[r] - 2 * z[heads];
    }
  });
}

// Sums of projections, and the keys that may become global.
void Index::Survey(const Chunk& chunk, size_t at) {
  const bool key = chunk.g < 0;
  const int64_t width = key ? key_width_ : kWidth;
  const float* z =
      key ? key_projection_.Row(chunk.first) : row_projection_.Row(chunk.g * problem_.q.rows + chunk.first);
  Sums total{};
  for (int64_t r = chunk.first; r < chunk.last;) {
    std::array<float, kWidth> sum{};
    for (const int64_t end = std::min(r + 64, chunk.last); r < end; ++r, z += width)
      for (size_t t = 0; t < kWidth; ++t) sum[t] += z[t];
    for (size_t t = 0; t < kWidth; ++t) total[t] += double(sum[t]);
  }
  chunk_sums_[at] = total;
  const Segment& s = *segments_[size_t(chunk.segment)];
  if (!key || s.globals == 0) return;
  Best(key_score_, chunk, size_t(s.globals), by_score_[at]);
  Best(key_distance_, chunk, size_t(s.globals), by_distance_[at]);
}

// The `most` keys of a chunk with the largest numbers, ties to the earlier ones; a heap whose top is the worst of them.
void Index::Best(const std::vector<float>& numbers, const Chunk& chunk, size_t most, std::vector<Candidate>& heap) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.key < b.key;
  };
  heap.clear();
  int64_t r = chunk.first;
  for (; r < chunk.last && heap.size() < most; ++r) heap.push_back({numbers[size_t(r)], int32_t(r)});
  std::make_heap(heap.begin(), heap.end(), better);
  for (float worst = heap.front().score; r < chunk.last; ++r) {
    if (numbers[size_t(r)] <= worst) continue;  // keys come in order: a tie is a later key
    std::pop_heap(heap.begin(), heap.end(), better);
    heap.back() = {numbers[size_t(r)], int32_t(r)};
    std::push_heap(heap.begin(), heap.end(), better);
    worst = heap.front().score;
  }
}

void Index::Decide(size_t segment) {
  const Segment& s = *segments_[segment];
  std::vector<Sums> sums(size_t(1 + problem_.Group()));
  for (size_t c = chunks_of_[segment].first; c < chunks_of_[segment].second; ++c)
    for (size_t t = 0; t < kWidth; ++t) sums[size_t(chunks_[c].g + 1)][t] += chunk_sums_[c][t];
  for (int64_t g = -1; g < problem_.Group(); ++g)
    for (size_t t = 0; t < kWidth; ++t) {
      const double n = double(g < 0 ? s.keys.size() : s.rows.size());
      thresholds_[segment][size_t(g + 1)][t] = options_.paper ? 0.f : float(sums[size_t(g + 1)][t] / n);
    }
  if (options_.strict && problem_.mask.causal) {
    // The centre of the queries comes from those that stand at the keys, which are earlier.
    const int64_t offset = problem_.mask.offset, nq = problem_.q.rows;
    const Range past{std::clamp<int64_t>(s.keys.first - offset, 0, nq),
                     std::clamp<int64_t>(s.keys.last - offset, 0, nq)};
    for (int64_t g = 0; g < problem_.Group(); ++g) {
      Sums sum{};
      for (int64_t r = past.first; r < past.last; ++r)
        for (size_t t = 0; t < kWidth; ++t) sum[t] += double(row_projection_.Row(g * nq + r)[t]);
      for (size_t t = 0; t < kWidth; ++t)
        thresholds_[segment][size_t(g + 1)][t] =
            past.size() > 0 ? float(sum[t] / double(past.size())) : thresholds_[segment][0][t];
    }
  }
  ChooseGlobals(segment);
}

// First keys of the sequence, last keys of the segment, a quarter of the rest far from the mean key, and those with the
// largest product with a mean query.
void Index::ChooseGlobals(size_t segment) {
  const Segment& s = *segments_[segment];
  std::vector<int32_t>& chosen = globals_[segment];
  chosen.clear();
  if (s.globals == 0) return;
  const auto full = [&] { return int64_t(chosen.size()) == s.globals; };
  const auto add = [&](int64_t key) {
    if (!full() && std::find(chosen.begin(), chosen.end(), int32_t(key)) == chosen.end())
      chosen.push_back(int32_t(key));
  };
  for (int64_t key = s.keys.last - s.recent; key < s.keys.last; ++key) add(key);
  for (int64_t key = s.keys.first; key < std::min(kSinks, s.keys.last); ++key) add(key);
  const auto best = [&](const std::vector<std::vector<Candidate>>& lists, int64_t most) {
    std::vector<Candidate> all;
    for (size_t c = chunks_of_[segment].first; c < chunks_of_[segment].second; ++c)
      all.insert(all.end(), lists[c].begin(), lists[c].end());
    const auto n = std::min(all.size(), size_t(s.globals));
    std::partial_sort(all.begin(), all.begin() + int64_t(n), all.end(), [](const Candidate& a, const Candidate& b) {
      return a.score != b.score ? a.score > b.score : a.key < b.key;
    });
    for (size_t i = 0; i < n && most > 0 && !full(); ++i) {
      const size_t before = chosen.size();
      add(all[i].key);
      most -= int64_t(chosen.size() - before);
    }
  };
  best(by_distance_, (s.globals - int64_t(chosen.size())) / 4);
  best(by_score_, s.globals);
  std::sort(chosen.begin(), chosen.end());
}

void Index::Hash(const Chunk& chunk, size_t at) {
  const bool key = chunk.g < 0;
  const Segment& s = *segments_[size_t(chunk.segment)];
  const float* const threshold = thresholds_[size_t(chunk.segment)][size_t(chunk.g + 1)].data();
  const uint16_t* const ranks = rank_tables_[size_t(s.bits)].data();
  const auto mask = uint16_t(rank_tables_[size_t(s.bits)].size() - 1);
  std::vector<uint32_t>& count = counts_[at];
  std::fill(count.begin(), count.end(), 0u);
  const int64_t n = chunk.last - chunk.first;
  uint16_t* const code = key ? key_code_.data() + s.key_at + chunk.first - s.keys.first
                             : row_hash_.data() + chunk.g * plan_.rows + s.row_at + chunk.first - s.rows.first;
  const float* const z =
      key ? key_projection_.Row(chunk.first) : row_projection_.Row(chunk.g * problem_.q.rows + chunk.first);
  simd::RowLoops().sign_bits(z, key ? key_width_ : kWidth, n, threshold, code);
  for (int64_t r = 0; r < n; ++r) ++count[code[r] = ranks[code[r] & mask]];
  if (!key) return;
  const std::vector<int32_t>& globals = globals_[size_t(chunk.segment)];
  for (auto next = std::lower_bound(globals.begin(), globals.end(), int32_t(chunk.first));
       next != globals.end() && *next < chunk.last; ++next) {
    uint16_t& its = code[*next - chunk.first];
    --count[its];
    its = kGlobal;
  }
}

// Turns counts into places: codes ascending, within a code chunks ascending.
void Index::Starts(size_t segment) {
  const Segment& s = *segments_[segment];
  const auto [first, last] = chunks_of_[segment];
  for (size_t begin = first; begin < last;) {
    size_t end = begin;
    while (end < last && chunks_[end].g == chunks_[begin].g) ++end;
    uint32_t at = 0;
    for (size_t code = 0; code < counts_[begin].size(); ++code) {
      if (chunks_[begin].g < 0) starts_[size_t(s.start_at) + code] = int32_t(at);
      for (size_t c = begin; c < end; ++c) {
        const uint32_t n = counts_[c][code];
        counts_[c][code] = at;
        at += n;
      }
    }
    if (chunks_[begin].g < 0) starts_[size_t(s.start_at) + counts_[begin].size()] = int32_t(at);
    begin = end;
  }
  // Globals, and something to read in slots that are not used.
  std::vector<int32_t>& order = orders_[level_of_[segment]];
  const auto slots = order.begin() + s.slot;
  const auto behind = std::copy(globals_[segment].begin(), globals_[segment].end(), slots);
  std::fill(behind, order.begin() + s.SortedSlot(), int32_t(s.keys.first));
  std::fill(order.begin() + s.SortedSlot() + s.sorted(), slots + s.Slots(), int32_t(s.keys.first));
}

void Index::Scatter(const Chunk& chunk, size_t at) {
  const Segment& s = *segments_[size_t(chunk.segment)];
  std::vector<uint32_t>& place = counts_[at];
  if (chunk.g < 0) {
    int32_t* const order = orders_[level_of_[size_t(chunk.segment)]].data() + s.SortedSlot();
    const uint16_t* const code = key_code_.data() + s.key_at - s.keys.first;
    for (int64_t r = chunk.first; r < chunk.last; ++r)
      if (code[r] != kGlobal) order[place[code[r]]++] = int32_t(r);
    return;
  }
  const int64_t base = chunk.g * plan_.rows + s.row_at;
  const uint16_t* const code = row_hash_.data() + base - s.rows.first;
  for (int64_t r = chunk.first; r < chunk.last; ++r) {
    const uint32_t to = place[code[r]]++;
    row_order_[size_t(base + to)] = int32_t(r);
    row_code_[size_t(base + to)] = code[r];
  }
}

}  // namespace croquis::attention::hyper
