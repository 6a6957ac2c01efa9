// The uncompressed codecs f16, bf16, f32: a page is [128][head_dim] numbers, token-major.
#pragma once

#include "croquis/codecs/generic_codec.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/split_kernels.h"

namespace croquis::codecs {

class DenseCodec final : public GenericCodec {
 public:
  DenseCodec(const CodecRequest& request, simd::RowType type);

  size_t PageBytes() const noexcept override { return size_t(kPageTokens * RowBytes()); }
  int64_t Granularity() const noexcept override { return 1; }
  std::optional<simd::RowType> PlainRows() const noexcept override { return type_; }

  // f16: magnitudes above 65504 are stored as 65504 (never infinite).
  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept override;

  size_t QueryBytes(int64_t rows) const noexcept override;
  void Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept override;
  void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next, float* logits,
             std::byte* scratch) const noexcept override;
  void Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows, const simd::Upcoming& next,
                  MatView<float> acc, std::byte* scratch) const noexcept override;
  size_t ScratchBytes(int64_t rows) const noexcept override;

 private:
  void DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept override;
  // Many query rows take tiles where the machine has them: what computes then, or null.
  const simd::SplitKernels* Tiles(int64_t rows) const noexcept;
  int64_t RowBytes() const noexcept { return HeadDim() * simd::RowTypeBytes(type_); }

  simd::RowType type_;
};

// rel_mse of unit Gaussian rows rounded to a binary float with `mantissa` explicit bits: the mean over the binades of
// x^2-weighted uniform rounding error, E[ulp(x)^2 / 12], computed from the normal distribution.
double FloatRoundingMse(int mantissa);

}  // namespace croquis::codecs
