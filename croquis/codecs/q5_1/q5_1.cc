// q5_1: see ../ggml.
#include "croquis/codecs/ggml/ggml_codec.h"

namespace croquis::codecs {

extern const MethodInfo kMethod_q5_1;
constexpr MethodInfo kMethod_q5_1 =
    GgmlMethod<GgmlType::kQ5_1>("q5_1", "5-bit codes with scale and minimum for 32 numbers");

}  // namespace croquis::codecs
