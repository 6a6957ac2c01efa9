// KDEformer (Zandieh et al., arXiv 2302.02451): blocks of similar keys and a sample of the rest;
// docs/methods/kdeformer.md.
#include "croquis/attention/hyper/hash.h"
#include "croquis/attention/hyper/workspace.h"
#include "croquis/attention/kdeformer/theory.h"
#include "croquis/attention/method.h"

namespace croquis::attention {
namespace {

constexpr int64_t kMany = int64_t(1) << 30;

constexpr ParamInfo kParams[] = {
    {"variant", "practical", 0, 0, "practical|theory", "practical: hash blocks and a sample; theory: densities"},
    {"block", "128", 1, kMany, {}, "practical: keys of a block"},
    {"samples", "0", 0, kMany, {}, "keys drawn; 0: 128 (practical), a quarter of the keys (theory)"},
    {"hash_bits", "7", 1, hyper::kDirections, {}, "practical: bits of a hash"},
    {"min_length", "1024", 16, kMany, {}, "practical: so many keys or fewer are attended exactly"},
    {"kde_samples", "0", 0, kMany, {}, "theory: points a density is estimated from; 0: all, exact"},
    kPrecisionParam};

class Kdeformer final : public Method {
 public:
  Kdeformer(Spec spec, uint64_t seed) : spec_(std::move(spec)), seed_(seed) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    const TileType type = TileTypeOf(spec_, p);
    if (spec_.Word("variant") == "theory")
      return kdeformer::RunTheory({spec_.Int("samples"), spec_.Int("kde_samples"), seed_}, type, executor, p, output,
                                  report);
    const hyper::Options options{.paper = true,
                                 .block = spec_.Int("block"),
                                 .samples = spec_.Int("samples") > 0 ? spec_.Int("samples") : 128,
                                 .bits = spec_.Int("hash_bits"),
                                 .min_length = spec_.Int("min_length"),
                                 .residual = hyper::Residual::kValues,
                                 .match = hyper::Match::kRank,
                                 .seed = seed_};
    return hyper::RunWith(options, type, executor, p, output, report, scratch_);
  }

 private:
  Spec spec_;
  uint64_t seed_;
  mutable hyper::Scratch scratch_;
};

Result<std::unique_ptr<const Method>> MakeKdeformer(const Spec& spec, uint64_t seed) {
  return std::make_unique<Kdeformer>(spec, seed);
}

}  // namespace

extern const MethodInfo kMethod_kdeformer;
const MethodInfo kMethod_kdeformer = {.name = "kdeformer",
                                      .summary = "hash blocks and keys drawn by value norms; by densities for small n",
                                      .paper = "arXiv 2302.02451 (KDEformer)",
                                      .params = kParams,
                                      .make = MakeKdeformer};

}  // namespace croquis::attention
