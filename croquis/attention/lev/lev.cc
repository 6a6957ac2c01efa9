// LevAttention (Kannan, Bhattacharyya, Kacham, Woodruff, arXiv 2410.05462): attention over a universal set of keys.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "croquis/attention/lev/power.h"
#include "croquis/attention/lev/runs.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention {
namespace lev {

Stream SampleStream(uint64_t seed, int64_t kv_head, int64_t tile) {
  return Stream{seed, Purpose("attention.lev.residual")}.Sub(uint64_t(kv_head)).Sub(uint64_t(tile));
}

int64_t SampleCount(const TilePlan& tile, int64_t samples) {
  return tile.rest <= samples ? tile.rest : samples / 2 * 2;
}

double PlannedPairs(const Problem& p, std::span<const KeyPlan> plans, int64_t samples) {
  double pairs = 0;
  for (const KeyPlan& plan : plans)
    for (size_t t = 0; t < plan.tiles.size(); ++t) {
      const TilePlan& tile = plan.tiles[t];
      const int64_t first = int64_t(t) * kTileRows, last = std::min(p.q.rows, first + kTileRows);
      const int64_t shared = tile.set_keys(int64_t(plan.sets[size_t(tile.set)].size())) + SampleCount(tile, samples);
      pairs += double(last - first) * double(shared);
      for (int64_t i = first; i < last; ++i) {
        const Range seen = p.Visible(i);
        pairs += double(Range{std::max(seen.first, tile.local.first), std::min(seen.last, tile.local.last)}.size());
      }
    }
  return pairs * double(p.Group());
}

namespace {

const ParamInfo kParams[] = {
    {.name = "score",
     .def = "softmax",
     .choices = "softmax|power",
     .help = "weights exp(x), or |x|^p as in the paper's theorem"},
    {.name = "p",
     .def = "2",
     .help = "the score function |x|^p that sets are universal for",
     .real_min = 1,
     .real_max = 8},
    {.name = "eps",
     .def = "0.05",
     .help = "keep every key that some query can give a weight of eps under |x|^p",
     .real_min = 1e-6,
     .real_max = 1},
    {.name = "top", .def = "0", .min = 0, .max = 1 << 20, .help = "keep about this many keys instead; 0: by eps"},
    {.name = "residual",
     .def = "stratified",
     .choices = "none|stratified",
     .help = "the other keys: left out, or sampled with weights"},
    {.name = "samples", .def = "256", .min = 2, .max = 65536, .help = "keys sampled for 64 query rows"},
    {.name = "window", .def = "128", .min = 0, .max = 1 << 20, .help = "keys before a row's tile that are always seen"},
    {.name = "sinks", .def = "4", .min = 0, .max = 4096, .help = "first keys that are always seen"},
    {.name = "center",
     .def = "auto",
     .choices = "auto|mean|none",
     .help = "leverage about the mean of the keys; auto: for softmax, which does not see a shift"},
    {.name = "ridge",
     .def = "1e-12",
     .help = "relative to the mean squared singular value of the keys",
     .real_min = kLeastRidge,
     .real_max = .01},
    kPrecisionParam};

class Lev final : public Method {
 public:
  Lev(const Spec& spec, uint64_t seed) : spec_(spec), power_(spec.Word("score") == "power") {
    o_.plan.p = spec.Real("p");
    o_.plan.eps = spec.Real("eps");
    o_.plan.top = spec.Int("top");
    o_.plan.ridge = spec.Real("ridge");
    o_.plan.center = spec.Word("center") == "mean" || (spec.Word("center") == "auto" && !power_);
    o_.plan.window = spec.Int("window");
    o_.plan.sinks = spec.Int("sinks");
    o_.samples = spec.Word("residual") == "none" ? 0 : spec.Int("samples") / 2 * 2;
    o_.seed = seed;
  }

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    RunOptions o = o_;
    o.type = TileTypeOf(spec_, p);
    o.samples = std::min(o.samples, (p.k.rows + 1) / 2 * 2);  // room for no more than there are
    return power_ ? RunPower(executor, p, o, output, report) : RunSoftmax(executor, p, o, output, report);
  }

  Status RunReference(Executor& executor, const Problem& p, const Output& output) const override {
    return power_ ? PowerReference(executor, p, o_.plan.p, output) : Method::RunReference(executor, p, output);
  }

 private:
  Spec spec_;
  bool power_;
  RunOptions o_;
};

Result<std::unique_ptr<const Method>> MakeLev(const Spec& spec, uint64_t seed) {
  const bool power = spec.Word("score") == "power";
  if (power && spec.Word("center") == "mean")
    return InvalidArgument(
        "lev: score=power is not the same for shifted keys, so center=mean makes no sense with it; leave center out");
  if (power && spec.Word("precision") == "bf16")
    return InvalidArgument("lev: score=power is computed in f32 only; leave precision out");
  return std::make_unique<Lev>(spec, seed);
}

}  // namespace
}  // namespace lev

extern const MethodInfo kMethod_lev;
const MethodInfo kMethod_lev = {.name = "lev",
                                .summary = "universal sets of keys by leverage and Lewis weights; the rest sampled",
                                .paper = "arXiv 2410.05462 (LevAttention)",
                                .params = lev::kParams,
                                .strict_causal = [](const Spec&) { return true; },
                                .make = lev::MakeLev};

}  // namespace croquis::attention
