#include "croquis/codecs/lloyd_max_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "croquis/base/dtype.h"

namespace croquis::codecs {
namespace {

constexpr float kF16Max = 65504;

// Eight running sums in a fixed order: the compiler vectorises it, and every machine gets the same bits, so that codes
// do not depend on the instruction set.
float SquaredNorm(const float* y, int64_t dim) {
  float s[8] = {};
  for (int64_t i = 0; i < dim; i += 8)
    for (int64_t k = 0; k < 8; ++k) s[k] += y[i + k] * y[i + k];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

}  // namespace

uint16_t QuantizeLloydMax(const Codebook& book, ScaleRule rule, const float* y, int64_t dim, uint8_t* codes) noexcept {
  alignas(64) float z[ScalarPageCodec::kMaxDim];
  float norm2 = SquaredNorm(y, dim), unit = 1;
  if (!(norm2 > 1e-24f && norm2 < 1e37f)) {  // squares left the range of floats: bring the row near 1 first
    float top = 0;
    for (int64_t i = 0; i < dim; ++i) top = std::max(top, std::fabs(y[i]));
    const bool usable = norm2 == norm2 && top > 1e-12f && top <= 3e38f;
    if (!usable) {
      std::memset(codes, 0, size_t(dim));
      return 0;
    }
    unit = top;
    for (int64_t i = 0; i < dim; ++i) z[i] = y[i] / top;
    norm2 = SquaredNorm(z, dim);
    y = z;
  }
  const float rms = std::sqrt(norm2 / float(dim)), inv = 1 / rms;
  for (int64_t i = 0; i < dim; ++i) z[i] = y[i] * inv;
  const int thresholds = (1 << book.bits) - 1;
  const float zc = simd::Pages().nearest(z, dim, book.threshold.data(), thresholds, book.value.data(), codes);
  // <y, c> = rms <z, c> > 0: z and c have equal signs in every place.
  const float scale = unit * (rule == ScaleRule::kUnbiased ? rms * (float(dim) / zc) : rms);
  return FloatToF16(std::min(scale, kF16Max));
}

LloydMaxCodec::LloydMaxCodec(const CodecRequest& request, ScalarPageSetup setup, const Options& options)
    : ScalarPageCodec(request, std::move(setup)), book_(GaussianCodebook(options.bits)), rule_(options.rule) {}

Result<std::unique_ptr<const Codec>> LloydMaxCodec::Make(const CodecRequest& request, const Options& options) {
  CROQUIS_TRY(auto rotation, transforms::Rotation::Make(request.head_dim, options.rounds, request.seed));
  ScalarPageSetup setup;
  setup.layout = {.dim = int32_t(rotation.PaddedDim()), .bits = options.bits, .runs = 1, .mins = false};
  setup.levels = GaussianCodebook(options.bits).levels;
  setup.precision = options.precision;
  setup.rotation = std::move(rotation);
  return std::unique_ptr<const Codec>(new LloydMaxCodec(request, std::move(setup), options));
}

Contract LloydMaxCodec::ContractOf(int64_t head_dim, int bits, ScaleRule rule) {
  const int64_t padded = transforms::Rotation::Padded(head_dim);
  const simd::PageLayout layout{.dim = int32_t(padded), .bits = bits, .runs = 1, .mins = false};
  const RotatedMoments m = MomentsOnSphere(GaussianCodebook(bits), head_dim, padded);
  const bool unbiased = rule == ScaleRule::kUnbiased;
  return {8.0 * double(layout.Bytes()) / double(kPageTokens * head_dim), unbiased ? m.unbiased_mse : m.raw_mse, unbiased};
}

void LloydMaxCodec::QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t*) const noexcept {
  scales[0] = QuantizeLloydMax(book_, rule_, y, Setup().layout.dim, codes);
}

void LloydMaxCodec::QuantizeBlock(const float* y, int64_t rows, uint8_t* codes, uint16_t* scales,
                                  uint16_t*) const noexcept {
  const int64_t dim = Setup().layout.dim;
  for (int64_t r = 0; r < rows; ++r) scales[r] = QuantizeLloydMax(book_, rule_, y + r * dim, dim, codes + r * dim);
}

}  // namespace croquis::codecs
