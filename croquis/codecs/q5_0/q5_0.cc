// q5_0: see ../ggml.
#include "croquis/codecs/ggml/ggml_codec.h"

namespace croquis::codecs {

extern const MethodInfo kMethod_q5_0;
constexpr MethodInfo kMethod_q5_0 = GgmlMethod<GgmlType::kQ5_0>("q5_0", "5-bit integers, one f16 scale for 32 numbers");

}  // namespace croquis::codecs
