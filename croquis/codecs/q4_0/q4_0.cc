// q4_0: see ../ggml.
#include "croquis/codecs/ggml/ggml_codec.h"

namespace croquis::codecs {

extern const MethodInfo kMethod_q4_0;
constexpr MethodInfo kMethod_q4_0 = GgmlMethod<GgmlType::kQ4_0>("q4_0", "4-bit integers, one f16 scale for 32 numbers");

}  // namespace croquis::codecs
