// q4_1: see ../ggml.
#include "croquis/codecs/ggml/ggml_codec.h"

namespace croquis::codecs {

extern const MethodInfo kMethod_q4_1;
constexpr MethodInfo kMethod_q4_1 =
    GgmlMethod<GgmlType::kQ4_1>("q4_1", "4-bit codes with scale and minimum for 32 numbers");

}  // namespace croquis::codecs
