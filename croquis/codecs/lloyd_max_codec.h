// Rotation, Lloyd-Max codes and one fp16 scale a row: what eden and turboquant:mode=mse share.
#pragma once

#include "croquis/codecs/codebook.h"
#include "croquis/codecs/scalar_page_codec.h"

namespace croquis::codecs {

// Which scale is stored with the codes c of the rotated row y (padded numbers): x^ = R^T (S c).
enum class ScaleRule : uint8_t {
  kUnbiased,  // S = |y|^2 / <y, c>: <x, x^> = |x|^2 for every row, up to the rounding of S to fp16 (EDEN)
  kRaw        // S = |y| / sqrt(padded) (TurboQuant_mse)
};

class LloydMaxCodec final : public ScalarPageCodec {
 public:
  struct Options {
    int bits = 4;
    int rounds = 1;
    simd::Precision precision = simd::Precision::kFine;
    ScaleRule rule = ScaleRule::kUnbiased;
  };
  static Result<std::unique_ptr<const Codec>> Make(const CodecRequest& request, const Options& options);
  static Contract ContractOf(int64_t head_dim, const Options& options);

 protected:
  void QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t* mins) const noexcept override;
  void QuantizeBlock(const float* y, int64_t rows, uint8_t* codes, uint16_t* scales,
                     uint16_t* mins) const noexcept override;

 private:
  LloydMaxCodec(const CodecRequest& request, ScalarPageSetup setup, const Options& options);

  const Codebook& book_;
  ScaleRule rule_;
};

// "auto|1|2": two rounds at 1 and 2 bits, where one is biased on sparse rows, and for heads that are padded to a
// multiple of 32, where one round would leave the padding badly used (3.4 times the error at head_dim 8); else one.
inline constexpr ParamInfo kRoundsParam = {
    "rounds", "auto",     0,
    0,        "auto|1|2", "rounds of rotation; auto: 2 at 1 and 2 bits and for heads that are padded, else 1"};
int ResolveRounds(std::string_view word, int64_t bits, int64_t head_dim);

// |x - x^|^2 / |x|^2 of unit Gaussian rows under both scales: from MomentsOnSphere for heads that are not padded;
// else, where rotated coordinates are correlated and no formula is known, by simulating the definition (rotation,
// nearest level, exact scale) on 512 rotations of 8 rows with fixed seeds, once per setting.
struct RelMse {
  double unbiased = 0, raw = 0;
};
RelMse LloydMaxRelMse(int bits, int64_t head_dim, int rounds);

// Codes of one row in the basis of the codes: y [dim] -> codes [dim]; returns S in fp16. Rules at the edges:
//   zero rows, rows whose rms is below 2^-25 (S would round to 0), and rows that hold a NaN or an infinity (also by
//     overflow in the rotation, |x| > 1e37) get S = 0 and decode to zeros;
//   rms above 65504 is stored as S = 65504;
//   S is in units of the rms of the row, so it is subnormal in fp16 (fewer digits) only for rms below 6e-5.
uint16_t QuantizeLloydMax(const Codebook& book, ScaleRule rule, const float* y, int64_t dim, uint8_t* codes) noexcept;

}  // namespace croquis::codecs
