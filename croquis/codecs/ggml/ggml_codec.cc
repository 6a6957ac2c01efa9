#include "croquis/codecs/ggml/ggml_codec.h"

#include <cstring>
#include <string>

namespace croquis::codecs {
namespace {

constexpr int64_t kBlock = 32;

// E|x - x^|^2 / |x|^2 of Gaussian blocks of 32, measured over 2^24 numbers (standard error under .05 %); the
// asymmetric ones agree with the integral of kivi/minmax.h.
double GaussianRelMse(GgmlType type) {
  switch (type) {
    case GgmlType::kQ8_0:
      return 2.865e-5;
    case GgmlType::kQ5_1:
      return 1.4325e-3;
    case GgmlType::kQ5_0:
      return 1.8224e-3;
    case GgmlType::kQ4_1:
      return 6.117e-3;
    case GgmlType::kQ4_0:
      return 7.382e-3;
    default:
      return 6.187e-3;
  }
}

f16 FiniteHalf(f16 h) {
  const f16 magnitude = h & 0x7fff;
  if (magnitude > 0x7c00) return 0;                             // NaN
  return magnitude == 0x7c00 ? f16((h & 0x8000) | 0x7bff) : h;  // infinity to 65504
}

class GgmlCodec final : public ScalarPageCodec {
 public:
  GgmlCodec(GgmlType type, const CodecRequest& request, ScalarPageSetup setup)
      : ScalarPageCodec(request, std::move(setup)), type_(type) {}

 protected:
  void QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t* mins) const noexcept override {
    for (int32_t run = 0; run < Setup().layout.runs; ++run) {
      SmallBlock block;
      EncodeSmall(type_, y + run * kBlock, &block);
      std::memcpy(codes + run * kBlock, block.code.data(), size_t(kBlock));
      scales[run] = FiniteHalf(block.scale);
      if (mins) mins[run] = FiniteHalf(block.min);
    }
  }

 private:
  GgmlType type_;
};

Status CheckHeadDim(GgmlType type, int64_t head_dim) {
  if (head_dim % kBlock == 0 && head_dim > 0) return {};
  return Unsupported(std::string(Name(type)) +
                     " stores blocks of 32 numbers, so head_dim must be a multiple of 32; got " +
                     std::to_string(head_dim) + ". eden, int8 and kivi take other sizes");
}

}  // namespace

simd::PageLayout GgmlPageLayout(GgmlType type, int64_t head_dim) {
  return {int32_t(head_dim), CodeBits(type), int32_t(head_dim / kBlock), HasMin(type)};
}

void ExportBlocks(GgmlType type, int64_t head_dim, Role role, const std::byte* page, int64_t first, int64_t rows,
                  std::byte* out) {
  const simd::PageLayout layout = GgmlPageLayout(type, head_dim);
  const f16* scales = reinterpret_cast<const f16*>(page);
  const f16* mins = reinterpret_cast<const f16*>(page + layout.MinsAt());
  for (int64_t t = first; t < first + rows; ++t) {
    for (int64_t run = 0; run < layout.runs; ++run) {
      SmallBlock block;
      block.scale = scales[run * kPageTokens + t];
      if (layout.mins) block.min = mins[run * kPageTokens + t];
      for (int64_t i = 0; i < kBlock; ++i) {
        block.code[size_t(i)] = uint8_t(simd::GetCode(layout, role == Role::kValue, page, t, run * kBlock + i));
      }
      PackSmall(type, block, out);
      out += BlockBytes(type);
    }
  }
}

Result<Contract> GgmlContract(GgmlType type, int64_t head_dim) {
  CROQUIS_CHECK_OK(CheckHeadDim(type, head_dim));
  const double bytes = double(GgmlPageLayout(type, head_dim).Bytes());
  return Contract{8 * bytes / double(kPageTokens * head_dim), GaussianRelMse(type), false};
}

Result<std::unique_ptr<const Codec>> MakeGgmlCodec(GgmlType type, const CodecRequest& request) {
  CROQUIS_CHECK_OK(CheckHeadDim(type, request.head_dim));
  ScalarPageSetup setup;
  setup.layout = GgmlPageLayout(type, request.head_dim);
  setup.precision = ResolvePrecision(request.spec.Word("precision"), setup.layout.bits);
  for (int code = 0; code < 1 << setup.layout.bits; ++code) {
    setup.levels.level[0][size_t(code)] = int8_t(LevelOf(type, code));
  }
  if (request.spec.Int("hadamard") == 1) {
    CROQUIS_TRY(setup.rotation, transforms::Rotation::Make(request.head_dim, 1, request.seed));
  }
  return std::unique_ptr<const Codec>(new GgmlCodec(type, request, std::move(setup)));
}

}  // namespace croquis::codecs
