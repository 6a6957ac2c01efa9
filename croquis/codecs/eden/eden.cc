// eden: rotation, Lloyd-Max codes and the unbiased scale (Vargaftik et al.; docs/methods/eden.md).
#include <string>

#include "croquis/codecs/lloyd_max_codec.h"

namespace croquis::codecs {
namespace {

constexpr ParamInfo kParams[] = {
    {"bits", "4", 1, 8, {}, "bits of a code"},
    {"rounds", "auto", 0, 0, "auto|1|2", "rounds of rotation; auto is 2 at 1 and 2 bits, else 1"},
    {"center", "auto", 0, 0, "auto|none|rope",
     "keys: remove the common part before encoding and add its exact contribution to the logits; auto where it pays"},
    kPrecisionParam};

Result<Contract> ContractOf(int64_t head_dim, Role, const Spec& spec) {
  return LloydMaxCodec::ContractOf(head_dim, int(spec.Int("bits")), ScaleRule::kUnbiased);
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  CodecRequest r = request;
  const int bits = int(r.spec.Int("bits"));
  if (r.spec.Word("rounds") == "auto") r.spec.Set("rounds", bits <= 2 ? "2" : "1");
  const simd::Precision precision = ResolvePrecision(r.spec.Word("precision"), bits);
  r.spec.Set("precision", precision == simd::Precision::kFine ? "fine" : "fast");
  return LloydMaxCodec::Make(r, {bits, int(r.spec.Int("rounds")), precision, ScaleRule::kUnbiased});
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
