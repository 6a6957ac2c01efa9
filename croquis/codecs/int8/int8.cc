// int8: one fp16 scale a vector, max |x| / 127; codes are the rounded numbers.
#include <bit>
#include <cmath>
#include <numbers>

#include "croquis/base/dtype.h"
#include "croquis/codecs/scalar_page_codec.h"

namespace croquis::codecs {
namespace {

constexpr ParamInfo kParams[] = {kPrecisionParam};

simd::PageLayout LayoutOf(int64_t head_dim) {
  return {.dim = int32_t(transforms::Rotation::Padded(head_dim)), .bits = 8, .runs = 1, .mins = false};
}

class Int8Codec final : public ScalarPageCodec {
 public:
  static ScalarPageSetup SetupOf(int64_t head_dim, simd::Precision precision) {
    ScalarPageSetup setup;
    setup.layout = LayoutOf(head_dim);
    for (int c = 0; c < 256; ++c) setup.levels.level[0][size_t(c)] = int8_t(c - 128);
    setup.precision = precision;
    return setup;
  }
  Int8Codec(const CodecRequest& request, simd::Precision precision)
      : ScalarPageCodec(request, SetupOf(request.head_dim, precision)) {}

 protected:
  // max |x| above 127 * 65504 saturates; an infinity is stored as 127 * 65504; a NaN as some number in range.
  void QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t*) const noexcept override {
    const int64_t dim = Setup().layout.dim;
    float top[8] = {};
    for (int64_t i = 0; i < dim; i += 8)
      for (int64_t k = 0; k < 8; ++k) {
        const float a = std::fabs(y[i + k]);
        top[k] = top[k] < a ? a : top[k];
      }
    float most = top[0];
    for (int k = 1; k < 8; ++k) most = most < top[k] ? top[k] : most;
    const float wanted = most / 127;
    scales[0] = FloatToF16(wanted < 65504.f ? wanted : 65504.f);
    const float scale = F16ToFloat(scales[0]);
    const float inv = scale > 0 ? 1 / scale : 0;
    constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer in the low bits, halves to even
    for (int64_t i = 0; i < dim; ++i) {
      float v = y[i] * inv;
      v = v < 127.f ? v : 127.f;  // in this order a NaN becomes 127
      v = v > -127.f ? v : -127.f;
      codes[i] = uint8_t(std::bit_cast<uint32_t>(v + kRound) + 128u);
    }
  }
};

// E[max |z|^2] / 127^2 / 12 of head_dim unit Gaussians: the square of a uniform rounding error of width max / 127. The
// largest number itself has none.
double RelMse(int64_t head_dim) {
  double mean = 0;
  constexpr double kStep = 1e-3;
  for (double t = kStep / 2; t < 12; t += kStep)
    mean += 2 * t * kStep * (1 - std::pow(std::erf(t / std::numbers::sqrt2), double(head_dim)));
  return mean / (127.0 * 127.0 * 12.0) * (1 - 1 / double(head_dim));
}

Result<Contract> ContractOf(int64_t head_dim, Role, const Spec&) {
  return Contract{8.0 * double(LayoutOf(head_dim).Bytes()) / double(kPageTokens * head_dim), RelMse(head_dim), false};
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  CodecRequest r = request;
  const simd::Precision precision = ResolvePrecision(r.spec.Word("precision"), 8);
  r.spec.Set("precision", PrecisionWord(precision));
  return std::unique_ptr<const Codec>(new Int8Codec(r, precision));
}

}  // namespace

extern const MethodInfo kMethod_int8;
const MethodInfo kMethod_int8 = {
    "int8",   "8-bit integers with one 16-bit scale a vector", "symmetric max-abs rounding", kParams, ContractOf,
    MakeCodec};

}  // namespace croquis::codecs
