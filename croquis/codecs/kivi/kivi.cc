// kivi: per-channel keys, per-token values (arXiv 2402.02750).
#include "croquis/codecs/kivi/kivi.h"

namespace croquis::codecs {
namespace {

constexpr ParamInfo kParams[] = {
    {"bits", "2", 0, 0, "2|4", "bits of a code"},
    {"group", "32", 0, 0, "32", "tokens (keys) or channels (values) that share a scale and a zero"},
    {"precision", "auto", 0, 0, "auto|fast|fine",
     "values: bytes per weight, fast 1, fine 2, auto by bits; keys always take fine"},
};

int Bits(const Spec& spec) { return spec.Word("bits") == "2" ? 2 : 4; }

Result<Contract> ContractOf(int64_t head_dim, Role role, const Spec& spec) {
  if (role == Role::kValue) return KiviValues::ContractOf(head_dim, Bits(spec));
  return KiviKeys::ContractOf(head_dim, Bits(spec));
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  const int bits = Bits(request.spec);
  if (request.role == Role::kValue) {
    return KiviValues::Make(request, bits, ResolvePrecision(request.spec.Word("precision"), bits));
  }
  return std::unique_ptr<const Codec>(new KiviKeys(request, bits));
}

}  // namespace

extern const MethodInfo kMethod_kivi;
const MethodInfo kMethod_kivi = {"kivi",
                                 "min/max codes: keys per channel over 32 tokens, values per token over 32 channels",
                                 "arXiv 2402.02750",
                                 kParams,
                                 ContractOf,
                                 MakeCodec};

}  // namespace croquis::codecs
