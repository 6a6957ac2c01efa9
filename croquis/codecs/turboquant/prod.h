// turboquant:mode=prod: bits - 1 bits of Lloyd-Max codes and a 1-bit QJL sketch of what they leave.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "croquis/codecs/codebook.h"
#include "croquis/codecs/codec_base.h"
#include "croquis/simd/page_kernels.h"
#include "croquis/transforms/rotation.h"

namespace croquis::codecs {

// m = padded projections of a residual r of d = head_dim numbers to signs, and the unbiased estimate back:
//   r^ = Unit() * |r| * P^T sgn(P r),   E<r, r^> = |r|^2 over the choice of P.
class SignProjection {
 public:
  enum class Kind : uint8_t {
    kGaussian,   // rows of independent N(0, 1/d): E|r - r^|^2 = (pi/2 d/m - 1/m) |r|^2
    kOrthogonal  // a second random rotation: (1 / (d E|u_1|^2) - 1) |r|^2 with u on the unit sphere, 2.8 times less
  };
  static Result<SignProjection> Make(Kind kind, int64_t head_dim, uint64_t seed);
  // The factor of |r|^2 above, in expectation over P. For orthogonal projections of padded heads (more projections
  // than numbers, correlated) by simulation with fixed seeds.
  static double RelMse(Kind kind, int64_t head_dim);

  int64_t Projections() const { return projections_; }
  float Unit() const { return unit_; }
  void Apply(const float* x, float* y) const noexcept;    // y [m] = P x
  void AddBack(const float* y, float* x) const noexcept;  // x [d] += P^T y

 private:
  int64_t head_dim_ = 0, projections_ = 0;
  float unit_ = 0;
  std::optional<transforms::Rotation> rotation_;
  std::vector<float> rows_;  // [m, d]
};

// A page is two pages of simd/page_kernels.h: the codes (bits - 1 bits; absent at bits = 1) with scale
// |x|/sqrt(padded), then the signs with scale Unit() * |r|. Both products run on the codes; queries and accumulators
// have two parts.
class TurboQuantProd final : public CodecBase {
 public:
  struct Options {
    int bits = 4, rounds = 1;
    SignProjection::Kind projection = SignProjection::Kind::kGaussian;
    simd::Precision precision = simd::Precision::kFine;
  };
  static Result<std::unique_ptr<const Codec>> Make(const CodecRequest& request, const Options& options);
  static Contract ContractOf(int64_t head_dim, const Options& options);

  size_t PageBytes() const noexcept override { return SignsAt() + signs_.Bytes(); }
  int64_t Granularity() const noexcept override { return simd::kPackTokens; }

  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept override;
  void Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept override;
  size_t QueryBytes(int64_t rows) const noexcept override;
  void Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept override;
  void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next, float* logits,
             std::byte* scratch) const noexcept override;
  int64_t AccDim() const noexcept override { return CodesDim() + signs_.dim; }
  void Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows, const simd::Upcoming& next,
                  MatView<float> acc, std::byte* scratch) const noexcept override;
  void Finish(MatView<const float> acc, MatView<float> out) const noexcept override;
  size_t ScratchBytes(int64_t rows) const noexcept override;

 private:
  TurboQuantProd(const CodecRequest& request, const Options& options, transforms::Rotation rotation,
                 SignProjection projection);
  bool HasCodes() const noexcept { return codes_.bits > 0; }
  int64_t CodesDim() const noexcept { return HasCodes() ? codes_.dim : 0; }
  size_t SignsAt() const noexcept { return HasCodes() ? codes_.Bytes() : 0; }
  size_t KernelQueryBytes(int64_t rows) const noexcept;
  // Codes and signs of one row; scale[0] of the codes, scale[1] of the signs.
  void QuantizeRow(const float* x, uint8_t* codes, uint8_t* signs, uint16_t scale[2]) const noexcept;

  transforms::Rotation rotation_;
  SignProjection projection_;
  simd::PageLayout codes_, signs_;
  simd::Levels code_levels_, sign_levels_;
  const Codebook* book_ = nullptr;
  simd::Precision precision_;
};

}  // namespace croquis::codecs
