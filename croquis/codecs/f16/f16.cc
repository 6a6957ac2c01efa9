// f16: rows as IEEE binary16.
#include "croquis/codecs/dense_codec.h"

namespace croquis::codecs {
namespace {

Result<Contract> ContractOf(int64_t /*head_dim*/, Role, const Spec&) {
  return Contract{16, FloatRoundingMse(10), true};
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  return std::unique_ptr<const Codec>(new DenseCodec(request, simd::RowType::kF16));
}

}  // namespace

extern const MethodInfo kMethod_f16;
const MethodInfo kMethod_f16 = {"f16", "16-bit floats, uncompressed", "IEEE 754 binary16", {}, ContractOf, MakeCodec};

}  // namespace croquis::codecs
