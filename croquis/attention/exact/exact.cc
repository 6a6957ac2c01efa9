// Exact attention on tensors: tiles of 64 queries against packed blocks of 64 keys.
#include <memory>
#include <vector>

#include "croquis/attention/method.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention {
namespace {

const ParamInfo kParams[] = {kPrecisionParam};

class Exact final : public Method {
 public:
  explicit Exact(Spec spec) : spec_(std::move(spec)) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    const TileType type = TileTypeOf(spec_, p);
    const int64_t nq = p.q.rows, tiles = (nq + kTileRows - 1) / kTileRows, group = p.Group();
    CROQUIS_CHECK_OK(
        CheckMemory(int64_t(KeySet::Bytes(type, p.k.rows, p.q.dim, p.v.dim)), "the packed keys of a head"));
    std::vector<QueryTile> workers;
    for (int i = 0; i < executor.threads(); ++i) workers.emplace_back(type, p.q.dim, p.v.dim);
    KeySet keys(type, p.k.rows, p.q.dim, p.v.dim);
    for (int64_t kv = 0; kv < p.k.heads; ++kv) {
      keys.Pack(executor, p.k.Head(kv), p.v.Head(kv));
      executor.ParallelFor(group * tiles, [&](int64_t task, int worker) {
        const int64_t h = kv * group + task % group, tile = tiles - 1 - task / group;
        RunTile(p, output, keys, h, tile, workers[size_t(worker)]);
      });
    }
    report->pairs = report->exact_pairs;
    report->kernel = simd::Tiles(type).name;
    return {};
  }

 private:
  static void RunTile(const Problem& p, const Output& output, const KeySet& keys, int64_t h, int64_t tile,
                      QueryTile& queries) {
    const int64_t first = tile * kTileRows, rows = std::min(kTileRows, p.q.rows - first);
    queries.Load(p.q.Head(h).Rows(first, rows), rows, p.scale);
    Range visible[kTileRows];
    int64_t begin = p.k.rows, end = 0;
    for (int64_t r = 0; r < rows; ++r) {
      visible[r] = p.Visible(first + r);
      if (visible[r].size() == 0) continue;
      begin = std::min(begin, visible[r].first), end = std::max(end, visible[r].last);
    }
    queries.Attend(keys, begin, end, {visible, size_t(rows)});
    for (int64_t r = 0; r < rows; ++r) {
      const float lse = queries.Finalize(r, output.Head(h, p.q.rows, p.v.dim)[first + r]);
      if (output.lse != nullptr) output.lse[h * p.q.rows + first + r] = lse;
    }
  }

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
