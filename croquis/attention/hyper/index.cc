#include "croquis/attention/hyper/index.h"

#include <algorithm>
#include <cmath>

#include "croquis/simd/row_kernels.h"

namespace croquis::attention::hyper {
namespace {

constexpr int64_t kChunk = 2048;      // keys or rows of a parallel task
constexpr int64_t kSinks = 4;         // first keys of the sequence, which are always global
constexpr uint16_t kGlobal = 0xFFFF;  // in place of a code
constexpr int64_t kMostHeads = 15;    // of a group, whose mean queries are looked at
constexpr uint64_t kPurpose = Purpose("attention.hyper.directions");

}  // namespace

Index::Index(TileType type, const Problem& problem, const Options& options, const Plan& plan)
    : type_(type), problem_(problem), options_(options), plan_(plan) {
  const int64_t scores = options.globals > 0 ? std::min(problem.Group(), kMostHeads) + 1 : 0;
  key_width_ = (kDirections + scores + kWidth - 1) / kWidth * kWidth;
  for (const Stage& stage : plan.stages)
    for (const std::vector<Group>& pass : stage.passes)
      for (const Group& group : pass) groups_.push_back(&group);
  std::sort(groups_.begin(), groups_.end(), [](const Group* a, const Group* b) { return a->id < b->id; });
  CutPieces();
  CutChunks();
  const size_t keys = size_t(problem.k.rows), rows = size_t(problem.Group() * problem.q.rows);
  key_projection_ = Matrix<float>(problem.k.rows, key_width_);
  row_projection_ = Matrix<float>(problem.Group() * problem.q.rows, kWidth);
  key_probes_ = Matrix<float>(problem.k.dim, key_width_), row_probes_ = Matrix<float>(problem.k.dim, kWidth);
  packed_key_probes_ = KeySet(type, problem.k.dim, 1, key_width_);
  packed_row_probes_ = KeySet(type, problem.k.dim, 1, kWidth);
  key_square_.resize(keys), row_square_.resize(rows);
  if (scores > 0) key_score_.resize(keys), key_distance_.resize(keys);
  rank_tables_.resize(kDirections + 1);
  for (const Segment& s : plan.segments)
    if (rank_tables_[size_t(s.bits)].empty()) rank_tables_[size_t(s.bits)] = RankTable(s.bits);
  key_thresholds_.resize(plan.segments.size());
  row_thresholds_.resize(row_chunks_.size());
  globals_.resize(plan.segments.size());
  key_code_.resize(size_t(plan.keys));
  row_hash_.resize(size_t(plan.rows * problem.Group()));
  row_code_.resize(row_hash_.size());
  row_order_.resize(row_hash_.size());
  starts_.resize(size_t(plan.starts));
  orders_.resize(size_t(plan.orders));
}

void Index::CutPieces() {
  std::vector<int64_t> ends;
  for (const Segment& s : plan_.segments) ends.insert(ends.end(), {s.keys.first, s.keys.last});
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  std::vector<size_t> piece_at;  // where each end's first piece is
  for (size_t i = 0; i < ends.size(); ++i) {
    piece_at.push_back(pieces_.size());
    for (int64_t at = ends[i]; i + 1 < ends.size() && at < ends[i + 1]; at += kChunk)
      pieces_.push_back({.keys = {at, std::min(at + kChunk, ends[i + 1])}});
  }
  const auto find = [&](int64_t end) {
    return piece_at[size_t(std::lower_bound(ends.begin(), ends.end(), end) - ends.begin())];
  };
  for (const Segment& s : plan_.segments) pieces_of_.push_back({find(s.keys.first), find(s.keys.last)});
}

void Index::CutChunks() {
  const auto cut = [&](size_t owner, int64_t g, Range all, int bits) {
    const size_t first = chunks_.size();
    for (int64_t at = all.first; at < all.last; at += kChunk) {
      chunks_.push_back({owner, g, {at, std::min(at + kChunk, all.last)}});
      counts_.emplace_back(size_t(1) << bits);
    }
    return Bounds{first, chunks_.size()};
  };
  for (const Segment& s : plan_.segments) key_chunks_.push_back(cut(s.id, -1, s.keys, s.bits));
  for (const Group* group : groups_)
    for (int64_t g = 0; g < problem_.Group(); ++g) row_chunks_.push_back(cut(group->id, g, group->rows, group->bits));
}

int64_t Index::Bytes(const Problem& p, const Plan& plan) {
  const int64_t width = kDirections + kWidth + std::min(p.Group(), kMostHeads) + 1;
  return p.k.rows * (width + 3) * 4 + p.Group() * p.q.rows * (kWidth + 1) * 4 + plan.keys * 2 +
         plan.rows * p.Group() * 8 + plan.starts * 4 + plan.orders * 4;
}

Range Index::CodeWindow(const Segment& s, uint32_t code, int bits) const {
  const int32_t* const start = starts_.data() + s.start_at + (code >> (bits - s.bits));
  const int64_t middle = (int64_t(start[0]) + start[1]) / 2;
  return {std::max<int64_t>(0, middle - s.block / 2), std::min(s.sorted(), middle + (s.block + 1) / 2)};
}

void Index::Build(Executor& executor, int64_t kv) {
  if (plan_.segments.empty()) return;
  MakeProbes(executor, kv);
  Project(executor);
  const auto pieces = int64_t(pieces_.size()), chunks = int64_t(chunks_.size()),
             segments = int64_t(plan_.segments.size()), orders = int64_t(row_chunks_.size()), group = problem_.Group();
  executor.ParallelFor(pieces + orders, [&](int64_t i, int) {
    if (i < pieces)
      Survey(pieces_[size_t(i)]);
    else
      Centre(*groups_[size_t((i - pieces) / group)], (i - pieces) % group);
  });
  executor.ParallelFor(segments, [&](int64_t i, int) { Decide(plan_.segments[size_t(i)]); });
  executor.ParallelFor(chunks, [&](int64_t i, int) { Hash(chunks_[size_t(i)], size_t(i)); });
  executor.ParallelFor(segments + orders, [&](int64_t i, int) {
    if (i < segments)
      StartKeys(plan_.segments[size_t(i)]);
    else
      Places(row_chunks_[size_t(i - segments)], [](size_t, uint32_t) {});
  });
  executor.ParallelFor(chunks, [&](int64_t i, int) { Scatter(chunks_[size_t(i)], size_t(i)); });
}

// Positions before all segments' queries: what a strict method may learn directions from.
Range Index::PastRows() const {
  int64_t first = problem_.k.rows;
  for (const Segment& s : plan_.segments) first = std::min(first, s.rows.first + problem_.mask.offset);
  return {0, std::clamp<int64_t>(first, 0, problem_.k.rows)};
}

void Index::MakeProbes(Executor& executor, int64_t kv) {
  const RowsView k = problem_.k.Head(0);
  const int64_t dim = k.dim;
  const Stream random = Stream{options_.seed, kPurpose}.Sub(uint64_t(kv));
  const Range past = options_.strict && problem_.mask.causal ? PastRows() : Range{0, k.rows};
  const std::vector<float> directions =
      options_.paper ? RandomDirections(dim, random) : PrincipalDirections(k, past, random);
  for (int64_t i = 0; i < dim; ++i) {
    std::fill_n(key_probes_.Row(i), key_width_, 0.f), std::fill_n(row_probes_.Row(i), kWidth, 0.f);
    std::copy_n(directions.data() + i * kDirections, kDirections, key_probes_.Row(i));
    std::copy_n(directions.data() + i * kDirections, kDirections, row_probes_.Row(i));
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
    for (int64_t i = 0; i < dim && n > 0; ++i) key_probes_.Row(i)[kDirections + c] = sum[size_t(i)] / float(n);
  });
}

// Rows times probes, by tiles: probes lie like values, and each product is a step along them.
void Index::Project(Executor& executor) {
  const auto pack = [](const Matrix<float>& probes, KeySet& set) {
    const RowsView rows{probes.View()};
    for (int64_t block = 0; block < set.blocks(); ++block) set.PackBlock(block, rows, rows);
  };
  pack(key_probes_, packed_key_probes_), pack(row_probes_, packed_row_probes_);
  constexpr int64_t kRun = 8;  // tiles of a task
  const int64_t keys = (problem_.k.rows + kTileRows - 1) / kTileRows,
                rows = (problem_.q.rows + kTileRows - 1) / kTileRows, all = keys + problem_.Group() * rows;
  std::vector<QueryTile> key_tiles, row_tiles;
  for (int i = 0; i < executor.threads(); ++i) {
    key_tiles.emplace_back(type_, problem_.k.dim, key_width_);
    row_tiles.emplace_back(type_, problem_.k.dim, kWidth);
  }
  executor.ParallelFor((all + kRun - 1) / kRun, [&](int64_t run, int worker) {
    for (int64_t i = run * kRun; i < std::min(all, (run + 1) * kRun); ++i)
      if (i < keys)
        ProjectTile(true, 0, i * kTileRows, key_tiles[size_t(worker)]);
      else
        ProjectTile(false, (i - keys) / rows, (i - keys) % rows * kTileRows, row_tiles[size_t(worker)]);
  });
}

void Index::ProjectTile(bool key, int64_t g, int64_t first, QueryTile& tile) {
  static constexpr std::array<float, kTileRows> kOnes = [] {
    std::array<float, kTileRows> ones{};
    ones.fill(1);
    return ones;
  }();
  const RowsView from = key ? problem_.k.Head(0) : problem_.q.Head(g);
  const int64_t n = std::min(kTileRows, from.rows - first), width = key ? key_width_ : kWidth;
  tile.Load(from.Rows(first, n), n, 1);
  tile.AddProducts(key ? packed_key_probes_ : packed_row_probes_, kOnes);
  float* const squares = key ? key_square_.data() + first : row_square_.data() + g * from.rows + first;
  simd::RowLoops().squares(from.type, from.Row(first), from.stride, n, from.dim, squares);
  float* const to = key ? key_projection_.Row(first) : row_projection_.Row(g * from.rows + first);
  for (int64_t r = 0; r < n; ++r) std::copy_n(tile.Sums(r).data(), width, to + r * width);
  if (!key || key_score_.empty()) return;
  const int64_t heads = std::min(problem_.Group(), kMostHeads);
  for (int64_t r = 0; r < n; ++r) {
    const float* const z = to + r * width + kDirections;
    key_score_[size_t(first + r)] = *std::max_element(z, z + heads);
    key_distance_[size_t(first + r)] = squares[r] - 2 * z[heads];
  }
}

// Adds up rows of 16 numbers `stride` apart, 64 at a time in f32.
Index::Sums Index::SumOf(const float* z, int64_t stride, int64_t n) {
  Sums total{};
  while (n > 0) {
    std::array<float, kWidth> sum{};
    const int64_t some = std::min<int64_t>(n, 64);
    for (int64_t r = 0; r < some; ++r, z += stride)
      for (size_t t = 0; t < kWidth; ++t) sum[t] += z[t];
    for (size_t t = 0; t < kWidth; ++t) total[t] += double(sum[t]);
    n -= some;
  }
  return total;
}

// Sums of projections, and the keys that may become global.
void Index::Survey(Piece& piece) {
  piece.sums = SumOf(key_projection_.Row(piece.keys.first), key_width_, piece.keys.size());
  if (key_score_.empty()) return;
  Best(key_score_, piece.keys, size_t(options_.globals), piece.by_score);
  Best(key_distance_, piece.keys, size_t(options_.globals), piece.by_distance);
}

// What projections of a group's rows are compared with: their means. A strict method takes the means of tokens that
// stand at the group's keys, which are earlier: of their queries, or of the keys where no queries stand there.
void Index::Centre(const Group& group, int64_t g) {
  Thresholds& thresholds = row_thresholds_[group.id * size_t(problem_.Group()) + size_t(g)];
  thresholds = {};
  if (options_.paper) return;
  Range rows = group.rows, keys;
  if (options_.strict && problem_.mask.causal) {
    keys = {problem_.k.rows, 0};
    for (const Segment* s : group.segments)
      keys = {std::min(keys.first, s->keys.first), std::max(keys.last, s->keys.last)};
    const int64_t offset = problem_.mask.offset, nq = problem_.q.rows;
    rows = {std::clamp<int64_t>(keys.first - offset, 0, nq), std::clamp<int64_t>(keys.last - offset, 0, nq)};
  }
  const bool of_keys = rows.size() == 0;
  const int64_t n = of_keys ? keys.size() : rows.size();
  const Sums sums =
      of_keys ? SumOf(key_projection_.Row(keys.first), key_width_, n) : SumOf(RowProjection(g, rows.first), kWidth, n);
  for (size_t t = 0; t < kWidth; ++t) thresholds[t] = float(sums[t] / double(n));
}

// The `most` keys of a chunk with the largest numbers, ties to the earlier ones; a heap whose top is the worst of them.
void Index::Best(const std::vector<float>& numbers, Range keys, size_t most, std::vector<Candidate>& heap) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.key < b.key;
  };
  heap.clear();
  int64_t r = keys.first;
  for (; r < keys.last && heap.size() < most; ++r) heap.push_back({numbers[size_t(r)], int32_t(r)});
  std::make_heap(heap.begin(), heap.end(), better);
  for (float worst = heap.front().score; r < keys.last; ++r) {
    if (numbers[size_t(r)] <= worst) continue;  // keys come in order: a tie is a later key
    std::pop_heap(heap.begin(), heap.end(), better);
    heap.back() = {numbers[size_t(r)], int32_t(r)};
    std::push_heap(heap.begin(), heap.end(), better);
    worst = heap.front().score;
  }
}

void Index::Decide(const Segment& s) {
  Sums sums{};
  for (size_t p = pieces_of_[s.id].first; p < pieces_of_[s.id].last; ++p)
    for (size_t t = 0; t < kWidth; ++t) sums[t] += pieces_[p].sums[t];
  for (size_t t = 0; t < kWidth; ++t)
    key_thresholds_[s.id][t] = options_.paper ? 0.f : float(sums[t] / double(s.keys.size()));
  ChooseGlobals(s);
}

// First keys of the sequence, last keys of the segment, a quarter of the rest far from the mean key, and those with the
// largest product with a mean query.
void Index::ChooseGlobals(const Segment& s) {
  std::vector<int32_t>& chosen = globals_[s.id];
  chosen.clear();
  if (s.globals == 0) return;
  const auto full = [&] { return int64_t(chosen.size()) == s.globals; };
  const auto add = [&](int64_t key) {
    if (!full() && std::find(chosen.begin(), chosen.end(), int32_t(key)) == chosen.end())
      chosen.push_back(int32_t(key));
  };
  for (int64_t key = s.keys.last - s.recent; key < s.keys.last; ++key) add(key);
  for (int64_t key = s.keys.first; key < std::min(kSinks, s.keys.last); ++key) add(key);
  const auto best = [&](std::vector<Candidate> Piece::*list, int64_t most) {
    std::vector<Candidate> all;
    for (size_t p = pieces_of_[s.id].first; p < pieces_of_[s.id].last; ++p)
      all.insert(all.end(), (pieces_[p].*list).begin(), (pieces_[p].*list).end());
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
  best(&Piece::by_distance, (s.globals - int64_t(chosen.size())) / 4);
  best(&Piece::by_score, s.globals);
  std::sort(chosen.begin(), chosen.end());
}

void Index::Hash(const Chunk& chunk, size_t at) {
  const bool key = chunk.g < 0;
  const Segment* const s = key ? &plan_.segments[chunk.owner] : nullptr;
  const Group* const group = key ? nullptr : groups_[chunk.owner];
  const float* const threshold =
      (key ? key_thresholds_[s->id] : row_thresholds_[group->id * size_t(problem_.Group()) + size_t(chunk.g)]).data();
  const uint16_t* const ranks = rank_tables_[size_t(key ? s->bits : group->bits)].data();
  std::vector<uint32_t>& count = counts_[at];
  const auto mask = uint16_t(count.size() - 1);
  std::fill(count.begin(), count.end(), 0u);
  const int64_t n = chunk.rows.size();
  uint16_t* const code =
      key ? key_code_.data() + s->key_at + chunk.rows.first - s->keys.first
          : row_hash_.data() + chunk.g * plan_.rows + group->row_at + chunk.rows.first - group->rows.first;
  const float* const z = key ? key_projection_.Row(chunk.rows.first) : RowProjection(chunk.g, chunk.rows.first);
  simd::RowLoops().sign_bits(z, key ? key_width_ : kWidth, n, threshold, code);
  for (int64_t r = 0; r < n; ++r) ++count[code[r] = ranks[code[r] & mask]];
  if (!key) return;
  const std::vector<int32_t>& globals = globals_[s->id];
  for (auto next = std::lower_bound(globals.begin(), globals.end(), int32_t(chunk.rows.first));
       next != globals.end() && *next < chunk.rows.last; ++next) {
    uint16_t& its = code[*next - chunk.rows.first];
    --count[its];
    its = kGlobal;
  }
}

// Turns the counts of chunks into places, codes ascending, within a code chunks ascending; fn(code, place).
template <class Fn>
void Index::Places(Bounds chunks, const Fn& fn) {
  uint32_t at = 0;
  const size_t codes = counts_[chunks.first].size();
  for (size_t code = 0; code < codes; ++code) {
    fn(code, at);
    for (size_t c = chunks.first; c < chunks.last; ++c) {
      const uint32_t n = counts_[c][code];
      counts_[c][code] = at;
      at += n;
    }
  }
  fn(codes, at);
}

void Index::StartKeys(const Segment& s) {
  int32_t* const starts = starts_.data() + s.start_at;
  Places(key_chunks_[s.id], [&](size_t code, uint32_t at) { starts[code] = int32_t(at); });
  // Globals, and something to read in slots that are not used.
  const auto order = orders_.begin() + s.order_at, sorted = order + s.GlobalSlots();
  std::fill(std::copy(globals_[s.id].begin(), globals_[s.id].end(), order), sorted, int32_t(s.keys.first));
  std::fill(sorted + s.sorted(), order + s.Slots(), int32_t(s.keys.first));
}

void Index::Scatter(const Chunk& chunk, size_t at) {
  std::vector<uint32_t>& place = counts_[at];
  if (chunk.g < 0) {
    const Segment& s = plan_.segments[chunk.owner];
    int32_t* const order = orders_.data() + s.order_at + s.GlobalSlots();
    const uint16_t* const code = key_code_.data() + s.key_at - s.keys.first;
    for (int64_t r = chunk.rows.first; r < chunk.rows.last; ++r)
      if (code[r] != kGlobal) order[place[code[r]]++] = int32_t(r);
    return;
  }
  const Group& group = *groups_[chunk.owner];
  const int64_t base = chunk.g * plan_.rows + group.row_at;
  const uint16_t* const code = row_hash_.data() + base - group.rows.first;
  for (int64_t r = chunk.rows.first; r < chunk.rows.last; ++r) {
    const uint32_t to = place[code[r]]++;
    row_order_[size_t(base + to)] = int32_t(r);
    row_code_[size_t(base + to)] = code[r];
  }
}

}  // namespace croquis::attention::hyper
