// HyperAttention (Han et al., arXiv 2310.05869), as published and with what it lacks; docs/methods/hyper.md.
#include <memory>

#include "croquis/attention/hyper/hash.h"
#include "croquis/attention/hyper/options.h"
#include "croquis/attention/hyper/workspace.h"
#include "croquis/attention/method.h"

namespace croquis::attention {
namespace hyper {
namespace {

constexpr int64_t kManyKeys = int64_t(1) << 30;

constexpr ParamInfo kParams[] = {
    {"variant", "v2", 0, 0, "v2|paper", "v2: centred principal hashes, global keys, moments; paper: as published"},
    {"block", "0", 0, kManyKeys, {}, "keys of a window; 0: 128, 256 for paper"},
    {"samples", "0", 0, kManyKeys, {}, "cells or samples of the residual; 0: 128 or sqrt(n), 256 for paper"},
    {"hash_bits", "0", 0, kDirections, {}, "bits of a hash; 0: by length, 7 for paper"},
    {"min_length", "2048", 16, kManyKeys, {}, "so many keys or fewer are attended exactly"},
    {"split", "2", 2, 64, {}, "causal: parts that a range is cut into, again and again; 2: the paper's halving"},
    {"global", "64", 0, 4096, {}, "v2: keys every query meets exactly: sinks, along the mean query, far from the mean"},
    {"recent", "16", 0, 4096, {}, "v2, causal: of these, the last keys of a segment"},
    {"residual", "auto", 0, 0, "auto|moment|stratified|uniform|sinks",
     "what stands for other keys; auto: moment, uniform for paper"},
    {"match", "auto", 0, 0, "auto|code|rank", "how windows are found; auto: code, rank for paper"},
    {"strict", "0", 0, 1, {}, "1: no row depends on later tokens, not even by the choice of keys"},
    {.name = "tol",
     .def = "0",
     .help = "rows whose estimated relative error is larger are computed exactly; 0: none",
     .real_min = 0,
     .real_max = 100},
    {.name = "cap",
     .def = "0.5",
     .help = "with a larger share of such rows the whole head is computed exactly (not if strict)",
     .real_min = 0,
     .real_max = 1},
    {"probes", "16", 0, 64, {}, "rows of each head computed exactly to estimate the error of moments; 0: no estimate"},
    kPrecisionParam};

class Hyper final : public Method {
 public:
  Hyper(Spec spec, const Options& options) : spec_(std::move(spec)), options_(options) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    return RunWith(options_, TileTypeOf(spec_, p), executor, p, output, report, scratch_);
  }

 private:
  Spec spec_;
  Options options_;
  mutable Scratch scratch_;
};

Result<std::unique_ptr<const Method>> Make(const Spec& spec, uint64_t seed) {
  CROQUIS_TRY(const Options options, ReadOptions(spec, seed));
  return std::make_unique<Hyper>(spec, options);
}

}  // namespace

Result<Options> ReadOptions(const Spec& spec, uint64_t seed) {
  const bool paper = spec.Word("variant") == "paper";
  const auto or_else = [](int64_t x, int64_t other) { return x == 0 ? other : x; };
  Options o{.paper = paper,
            .block = or_else(spec.Int("block"), paper ? 256 : 0),
            .samples = or_else(spec.Int("samples"), paper ? 256 : 0),
            .bits = or_else(spec.Int("hash_bits"), paper ? 7 : 0),
            .min_length = spec.Int("min_length"),
            .split = spec.Int("split"),
            .globals = paper ? 0 : spec.Int("global"),
            .recent = paper ? 0 : spec.Int("recent"),
            .strict = spec.Int("strict") == 1,
            .tolerance = spec.Real("tol"),
            .cap = spec.Real("cap"),
            .probes = spec.Int("probes"),
            .seed = seed};
  const std::string_view residual = spec.Word("residual"), match = spec.Word("match");
  o.residual = residual == "stratified"                                 ? Residual::kStratified
               : residual == "sinks"                                    ? Residual::kSinks
               : residual == "uniform" || (residual == "auto" && paper) ? Residual::kUniform
                                                                        : Residual::kMoment;
  o.match = match == "rank" || (match == "auto" && paper) ? Match::kRank : Match::kCode;
  if (o.strict && o.match == Match::kRank)
    return InvalidArgument(
        "hyper: strict=1 needs match=code (variant=v2): by rank a row's keys depend on the codes of later queries");
  const bool halves = SplitsSamples(o.residual);
  if (o.tolerance > 0 && o.residual == Residual::kSinks)
    return InvalidArgument("hyper: tol needs an estimate of the error, which residual=sinks has not; use stratified");
  if (o.tolerance > 0 && !halves && o.probes == 0)
    return InvalidArgument("hyper: tol with residual=moment needs probes > 0, which its estimate is scaled by");
  if (o.tolerance > 0 && !halves && o.strict)
    return InvalidArgument(
        "hyper: tol with strict=1 needs residual=stratified: probes of later rows would decide which rows are computed "
        "again");
  return o;
}

}  // namespace hyper

extern const MethodInfo kMethod_hyper;
const MethodInfo kMethod_hyper = {.name = "hyper",
                                  .summary = "sorted hashes: windows of similar keys, the rest by moments or samples",
                                  .paper = "arXiv 2310.05869 (HyperAttention)",
                                  .params = hyper::kParams,
                                  .strict_causal = [](const Spec& spec) { return spec.Int("strict") == 1; },
                                  .make = hyper::Make};

}  // namespace croquis::attention
