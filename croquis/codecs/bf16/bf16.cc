// bf16: rows as the upper half of binary32.
#include "croquis/codecs/dense_codec.h"

namespace croquis::codecs {
namespace {

Result<Contract> ContractOf(int64_t /*head_dim*/, Role, const Spec&) { return Contract{16, FloatRoundingMse(7), true}; }

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  return std::unique_ptr<const Codec>(new DenseCodec(request, simd::RowType::kBf16));
}

}  // namespace

extern const MethodInfo kMethod_bf16;
const MethodInfo kMethod_bf16 = {"bf16", "bfloat16, uncompressed", "bfloat16", {}, ContractOf, MakeCodec};

}  // namespace croquis::codecs
