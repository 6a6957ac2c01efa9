// Exact attention on tensors: tiles of 64 query rows against packed blocks of 64 keys.
#include <memory>
#include <string>
#include <vector>

#include "croquis/attention/exact/few_rows.h"
#include "croquis/attention/method.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention {
namespace {

const ParamInfo kParams[] = {kPrecisionParam};

constexpr int64_t kTaskTiles = 8;                   // of a task, at most: they pass over keys together
constexpr int64_t kPassKeys = 1024;                 // keys that all tiles of a task meet while they are in the cache
constexpr size_t kPackedBytes = size_t{256} << 20;  // heads are packed together up to this

// What a worker needs: tiles, and queries of several heads put together.
struct Worker {
  std::vector<QueryTile> tiles;
  Matrix<float> queries;
};

// The rows of a kv head, over its group: row r is query r % nq of head r / nq of the group. Tiles may go over the
// boundary of a head, so short queries fill tiles together.
class HeadRows {
 public:
  HeadRows(const Problem& p, const Output& output, int64_t kv) : p_(p), output_(output), kv_(kv) {}

  int64_t count() const { return p_.Group() * p_.q.rows; }

  // Rows [first, first + tiles * 64) against all keys they see.
  void Attend(const KeySet& keys, int64_t first, int64_t tiles, Worker& worker) const {
    const int64_t rows = std::min(count() - first, tiles * kTileRows);
    std::vector<Range> visible(static_cast<size_t>(rows));
    std::vector<Range> span(static_cast<size_t>(tiles), Range{keys.keys(), 0});
    int64_t begin = keys.keys(), end = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const Range seen = visible[size_t(r)] = p_.Visible((first + r) % p_.q.rows);
      if (seen.size() == 0) continue;
      Range& s = span[size_t(r / kTileRows)];
      s = {std::min(s.first, seen.first), std::max(s.last, seen.last)};
      begin = std::min(begin, seen.first), end = std::max(end, seen.last);
    }
    const auto rows_of = [&](int64_t t) { return std::min(kTileRows, rows - t * kTileRows); };
    for (int64_t t = 0; t < tiles; ++t)
      Load(first + t * kTileRows, rows_of(t), worker.tiles[size_t(t)], worker.queries);
    for (int64_t key = begin / kPassKeys * kPassKeys; key < end; key += kPassKeys)
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t from = std::max(key, span[size_t(t)].first), to = std::min(key + kPassKeys, span[size_t(t)].last);
        if (from < to)
          worker.tiles[size_t(t)].Attend(keys, from, to,
                                         std::span(visible).subspan(size_t(t * kTileRows), size_t(rows_of(t))));
      }
    for (int64_t t = 0; t < tiles; ++t)
      for (int64_t r = 0; r < rows_of(t); ++r) Write(first + t * kTileRows + r, r, worker.tiles[size_t(t)]);
  }

 private:
  int64_t HeadOf(int64_t row) const { return kv_ * p_.Group() + row / p_.q.rows; }

  void Load(int64_t first, int64_t rows, QueryTile& tile, Matrix<float>& queries) const {
    const int64_t head = HeadOf(first);
    if (HeadOf(first + rows - 1) == head)
      return tile.Load(p_.q.Head(head).Rows(first % p_.q.rows, rows), rows, p_.scale);
    for (int64_t r = 0; r < rows; ++r) p_.q.Head(HeadOf(first + r)).Read((first + r) % p_.q.rows, queries.Row(r));
    tile.Load(MatView<const float>(queries.View()), rows, p_.scale);
  }
  void Write(int64_t row, int64_t r, QueryTile& tile) const {
    const int64_t head = HeadOf(row), query = row % p_.q.rows;
    const float lse = tile.Finalize(r, output_.Head(head, p_.q.rows, p_.v.dim)[query]);
    if (output_.lse != nullptr) output_.lse[head * p_.q.rows + query] = lse;
  }

  const Problem& p_;
  const Output& output_;
  int64_t kv_;
};

class Exact final : public Method {
 public:
  explicit Exact(Spec spec) : spec_(std::move(spec)) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    report->pairs = report->exact_pairs;
    const int64_t rows = p.Group() * p.q.rows;
    if (rows <= kFewRows) {
      report->kernel = simd::Dense().name;
      return FewRows(executor, p, output);
    }
    const TileType type = TileTypeOf(spec_, p);
    report->kernel = simd::Tiles(type).name;
    const size_t head_bytes = KeySet::Bytes(type, p.k.rows, p.q.dim, p.v.dim);
    const int64_t together = std::clamp<int64_t>(int64_t(kPackedBytes / head_bytes), 1, p.k.heads);
    CROQUIS_CHECK_OK(CheckMemory(int64_t(head_bytes) * together, "the packed keys and values"));
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows,
                  task_tiles = std::clamp<int64_t>(tiles * together / 32, 1, kTaskTiles),
                  head_tasks = (tiles + task_tiles - 1) / task_tiles;
    std::vector<Worker> workers(static_cast<size_t>(executor.threads()));
    for (Worker& w : workers) {
      for (int64_t t = 0; t < task_tiles; ++t) w.tiles.emplace_back(type, p.q.dim, p.v.dim);
      w.queries = Matrix<float>(kTileRows, p.q.dim);
    }
    const Range seen = p.Seen(0, p.q.rows);
    const int64_t first_block = seen.first / kTileKeys,
                  blocks = std::max<int64_t>(0, (seen.last + kTileKeys - 1) / kTileKeys - first_block);
    std::vector<KeySet> sets;
    for (int64_t h = 0; h < together; ++h) sets.emplace_back(type, p.k.rows, p.q.dim, p.v.dim);
    for (int64_t kv = 0; kv < p.k.heads; kv += together) {
      const int64_t heads = std::min(together, p.k.heads - kv);
      executor.ParallelFor(heads * blocks, [&](int64_t task, int) {
        const int64_t h = task / blocks;
        sets[size_t(h)].PackBlock(first_block + task % blocks, p.k.Head(kv + h), p.v.Head(kv + h));
      });
      // The last rows first: under a causal mask they see most.
      executor.ParallelFor(heads * head_tasks, [&](int64_t task, int worker) {
        const int64_t h = task % heads, first = (head_tasks - 1 - task / heads) * task_tiles;
        HeadRows(p, output, kv + h)
            .Attend(sets[size_t(h)], first * kTileRows, std::min(task_tiles, tiles - first), workers[size_t(worker)]);
      });
    }
    return {};
  }

 private:
  Spec spec_;
};

Result<std::unique_ptr<const Method>> MakeExact(const Spec& spec, uint64_t) { return std::make_unique<Exact>(spec); }

}  // namespace

extern const MethodInfo kMethod_exact;
const MethodInfo kMethod_exact = {.name = "exact",
                                  .summary = "tiled softmax attention; the baseline of all others",
                                  .paper = "arXiv 2205.14135 (FlashAttention), 2307.08691",
                                  .params = kParams,
                                  .exact = true,
                                  .window = true,
                                  .strict_causal = [](const Spec&) { return true; },
                                  .make = MakeExact};

}  // namespace croquis::attention
