// Base of all codecs that store one small code per number on the page kernels of simd/page_kernels.h.
//
// A method supplies what its codes stand for (layout, levels), whether rows are rotated first, and how a row becomes
// codes and scales; everything else (packing, scores, weighted sums, decoding) is here.
//   x^[t][i] = S[r][t] * step * L(code) + M[r][t],  r = run of dim i, in the basis of the codes.
// Rows narrower than the layout are padded with zeros, rotated or not.
#pragma once

#include <optional>

#include "croquis/codecs/codec_base.h"
#include "croquis/simd/page_kernels.h"
#include "croquis/transforms/rotation.h"

namespace croquis::codecs {

// "hadamard=1": rotate before the method's own quantiser. For methods that do not rotate by themselves.
inline constexpr ParamInfo kHadamardParam = {"hadamard", "0", 0, 1, {}, "rotate rows and queries first (0 or 1)"};
// Precision of the integer products: auto is fine from 4 bits up, where the codes are good enough to notice.
inline constexpr ParamInfo kPrecisionParam = {
    "precision", "auto", 0, 0, "auto|fast|fine", "bytes per query number and weight: fast 1, fine 2, auto by bits"};

// "auto|fast|fine" for codes of `bits` bits.
simd::Precision ResolvePrecision(std::string_view word, int64_t bits);
constexpr const char* PrecisionWord(simd::Precision p) { return p == simd::Precision::kFine ? "fine" : "fast"; }

struct ScalarPageSetup {
  simd::PageLayout layout;  // dim = head_dim or the rotation's PaddedDim, rounded up to a multiple of 32; at most 256
  simd::Levels levels;
  simd::Precision precision = simd::Precision::kFine;
  std::optional<transforms::Rotation> rotation;
};

class ScalarPageCodec : public CodecBase {
 public:
  static constexpr int64_t kMaxDim = 256;

  size_t PageBytes() const noexcept final { return setup_.layout.Bytes(); }
  int64_t Granularity() const noexcept final { return simd::kPackTokens; }

  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept final;
  void Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept final;

  size_t QueryBytes(int64_t rows) const noexcept final;
  void Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept final;
  void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next, float* logits,
             std::byte* scratch) const noexcept final;

  int64_t AccDim() const noexcept final { return setup_.layout.dim; }
  void Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows, const simd::Upcoming& next,
                  MatView<float> acc, std::byte* scratch) const noexcept final;
  void Finish(MatView<const float> acc, MatView<float> out) const noexcept final;
  size_t ScratchBytes(int64_t rows) const noexcept final;

 protected:
  ScalarPageCodec(const CodecRequest& request, ScalarPageSetup setup);

  // One row. y [dim] in the basis of the codes (rotated if the codec rotates, zero-padded); writes codes [dim],
  // scales [runs] and mins [runs] as fp16 (mins is null unless the layout has them). Must leave finite scales
  // whatever y holds.
  virtual void QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t* mins) const noexcept = 0;
  // `rows` (1..16) rows, all arrays row-major: y [rows, dim], codes [rows, dim], scales and mins [rows, runs].
  // Override where a loop over QuantizeRow is too slow.
  virtual void QuantizeBlock(const float* y, int64_t rows, uint8_t* codes, uint16_t* scales,
                             uint16_t* mins) const noexcept;

  const ScalarPageSetup& Setup() const noexcept { return setup_; }

 private:
  void ToBasis(const float* x, float* y) const noexcept;

  ScalarPageSetup setup_;
};

}  // namespace croquis::codecs
