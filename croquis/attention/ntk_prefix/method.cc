// Attention whose first keys are replaced by a state of fixed size; the rest is exact.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "croquis/attention/method.h"
#include "croquis/attention/ntk_prefix/ntk_prefix.h"
#include "croquis/attention/reference.h"
#include "croquis/attention/row_error.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention {
namespace {

const ParamInfo kParams[] = {
    {"prefix", "64", 0, 1 << 30, {}, "keys, from the first on, that the state stands for"},
    {"features", "elu", 0, 0, "elu|elu-paper|taylor1|taylor2|favor", "the map phi; see docs/methods/ntk-prefix.md"},
    {"m", "256", 1, 65536, {}, "features of favor"},
    {.name = "file",
     .def = "-",
     .help = "a state (croquis attn --save-prefix) that stands before all keys, in place of the other parameters; -: "
             "none",
     .text = true},
    kPrecisionParam,
};

// What stands for keys: the problem's first ones, or, read from a file, others that come before all of them.
struct Prefix {
  const NtkPrefix& state;
  int64_t keys;  // of the problem
  bool loaded;

  // A problem of a batch has its heads several times.
  int64_t Head(int64_t kv) const { return kv % state.heads(); }
};

struct Worker {
  QueryTile tile;
  NtkPrefix::Scratch scratch;
  Matrix<float> q, a;
};

class NtkPrefixMethod final : public Method {
 public:
  NtkPrefixMethod(Spec spec, uint64_t seed, std::unique_ptr<const NtkPrefix> loaded)
      : spec_(std::move(spec)), seed_(seed), loaded_(std::move(loaded)) {}

  bool HasOwnKeys() const override { return loaded_ != nullptr; }

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    if (loaded_ != nullptr) {
      CROQUIS_CHECK_OK(CheckLoaded(p));
      return RunWith(executor, p, output, {*loaded_, 0, true}, report);
    }
    const int64_t keys = std::min(spec_.Int("prefix"), p.k.rows);
    TensorView k = p.k, v = p.v;
    k.rows = v.rows = keys;
    CROQUIS_TRY(const NtkPrefix state,
                NtkPrefix::FromKeysValues(executor, k, v, PrefixConfig::From(spec_, p.scale, seed_)));
    return RunWith(executor, p, output, {state, keys, false}, report);
  }

  Status RunReference(Executor& executor, const Problem& p, const Output& output) const override;

 private:
  Status CheckLoaded(const Problem& p) const;
  Status RunWith(Executor& executor, const Problem& p, const Output& output, const Prefix& prefix,
                 RunReport* report) const;
  static std::vector<int64_t> RunTile(const Problem& p, const Output& output, const KeySet& keys, const Prefix& prefix,
                                      int64_t h, int64_t first, Worker& w);
  static void Probe(const Problem& p, const Output& output, const KeySet& keys, int64_t h, int64_t first, Worker& w,
                    double largest, double* errors, double* gaps);
  static void Summarise(const Problem& p, const Prefix& prefix, const std::vector<double>& errors,
                        const std::vector<double>& gaps, RunReport* report);

  Spec spec_;
  uint64_t seed_;
  std::unique_ptr<const NtkPrefix> loaded_;
};

// Whether the state of the file was made for such a problem.
Status NtkPrefixMethod::CheckLoaded(const Problem& p) const {
  const NtkPrefix& s = *loaded_;
  const auto text = [](int64_t heads, int64_t dim, int64_t value_dim) {
    return std::to_string(heads) + " kv heads of dim " + std::to_string(dim) + ", values of " +
           std::to_string(value_dim);
  };
  if (p.k.heads % s.heads() != 0 || p.q.dim != s.dim() || p.v.dim != s.value_dim())
    return InvalidArgument("ntk-prefix: the file holds " + text(s.heads(), s.dim(), s.value_dim()) +
                           "; this problem has " + text(p.k.heads, p.q.dim, p.v.dim));
  const float made_for = s.config().scale;
  if (std::abs(p.scale - made_for) > 1e-5f * std::abs(made_for))
    return InvalidArgument("ntk-prefix: the file was made for logits of scale " + std::to_string(made_for) + ", not " +
                           std::to_string(p.scale) + "; give that scale, or convert the prefix with this one");
  return {};
}

Status NtkPrefixMethod::RunWith(Executor& executor, const Problem& p, const Output& output, const Prefix& prefix,
                                RunReport* report) const {
  const TileType type = TileTypeOf(spec_, p);
  const int64_t nq = p.q.rows, tiles = (nq + kTileRows - 1) / kTileRows, group = p.Group();
  CROQUIS_CHECK_OK(CheckMemory(int64_t(KeySet::Bytes(type, p.k.rows, p.q.dim, p.v.dim)), "the packed keys of a head"));
  std::vector<Worker> workers;
  workers.reserve(size_t(executor.threads()));
  for (int i = 0; i < executor.threads(); ++i)
    workers.push_back({QueryTile(type, p.q.dim, p.v.dim), prefix.state.MakeScratch(kTileRows),
                       Matrix<float>(kTileRows, p.q.dim), Matrix<float>(kTileRows, p.v.dim)});
  KeySet keys(type, p.k.rows, p.q.dim, p.v.dim);
  std::vector<std::vector<int64_t>> failed(size_t(p.q.heads * tiles));  // rows without a state, of each tile
  std::vector<double> errors(size_t(p.q.heads * nq), -1), gaps(size_t(p.q.heads * nq));
  for (int64_t kv = 0; kv < p.k.heads; ++kv) {
    keys.Pack(executor, p.k.Head(kv), p.v.Head(kv));
    const double largest = LargestNorm(executor, p.v.Head(kv));
    executor.ParallelFor(group * tiles, [&](int64_t task, int worker) {
      const int64_t h = kv * group + task % group, tile = tiles - 1 - task / group, first = tile * kTileRows;
      failed[size_t(h * tiles + tile)] = RunTile(p, output, keys, prefix, h, first, workers[size_t(worker)]);
      if (!prefix.loaded)
        Probe(p, output, keys, h, first, workers[size_t(worker)], largest, errors.data() + h * nq,
              gaps.data() + h * nq);
    });
  }
  Summarise(p, prefix, errors, gaps, report);
  report->kernel = simd::Tiles(type).name;
  for (size_t t = 0; t < failed.size(); ++t) {
    if (prefix.loaded && !failed[t].empty())
      return Numeric("ntk-prefix: the state of the file has no positive mass for head " +
                     std::to_string(int64_t(t) / tiles) + ", row " + std::to_string(failed[t][0]) +
                     ", and there are no keys to use instead; convert with features that are positive (elu, taylor2, "
                     "favor)");
    report->fallback_rows += int64_t(failed[t].size());
  }
  report->pairs += double(report->fallback_rows) * double(prefix.keys);
  return {};
}

// Rows that see the whole prefix read the state, others (within it) their keys. Returns rows for which the state gave
// no positive mass; they read the prefix's keys too, where it has some.
std::vector<int64_t> NtkPrefixMethod::RunTile(const Problem& p, const Output& output, const KeySet& keys,
                                              const Prefix& prefix, int64_t h, int64_t first, Worker& w) {
  const int64_t rows = std::min(kTileRows, p.q.rows - first);
  const RowsView queries = p.q.Head(h).Rows(first, rows);
  Range visible[kTileRows];
  bool whole[kTileRows];  // sees the whole prefix
  int64_t begin = p.k.rows, end = 0;
  for (int64_t r = 0; r < rows; ++r) {
    visible[r] = p.Visible(first + r);
    whole[r] = prefix.loaded || (prefix.keys > 0 && visible[r].last >= prefix.keys);
    if (whole[r]) visible[r].first = prefix.keys;
    begin = std::min(begin, visible[r].first), end = std::max(end, visible[r].last);
  }
  w.tile.Load(queries, rows, p.scale);
  w.tile.Attend(keys, begin, end, {visible, size_t(rows)});
  float m[kTileRows], l[kTileRows];
  std::vector<int64_t> failed;
  if (std::find(whole, whole + rows, true) != whole + rows) {
    for (int64_t r = 0; r < rows; ++r) queries.Read(r, w.q.Row(r));
    prefix.state.Evaluate(prefix.Head(h / p.Group()), {w.q.data(), rows, p.q.dim}, w.a.View().Rows(0, rows), m, l,
                          w.scratch);
    for (int64_t r = 0; r < rows; ++r) {
      const bool good = l[r] > 0 && std::isfinite(l[r]) && simd::Dense().all_below(w.a.Row(r), p.v.dim, 1e38f);
      if (whole[r] && good) w.tile.Merge(r, {m[r], l[r], {w.a.Row(r), size_t(p.v.dim)}});
      if (whole[r] && !good) failed.push_back(first + r);
      visible[r] = whole[r] && !good ? Range{0, prefix.keys} : Range{0, 0};
    }
    if (!failed.empty() && prefix.keys > 0) w.tile.Attend(keys, 0, prefix.keys, {visible, size_t(rows)});
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

void NtkPrefixMethod::Summarise(const Problem& p, const Prefix& prefix, const std::vector<double>& errors,
                                const std::vector<double>& gaps, RunReport* report) {
  double sum = 0, gap = 0, probes = 0;
  for (size_t i = 0; i < errors.size(); ++i) {
    if (errors[i] < 0) continue;
    sum += errors[i], gap += gaps[i], ++probes;
  }
  report->est_error = probes == 0 ? -1 : sum / probes;
  report->lse_std = probes == 0 ? -1 : std::sqrt(gap / probes);
  const auto features = double(prefix.state.features());
  report->pairs = double(p.k.heads * prefix.keys) * features;
  for (int64_t i = 0; i < p.q.rows; ++i) {
    const int64_t last = p.Visible(i).last;
    const bool whole = prefix.loaded || (prefix.keys > 0 && last >= prefix.keys);
    report->pairs += double(p.q.heads) * (whole ? double(last - prefix.keys) + features : double(last));
  }
}

// Of a loaded state it is what the state says, merged in double with softmax over the keys: what the state stands for
// is not known.
Status NtkPrefixMethod::RunReference(Executor& executor, const Problem& p, const Output& output) const {
  if (loaded_ == nullptr) return Method::RunReference(executor, p, output);
  CROQUIS_CHECK_OK(CheckLoaded(p));
  const int64_t nq = p.q.rows, dv = p.v.dim;
  std::vector<float> lses(size_t(p.q.heads * nq), kEmptyMax);
  Output softmax = output;
  softmax.lse = lses.data();
  if (p.k.rows > 0) CROQUIS_CHECK_OK(SoftmaxReference(executor, p, softmax));
  executor.ParallelFor(p.q.heads, [&](int64_t h, int) {
    NtkPrefix::Scratch scratch = loaded_->MakeScratch(1);
    Matrix<float> q(1, p.q.dim), a(1, dv);
    for (int64_t i = 0; i < nq; ++i) {
      float m = 0, l = 0;
      p.q.Head(h).Read(i, q.Row(0));
      loaded_->Evaluate(Prefix{*loaded_, 0, true}.Head(h / p.Group()), q.View(), a.View(), &m, &l, scratch);
      float& lse = lses[size_t(h * nq + i)];
      const double top = std::max(double(m), double(lse)), of_state = std::exp(double(m) - top),
                   of_keys = std::exp(double(lse) - top), mass = of_state * double(l) + of_keys;
      const auto out = output.Head(h, nq, dv)[i];
      for (int64_t c = 0; c < dv; ++c) {
        const double key_part = p.k.rows > 0 ? of_keys * double(out[size_t(c)]) : 0;
        out[size_t(c)] = float((of_state * double(a.Row(0)[c]) + key_part) / mass);
      }
      lse = float(top + std::log(mass));
    }
  });
  if (output.lse != nullptr) std::copy(lses.begin(), lses.end(), output.lse);
  return {};
}

Result<std::unique_ptr<const Method>> MakeNtkPrefix(const Spec& spec, uint64_t seed) {
  std::unique_ptr<const NtkPrefix> loaded;
  if (const std::string_view path = spec.Word("file"); path != "-") {
    for (const ParamInfo& p : kParams)
      if ((p.name == "prefix" || p.name == "features" || p.name == "m") && spec.Word(p.name) != p.def)
        return InvalidArgument("ntk-prefix: " + std::string(p.name) + " is given by the file; leave it out");
    CROQUIS_TRY(NtkPrefix state, NtkPrefix::Load(std::string(path)));
    loaded = std::make_unique<const NtkPrefix>(std::move(state));
  }
  return std::make_unique<NtkPrefixMethod>(spec, seed, std::move(loaded));
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
