#include <algorithm>

#include "croquis/codecs/kivi/kivi.h"
#include "croquis/codecs/kivi/minmax.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kGroup = 32;

simd::PageLayout LayoutOf(int64_t head_dim, int bits) {
  const int32_t groups = int32_t((head_dim + kGroup - 1) / kGroup);
  return {int32_t(groups * kGroup), bits, groups, true};
}

}  // namespace

std::unique_ptr<const Codec> KiviValues::Make(const CodecRequest& request, int bits, simd::Precision precision) {
  ScalarPageSetup setup;
  setup.layout = LayoutOf(request.head_dim, bits);
  setup.precision = precision;
  for (int code = 0; code < 1 << bits; ++code) setup.levels.level[0][size_t(code)] = int8_t(code);
  return std::unique_ptr<const Codec>(new KiviValues(request, std::move(setup), (1 << bits) - 1));
}

Contract KiviValues::ContractOf(int64_t head_dim, int bits) {
  const int top = (1 << bits) - 1;
  const int64_t whole = head_dim / kGroup, rest = head_dim % kGroup;
  const double error =
      double(whole * kGroup) * MinMaxGaussianMse(top, kGroup) + double(rest) * MinMaxGaussianMse(top, rest);
  const double bytes = double(LayoutOf(head_dim, bits).Bytes());
  return {8 * bytes / double(kPageTokens * head_dim), error / double(head_dim), false};
}

void KiviValues::QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t* mins) const noexcept {
  for (int32_t run = 0; run < Setup().layout.runs; ++run) {
    const int64_t begin = run * kGroup, n = std::min(kGroup, HeadDim() - begin);
    const auto [lo, hi] = std::minmax_element(y + begin, y + begin + n);
    const MinMax m = MinMaxOf(*lo, *hi, top_);
    MinMaxCodes(m, top_, y + begin, n, 1, codes + begin);
    std::fill(codes + begin + n, codes + begin + kGroup, uint8_t{0});
    scales[run] = m.scale;
    mins[run] = m.zero;
  }
}

}  // namespace croquis::codecs
