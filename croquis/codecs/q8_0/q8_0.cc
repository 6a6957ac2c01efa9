// q8_0: see ../ggml.
#include "croquis/codecs/ggml/ggml_codec.h"

namespace croquis::codecs {

extern const MethodInfo kMethod_q8_0;
constexpr MethodInfo kMethod_q8_0 = GgmlMethod<GgmlType::kQ8_0>("q8_0", "8-bit integers, one f16 scale for 32 numbers");

}  // namespace croquis::codecs
