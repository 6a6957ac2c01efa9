// Attention on integers after SageAttention2 (arXiv 2411.10958): keys and queries are centred and rounded to 8 (or 4)
// bits with a scale for each token, weights and values to 12 or 8 bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "croquis/attention/exact/few_rows.h"
#include "croquis/attention/method.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/sage/quantise.h"
#include "croquis/attention/tiles.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {

using sage::Options;
using sage::QuantisedSet;

const ParamInfo kParams[] = {
    {"bits", "8", 0, 0, "8|4", "bits of queries and keys; 4 is for study: it is stored in bytes and no faster"},
    {"smooth_k", "on", 0, 0, "on|off", "take the mean key off the keys"},
    {"smooth_q", "auto", 0, 0, "auto|on|off",
     "take a tile's mean query off its queries; what that leaves out is added in f32; auto: where they have 8 bits"},
    {"pv", "auto", 0, 0, "auto|int16|int8",
     "the second product: weights of 12 bits and values of 13 in 16-bit products, or of 8 both; auto: int16, "
     "but int8 with AVX2"},
};

constexpr int64_t kTaskTiles = 8;                   // of a task, at most
constexpr int64_t kPassKeys = 1024;                 // keys that all tiles of a task meet together
constexpr size_t kPackedBytes = size_t{256} << 20;  // heads are prepared together up to this
constexpr float kLog2E = std::numbers::log2e_v<float>;

// Up to 64 query rows and their state.
struct Tile {
  explicit Tile(const simd::QuantisedLayout& l) : queries(kTileRows, l.Units() * 4), sums(kTileRows, l.Width()) {}
  Matrix<std::byte> queries;
  Matrix<float> sums;
  float scale[kTileRows], shift[kTileRows];  // shift: what all logits of a row lack, natural log
  float max[kTileRows], mass[kTileRows];
  int32_t first[kTileRows], last[kTileRows];
  int64_t rows = 0, begin = 0, end = 0;  // keys that some row sees
};

struct Worker {
  std::vector<Tile> tiles;
  Matrix<float> mean, rows, bias;  // mean queries [tiles, dim] (times the scale), a tile's rows, [tiles, kPassKeys]
  Buffer scratch;
  std::vector<std::byte> numbers;  // of a row
};

class Sage final : public Method {
 public:
  explicit Sage(const Spec& spec) {
    options_.bits = spec.Word("bits") == "4" ? 4 : 8;
    options_.smooth_k = spec.Word("smooth_k") == "on";
    smooth_q_ = spec.Word("smooth_q");
    pv_ = spec.Word("pv");
  }

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    report->pairs = report->exact_pairs;
    if (p.Group() * p.q.rows <= kFewRows) {  // reading the keys is the work: rounding them would come on top
      report->kernel = simd::Dense().name;
      return FewRows(executor, p, output);
    }
    const simd::QuantisedKernels& kernels = simd::QuantisedTiles();
    Options options = options_;
    options.wide_keys = kernels.wide;
    options.smooth_q = smooth_q_ == "on" || (smooth_q_ == "auto" && !(kernels.wide && options.bits == 8));
    options.narrow_values = pv_ == "int8" || (pv_ == "auto" && kernels.wide);
    report->kernel = std::string(kernels.name) + "-int8";
    report->est_error = -1;
    const size_t head_bytes = QuantisedSet::Bytes(options, p.k.rows, p.q.dim, p.v.dim);
    const int64_t together = std::clamp<int64_t>(int64_t(kPackedBytes / head_bytes), 1, p.k.heads),
                  tiles = (p.q.rows + kTileRows - 1) / kTileRows,
                  task_tiles = std::clamp<int64_t>(tiles * p.Group() * together / 32, 1, kTaskTiles),
                  head_tasks = (tiles + task_tiles - 1) / task_tiles;
    CROQUIS_CHECK_OK(CheckMemory(int64_t(head_bytes) * together, "the quantised keys and values"));
    std::vector<QuantisedSet> sets;
    for (int64_t h = 0; h < together; ++h) sets.emplace_back(options, p.k.rows, p.q.dim, p.v.dim);
    std::vector<Worker> workers(static_cast<size_t>(executor.threads()));
    for (Worker& w : workers) {
      for (int64_t t = 0; t < task_tiles; ++t) w.tiles.emplace_back(sets[0].layout());
      w.mean = Matrix<float>(task_tiles, p.q.dim);
      w.rows = Matrix<float>(kTileRows, p.q.dim);
      w.bias = Matrix<float>(task_tiles, kPassKeys);
      w.scratch = Buffer(simd::kQuantisedScratch);
      w.numbers.resize(size_t((p.q.dim + 15) / 16 * 16 * 2));
    }
    const int64_t blocks = sets[0].blocks();
    for (int64_t kv = 0; kv < p.k.heads; kv += together) {
      const int64_t heads = std::min(together, p.k.heads - kv);
      executor.ParallelFor(heads, [&](int64_t h, int) { sets[size_t(h)].Prepare(p.k.Head(kv + h), p.v.Head(kv + h)); });
      executor.ParallelFor(heads * blocks, [&](int64_t task, int) {
        const int64_t h = task / blocks;
        sets[size_t(h)].PackBlock(task % blocks, p.k.Head(kv + h), p.v.Head(kv + h));
      });
      const int64_t query_heads = heads * p.Group();
      executor.ParallelFor(query_heads * head_tasks, [&](int64_t task, int worker) {
        const int64_t h = task % query_heads, first = (head_tasks - 1 - task / query_heads) * task_tiles;
        RunTask(p, output, sets[size_t(h / p.Group())], kv * p.Group() + h, first, std::min(task_tiles, tiles - first),
                workers[size_t(worker)]);
      });
    }
    return {};
  }

 private:
  // Tiles [first, first + tiles) of query head h.
  void RunTask(const Problem& p, const Output& output, const QuantisedSet& set, int64_t h, int64_t first, int64_t tiles,
               Worker& w) const {
    int64_t begin = p.k.rows, end = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      Load(p, set, h, (first + t) * kTileRows, w, t);
      begin = std::min(begin, w.tiles[size_t(t)].begin), end = std::max(end, w.tiles[size_t(t)].end);
    }
    const RowsView k = p.k.Head(h / p.Group());
    for (int64_t key = begin / kPassKeys * kPassKeys; key < end; key += kPassKeys) {
      const int64_t to = std::min(end, key + kPassKeys);
      if (set.smooth_q())
        simd::Dense().score_rows(k.type, MatView<const float>(w.mean.View()).Rows(0, tiles), k.Row(key),
                                 k.stride * simd::RowTypeBytes(k.type), to - key, w.bias.data(), kPassKeys);
      for (int64_t t = 0; t < tiles; ++t) {
        Tile& tile = w.tiles[size_t(t)];
        simd::QuantisedCall call;
        call.layout = set.layout();
        call.queries = tile.queries.data(), call.row_scale = tile.scale, call.rows = tile.rows;
        call.keys = set.keys(), call.values = set.values();
        call.key_scale = set.key_scale(), call.key_offset = set.key_offset(), call.value_scale = set.value_scale();
        if (set.smooth_q()) call.bias = w.bias.Row(t), call.bias_first = key;
        call.begin = std::max(key, tile.begin), call.end = std::min(to, tile.end);
        call.first = tile.first, call.last = tile.last;
        call.max = tile.max, call.mass = tile.mass, call.sums = tile.sums.View();
        call.scratch = w.scratch.data();
        if (call.begin < call.end) simd::QuantisedTiles().attend(call);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) Write(p, output, set, h, (first + t) * kTileRows, w.tiles[size_t(t)]);
  }

  // Rows from `first` on of query head h become tile t.
  void Load(const Problem& p, const QuantisedSet& set, int64_t h, int64_t first, Worker& w, int64_t t) const {
    Tile& tile = w.tiles[size_t(t)];
    const RowsView q = p.q.Head(h);
    const int64_t dim = p.q.dim;
    tile.rows = std::min(kTileRows, p.q.rows - first);
    tile.begin = p.k.rows, tile.end = 0;
    float* const mean = w.mean.Row(t);
    const bool smooth = set.smooth_q();
    std::fill_n(mean, dim, 0.f);
    for (int64_t r = 0; r < tile.rows; ++r) {
      float* const row = w.rows.Row(r);
      q.Read(first + r, row);
      for (int64_t i = 0; smooth && i < dim; ++i) mean[i] += row[i];
      const Range seen = p.Visible(first + r);
      tile.first[r] = int32_t(seen.first), tile.last[r] = int32_t(seen.last);
      if (seen.size() > 0) tile.begin = std::min(tile.begin, seen.first), tile.end = std::max(tile.end, seen.last);
      tile.max[r] = simd::kMasked, tile.mass[r] = 0;
    }
    const float inverse = 1 / float(tile.rows);
    for (int64_t i = 0; i < dim; ++i) mean[i] *= inverse;
    std::fill_n(tile.sums.data(), tile.sums.rows() * tile.sums.cols(), 0.f);
    const simd::QuantisedLayout& layout = set.layout();
    for (int64_t r = 0; r < tile.rows; ++r) {
      float* const row = w.rows.Row(r);
      for (int64_t i = 0; smooth && i < dim; ++i) row[i] -= mean[i];
      tile.scale[r] =
          simd::QuantisedTiles().round_row(row, dim, layout.wide, set.most(), w.numbers.data()) * p.scale * kLog2E;
      std::byte* const to = tile.queries.Row(r);
      std::memcpy(to, w.numbers.data(), size_t(tile.queries.cols()));
      for (int64_t i = 0; i < tile.queries.cols() && !layout.wide; ++i) to[i] ^= std::byte{128};
    }
    simd::Dense().score_rows(simd::RowType::kF32, MatView<const float>(w.rows.View()).Rows(0, tile.rows),
                             reinterpret_cast<const std::byte*>(set.mean().data()), dim * 4, 1, tile.shift, 1);
    for (int64_t r = 0; r < tile.rows; ++r) tile.shift[r] *= p.scale;
    for (int64_t i = 0; i < dim; ++i) mean[i] *= p.scale * kLog2E;
  }

  static void Write(const Problem& p, const Output& output, const QuantisedSet& set, int64_t h, int64_t first,
                    Tile& tile) {
    for (int64_t r = 0; r < tile.rows; ++r) {
      float* const out = output.Head(h, p.q.rows, p.v.dim).Row(first + r);
      const bool empty = tile.mass[r] == 0;
      const float inverse = empty ? 0 : 1 / tile.mass[r];
      for (int64_t i = 0; i < p.v.dim; ++i)
        out[i] = empty ? 0 : tile.sums.Row(r)[i] * inverse + set.value_mean()[size_t(i)];
      if (output.lse != nullptr)
        output.lse[h * p.q.rows + first + r] =
            empty ? kEmptyMax : tile.max[r] * std::numbers::ln2_v<float> + std::log(tile.mass[r]) + tile.shift[r];
    }
  }

  Options options_;  // as asked for: what the kernels prefer is found when they run
  std::string smooth_q_, pv_;
};

Result<std::unique_ptr<const Method>> MakeSage(const Spec& spec, uint64_t) { return std::make_unique<Sage>(spec); }

}  // namespace

extern const MethodInfo kMethod_sage;
const MethodInfo kMethod_sage = {.name = "sage",
                                 .summary = "exact attention in 8-bit integers, keys and queries centred",
                                 .paper = "arXiv 2411.10958 (SageAttention2)",
                                 .params = kParams,
                                 .window = true,
                                 .make = MakeSage};

}  // namespace croquis::attention
