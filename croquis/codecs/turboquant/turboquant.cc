// turboquant: rotation + Lloyd-Max with the raw scale (mse), or one bit less and a sign sketch of the residual (prod).
#include <string>

#include "croquis/codecs/lloyd_max_codec.h"
#include "croquis/codecs/turboquant/prod.h"

namespace croquis::codecs {
namespace {

constexpr ParamInfo kParams[] = {
    {"mode", "mse", 0, 0, "mse|prod", "mse: all bits in codes; prod: one of them in signs of the residual (unbiased)"},
    {"bits", "4", 1, 8, {}, "bits a number, the sign included"},
    kRoundsParam,
    {"proj", "gauss", 0, 0, "gauss|orth",
     "prod: projection of the residual; gauss as published, orth 2.8 times better"},
    kPrecisionParam};

SignProjection::Kind Projection(const Spec& spec) {
  return spec.Word("proj") == "orth" ? SignProjection::Kind::kOrthogonal : SignProjection::Kind::kGaussian;
}

Result<Contract> ContractOf(int64_t head_dim, Role, const Spec& spec) {
  const int bits = int(spec.Int("bits")), rounds = ResolveRounds(spec.Word("rounds"), bits, head_dim);
  const simd::Precision precision = ResolvePrecision(spec.Word("precision"), bits);
  if (spec.Word("mode") == "prod")
    return TurboQuantProd::ContractOf(head_dim, {bits, rounds, Projection(spec), precision});
  return LloydMaxCodec::ContractOf(head_dim, {bits, rounds, precision, ScaleRule::kRaw});
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  CodecRequest r = request;
  const int bits = int(r.spec.Int("bits")), rounds = ResolveRounds(r.spec.Word("rounds"), bits, r.head_dim);
  const simd::Precision precision = ResolvePrecision(r.spec.Word("precision"), bits);
  r.spec.Set("rounds", rounds == 2 ? "2" : "1");
  r.spec.Set("precision", PrecisionWord(precision));
  if (r.spec.Word("mode") == "prod") return TurboQuantProd::Make(r, {bits, rounds, Projection(r.spec), precision});
  return LloydMaxCodec::Make(r, {bits, rounds, precision, ScaleRule::kRaw});
}

}  // namespace

extern const MethodInfo kMethod_turboquant;
const MethodInfo kMethod_turboquant = {
    "turboquant",       "rotation and Lloyd-Max codes with the norm as scale; prod adds a sign sketch",
    "arXiv 2504.19874", kParams,
    ContractOf,         MakeCodec};

}  // namespace croquis::codecs
