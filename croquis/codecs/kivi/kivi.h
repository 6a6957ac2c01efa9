// KIVI's two quantisers (arXiv 2402.02750): keys per channel over groups of 32 tokens, values per token over groups of
// 32 channels, both asymmetric min/max with fp16 scale and zero.
#pragma once

#include "croquis/codecs/generic_codec.h"
#include "croquis/codecs/scalar_page_codec.h"

namespace croquis::codecs {

// Values: codes, scales and zeros (as minima) on the page kernels. A last group of fewer than 32 channels takes
// its own extremes; the page is padded to a multiple of 32 channels, which the stated bits include.
class KiviValues final : public ScalarPageCodec {
 public:
  static std::unique_ptr<const Codec> Make(const CodecRequest& request, int bits, simd::Precision precision);
  static Contract ContractOf(int64_t head_dim, int bits);

 protected:
  void QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t* mins) const noexcept override;

 private:
  KiviValues(const CodecRequest& request, ScalarPageSetup setup, int top)
      : ScalarPageCodec(request, std::move(setup)), top_(top) {}
  int top_;
};

}  // namespace croquis::codecs
