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

// Keys. A page is, for each of four groups of 32 tokens, head_dim scales and head_dim zeros in f16; then, from the next
// line of 64 bytes on, the code blocks of simd/sign_kernels.h, head_dim padded to a multiple of 16. The scale belongs
// to the channel, so it is folded into the query, once for each group of tokens:
//   <q, x^_t> = <q, Z> + sum_i (q_i S_i) c_ti, the sum in integers.
// Keys are not summed by the cache: there are no kernels for that.
class KiviKeys final : public GenericCodec {
 public:
  KiviKeys(const CodecRequest& request, int bits);
  static Contract ContractOf(int64_t head_dim, int bits);

  size_t PageBytes() const noexcept override { return Bytes(HeadDim(), bits_); }
  int64_t Granularity() const noexcept override;
  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept override;
  void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next, float* logits,
             std::byte* scratch) const noexcept override;
  size_t ScratchBytes(int64_t rows) const noexcept override;

 private:
  void DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept override;
  static size_t Bytes(int64_t head_dim, int bits);
  int64_t CodesAt(int64_t block) const noexcept;  // of 16 tokens
  void LoadGroup(const std::byte* page, int64_t group, float* scale, float* zero) const noexcept;

  int bits_, top_;
  int64_t padded_;
};

}  // namespace croquis::codecs
