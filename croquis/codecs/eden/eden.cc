// eden: rotation, Lloyd-Max codes and the unbiased scale (Vargaftik et al.; docs/methods/eden.md).
#include <string>

#include "croquis/codecs/lloyd_max_codec.h"

namespace croquis::codecs {
namespace {

constexpr ParamInfo kParams[] = {
    {"bits", "4", 1, 8, {}, "bits of a code"},
    kRoundsParam,
    {"center", "auto", 0, 0, "auto|none|rope",
     "keys: remove the common part before encoding and add its exact contribution to the logits; auto where it pays"},
    kPrecisionParam};

LloydMaxCodec::Options OptionsOf(int64_t head_dim, const Spec& spec) {
  const int bits = int(spec.Int("bits"));
  return {bits, ResolveRounds(spec.Word("rounds"), bits, head_dim), ResolvePrecision(spec.Word("precision"), bits),
          ScaleRule::kUnbiased};
}

Result<Contract> ContractOf(int64_t head_dim, Role, const Spec& spec) {
  return LloydMaxCodec::ContractOf(head_dim, OptionsOf(head_dim, spec));
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  CodecRequest r = request;
  const LloydMaxCodec::Options options = OptionsOf(r.head_dim, r.spec);
  r.spec.Set("rounds", options.rounds == 2 ? "2" : "1");
  r.spec.Set("precision", PrecisionWord(options.precision));
  return LloydMaxCodec::Make(r, options);
}

}  // namespace

extern const MethodInfo kMethod_eden;
const MethodInfo kMethod_eden = {"eden",
                                 "rotation, Lloyd-Max codes and the unbiased scale |y|^2 / <y, c>; the default",
                                 "arXiv 2105.08339 (DRIVE); EDEN, ICML 2022",
                                 kParams,
                                 ContractOf,
                                 MakeCodec};

}  // namespace croquis::codecs
