// f32: rows as they come.
#include "croquis/codecs/dense_codec.h"

namespace croquis::codecs {
namespace {

Result<Contract> ContractOf(int64_t /*head_dim*/, Role, const Spec&) { return Contract{32, 0, true}; }

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  return std::unique_ptr<const Codec>(new DenseCodec(request, simd::RowType::kF32));
}

}  // namespace

extern const MethodInfo kMethod_f32;
const MethodInfo kMethod_f32 = {"f32", "32-bit floats, exact", "IEEE 754 binary32", {}, ContractOf, MakeCodec};

}  // namespace croquis::codecs
