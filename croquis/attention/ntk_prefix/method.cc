// Attention whose first keys are replaced by a state of fixed size; the rest is exact.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "croquis/attention/method.h"
#include "croquis/attention/ntk_prefix/ntk_prefix.h"
#include "croquis/attention/row_error.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention {
namespace {

const ParamInfo kParams[] = {
    {"prefix", "64", 0, 1 << 30, {}, "keys, from the first on, that the state stands for"},
    {"features", "elu", 0, 0, "elu|elu-paper|taylor1|taylor2|favor", "the map phi; see docs/methods/ntk-prefix.md"},
    {"m", "256", 1, 65536, {}, "features of favor"},
    kPrecisionParam,
};

PrefixFeatures FeaturesOf(std::string_view word) {
  if (word == "elu") return PrefixFeatures::kElu;
  if (word == "elu-paper") return PrefixFeatures::kEluPaper;
  if (word == "taylor1") return PrefixFeatures::kTaylor1;
  if (word == "taylor2") return PrefixFeatures::kTaylor2;
  return PrefixFeatures::kFavor;
}

struct Worker {
  QueryTile tile;
  NtkPrefix::Scratch scratch;
  Matrix<float> q, a;
};

class NtkPrefixMethod final : public Method {
 public:
  NtkPrefixMethod(Spec spec, uint64_t seed) : spec_(std::move(spec)), seed_(seed) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    const TileType type = TileTypeOf(spec_, p);
    const int64_t nq = p.q.rows, tiles = (nq + kTileRows - 1) / kTileRows, group = p.Group();
    const int64_t prefix = std::min(spec_.Int("prefix"), p.k.rows);
    PrefixConfig config;
    config.features = FeaturesOf(spec_.Word("features"));
    config.favor = spec_.Int("m");
    config.scale = p.scale;
    config.seed = seed_;
    TensorView k = p.k, v = p.v;
    k.rows = v.rows = prefix;
    CROQUIS_TRY(const NtkPrefix state, NtkPrefix::FromKeysValues(executor, k, v, config));
    CROQUIS_CHECK_OK(
        CheckMemory(int64_t(KeySet::Bytes(type, p.k.rows, p.q.dim, p.v.dim)), "the packed keys of a head"));
    std::vector<Worker> workers;
    workers.reserve(size_t(executor.threads()));
    for (int i = 0; i < executor.threads(); ++i)
      workers.push_back({QueryTile(type, p.q.dim, p.v.dim), state.MakeScratch(kTileRows),
                         Matrix<float>(kTileRows, p.q.dim), Matrix<float>(kTileRows, p.v.dim)});
    KeySet keys(type, p.k.rows, p.q.dim, p.v.dim);
    std::atomic<int64_t> fallbacks{0};
    std::vector<double> errors(size_t(p.q.heads * nq), -1), gaps(size_t(p.q.heads * nq));
    for (int64_t kv = 0; kv < p.k.heads; ++kv) {
      keys.Pack(executor, p.k.Head(kv), p.v.Head(kv));
      const double largest = LargestNorm(executor, p.v.Head(kv));
      executor.ParallelFor(group * tiles, [&](int64_t task, int worker) {
        const int64_t h = kv * group + task % group, first = (tiles - 1 - task / group) * kTileRows;
        fallbacks += RunTile(p, output, keys, state, prefix, h, first, workers[size_t(worker)]);
        Probe(p, output, keys, h, first, workers[size_t(worker)], largest, errors.data() + h * nq,
              gaps.data() + h * nq);
      });
    }
    Summarise(p, state, prefix, errors, gaps, report);
    report->fallback_rows = fallbacks;
    report->pairs += double(fallbacks) * double(prefix);
    report->kernel = simd::Tiles(type).name;
    return {};
  }

 private:
  static int64_t RunTile(const Problem& p, const Output& output, const KeySet& keys, const NtkPrefix& state,
                         int64_t prefix, int64_t h, int64_t first, Worker& w);
  static void Probe(const Problem& p, const Output& output, const KeySet& keys, int64_t h, int64_t first, Worker& w,
                    double largest, double* errors, double* gaps);
  static void Summarise(const Problem& p, const NtkPrefix& state, int64_t prefix, const std::vector<double>& errors,
                        const std::vector<double>& gaps, RunReport* report);

  Spec spec_;
  uint64_t seed_;
};

// Rows that see the whole prefix read the state, others (within it) their keys. Returns rows for which the state gave
// no positive mass; they read the prefix's keys too.
int64_t NtkPrefixMethod::RunTile(const Problem& p, const Output& output, const KeySet& keys, const NtkPrefix& state,
                                 int64_t prefix, int64_t h, int64_t first, Worker& w) {
  const int64_t rows = std::min(kTileRows, p.q.rows - first);
  const RowsView queries = p.q.Head(h).Rows(first, rows);
  Range visible[kTileRows];
  int64_t begin = p.k.rows, end = 0, failed = 0;
  for (int64_t r = 0; r < rows; ++r) {
    visible[r] = p.Visible(first + r);
    if (visible[r].last >= prefix) visible[r].first = prefix;
    begin = std::min(begin, visible[r].first), end = std::max(end, visible[r].last);
  }
  w.tile.Load(queries, rows, p.scale);
  w.tile.Attend(keys, begin, end, {visible, size_t(rows)});
  float m[kTileRows], l[kTileRows];
  if (prefix > 0) {
    for (int64_t r = 0; r < rows; ++r) queries.Read(r, w.q.Row(r));
    state.Evaluate(h / p.Group(), {w.q.data(), rows, p.q.dim}, w.a.View().Rows(0, rows), m, l, w.scratch);
    for (int64_t r = 0; r < rows; ++r) {
      const bool whole = visible[r].first == prefix && visible[r].last >= prefix;
      const bool good = l[r] > 0 && std::isfinite(l[r]) && simd::Dense().all_below(w.a.Row(r), p.v.dim, 1e38f);
      if (whole && good) w.tile.Merge(r, {m[r], l[r], {w.a.Row(r), size_t(p.v.dim)}});
      failed += whole && !good;
      visible[r] = whole && !good ? Range{0, prefix} : Range{0, 0};
    }
    if (failed > 0) w.tile.Attend(keys, 0, prefix, {visible, size_t(rows)});
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float lse = w.tile.Finalize(r, output.Head(h, p.q.rows, p.v.dim)[first + r]);
    if (output.lse != nullptr) output.lse[h * p.q.rows + first + r] = lse;
  }
  return failed;
}

// Of every tile one row, another one each time, is computed exactly too: the error of the run is estimated from these.
void NtkPrefixMethod::Probe(const Problem& p, const Output& output, const KeySet& keys, int64_t h, int64_t first,
                            Worker& w, double largest, double* errors, double* gaps) {
  const int64_t rows = std::min(kTileRows, p.q.rows - first), i = first + (first / kTileRows * 29 + 31) % rows;
  const Range range = p.Visible(i);
  if (range.size() == 0) return;
  w.tile.Load(p.q.Head(h).Rows(i, 1), 1, p.scale);
  w.tile.Attend(keys, 0, range.last);
  const float lse = w.tile.Finalize(0, {w.a.Row(0), size_t(p.v.dim)});
  errors[i] = RowError(output.Head(h, p.q.rows, p.v.dim)[i], {w.a.Row(0), size_t(p.v.dim)}, largest);
  if (output.lse != nullptr) gaps[i] = std::pow(double(output.lse[h * p.q.rows + i]) - double(lse), 2);
}

void NtkPrefixMethod::Summarise(const Problem& p, const NtkPrefix& state, int64_t prefix,
                                const std::vector<double>& errors, const std::vector<double>& gaps, RunReport* report) {
  double sum = 0, gap = 0, probes = 0;
  for (size_t i = 0; i < errors.size(); ++i) {
    if (errors[i] < 0) continue;
    sum += errors[i], gap += gaps[i], ++probes;
  }
  report->est_error = probes == 0 ? -1 : sum / probes;
  report->lse_std = probes == 0 ? -1 : std::sqrt(gap / probes);
  report->pairs = double(p.k.heads * prefix) * double(state.features());
  for (int64_t i = 0; i < p.q.rows; ++i) {
    const int64_t last = p.Visible(i).last;
    const double pairs =
        last >= prefix ? double(last - prefix) + double(prefix > 0 ? state.features() : 0) : double(last);
    report->pairs += double(p.q.heads) * pairs;
  }
}

Result<std::unique_ptr<const Method>> MakeNtkPrefix(const Spec& spec, uint64_t seed) {
  return std::make_unique<NtkPrefixMethod>(spec, seed);
}

}  // namespace

extern const MethodInfo kMethod_ntk_prefix;
const MethodInfo kMethod_ntk_prefix = {.name = "ntk-prefix",
                                       .summary = "the first keys as a state of fixed size, the others exact",
                                       .paper = "arXiv 2406.14036 (NTK-Attention)",
                                       .params = kParams,
                                       .strict_causal = [](const Spec&) { return true; },
                                       .make = MakeNtkPrefix};

}  // namespace croquis::attention
