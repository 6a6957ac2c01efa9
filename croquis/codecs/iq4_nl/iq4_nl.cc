// iq4_nl: see ../ggml.
#include "croquis/codecs/ggml/ggml_codec.h"

namespace croquis::codecs {

extern const MethodInfo kMethod_iq4_nl;
constexpr MethodInfo kMethod_iq4_nl = GgmlMethod<GgmlType::kIq4Nl>(
    "iq4_nl", "4-bit codes of a fixed uneven table, one least-squares f16 scale for 32 numbers");

}  // namespace croquis::codecs
