// Polynomial attention on tensors: blocks of keys become states, states are summed from the left, queries read the
// state before their block and their own block pair by pair.
#include "croquis/attention/polysketch/polysketch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "croquis/attention/method.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/polysketch/runner.h"

namespace croquis::attention {
namespace {

using polysketch::PolyConfig;
using polysketch::PolyForm;
using polysketch::SketchKind;

const ParamInfo kParams[] = {
    {"degree", "4", 2, 8, {}, "p, even: weights are <q, k>^p; sketches need a power of two"},
    {"r", "32", 1, 256, {}, "numbers of a sketch; a state has r (r + 1) / 2 rows"},
    {"block", "128", 16, 1024, {}, "keys of a block, whose pairs are evaluated one by one under a causal mask"},
    {"mixed", "0", 0, 1, {}, "causal: exact weights within a block, sketched across blocks"},
    {"sketch", "gaussian", 0, 0, "gaussian|srht|none", "none: exact weights, through a state for degree 2 only"},
    {"normalise", "1", 0, 1, {}, "layer-normalise rows of q and k, and leave the scale out"},
    {"bias", "1", 0, 0, {}, "added to each normaliser", 0, 1e6},
    {"seed", "0", 0, 1 << 30, {}, "added to the seed of the run"},
};

class PolySketchMethod final : public Method {
 public:
  explicit PolySketchMethod(const PolyConfig& config) : config_(config) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    if (config_.mixed && !p.mask.causal)
      return Unsupported("polysketch: mixed=1 is for causal masks: without one no block of keys is a query's own");
    const PolyForm form(config_, p.q.dim, p.scale);
    // Exact squares take a state of dim (dim + 1) / 2 rows: below twice as many keys pairs are less work.
    const bool pairs =
        !config_.HasState() || ((!config_.sketch || config_.degree == 2) && p.k.rows <= 2 * form.map().features());
    report->kernel = simd::Dense().name;
    report->est_error = !config_.sketch || config_.degree == 2 ? 0 : -1;
    report->lse_std = report->est_error;
    return pairs ? polysketch::RunPairs(executor, form, p, output, report)
                 : polysketch::RunStates(executor, form, p, output, report);
  }

  // Polynomial attention itself, in double.
  Status RunReference(Executor& executor, const Problem& p, const Output& output) const override;

 private:
  PolyConfig config_;
};

// Rows of a head as they enter inner products, in double.
std::vector<double> Prepared(const RowsView& x, bool normalise, double scale) {
  std::vector<double> out(size_t(x.rows * x.dim));
  std::vector<float> row(static_cast<size_t>(x.dim));
  for (int64_t r = 0; r < x.rows; ++r) {
    x.Read(r, row.data());
    double mean = 0, variance = 0;
    for (const float a : row) mean += double(a) / double(x.dim);
    for (const float a : row) variance += (double(a) - mean) * (double(a) - mean) / double(x.dim);
    for (int64_t i = 0; i < x.dim; ++i)
      out[size_t(r * x.dim + i)] =
          normalise ? (double(row[size_t(i)]) - mean) / std::sqrt(variance + 1e-5) : double(row[size_t(i)]) * scale;
  }
  return out;
}

Status PolySketchMethod::RunReference(Executor& executor, const Problem& p, const Output& output) const {
  const int64_t dim = p.q.dim, dv = p.v.dim;
  CROQUIS_CHECK_OK(CheckMemory((p.q.rows + p.k.rows) * dim * 8, "polynomial attention in double precision"));
  for (int64_t h = 0; h < p.q.heads; ++h) {
    const RowsView values = p.v.Head(h / p.Group());
    const std::vector<double> q = Prepared(p.q.Head(h), config_.normalise, double(p.scale)),
                              k = Prepared(p.k.Head(h / p.Group()), config_.normalise, 1);
    executor.ParallelFor(p.q.rows, [&](int64_t i, int) {
      std::vector<double> sum(static_cast<size_t>(dv));
      std::vector<float> v(static_cast<size_t>(dv));
      const Range range = p.Visible(i);
      double mass = config_.bias;
      for (int64_t j = range.first; j < range.last; ++j) {
        double s = 0;
        for (int64_t c = 0; c < dim; ++c) s += q[size_t(i * dim + c)] * k[size_t(j * dim + c)];
        const double w = std::pow(s, config_.degree);
        mass += w;
        values.Read(j, v.data());
        for (int64_t c = 0; c < dv; ++c) sum[size_t(c)] += w * double(v[size_t(c)]);
      }
      const bool any = range.size() > 0 && mass > 0;
      for (int64_t c = 0; c < dv; ++c) output.Head(h, p.q.rows, dv)(i, c) = any ? float(sum[size_t(c)] / mass) : 0.f;
      if (output.lse != nullptr) output.lse[h * p.q.rows + i] = any ? float(std::log(mass)) : kEmptyMax;
    });
  }
  return {};
}

Result<std::unique_ptr<const Method>> MakePolySketch(const Spec& spec, uint64_t seed) {
  PolyConfig config;
  config.degree = int(spec.Int("degree"));
  config.rank = spec.Int("r");
  config.block = spec.Int("block");
  config.mixed = spec.Int("mixed") == 1;
  const std::string_view sketch = spec.Word("sketch");
  config.sketch.reset();
  if (sketch != "none") config.sketch = sketch == "srht" ? SketchKind::kSrht : SketchKind::kGaussian;
  config.normalise = spec.Int("normalise") == 1;
  config.bias = spec.Real("bias");
  config.seed = seed + uint64_t(spec.Int("seed"));
  if (config.degree % 2 != 0)
    return OutOfRange("polysketch: the degree must be even, so that no weight is negative; got " +
                      std::to_string(config.degree));
  if (config.sketch && config.degree == 6)
    return OutOfRange("polysketch: sketches have degree 2, 4 or 8; degree=6 needs sketch=none");
  return std::make_unique<PolySketchMethod>(config);
}

}  // namespace

extern const MethodInfo kMethod_polysketch;
const MethodInfo kMethod_polysketch = {.name = "polysketch",
                                       .summary = "polynomial attention through sketched features, linear in length",
                                       .paper = "arXiv 2310.01655 (PolySketchFormer)",
                                       .params = kParams,
                                       .softmax = false,
                                       .strict_causal = [](const Spec&) { return true; },
                                       .make = MakePolySketch};

}  // namespace croquis::attention
