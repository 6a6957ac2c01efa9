// kivi: per-channel keys, per-token values (arXiv 2402.02750).
#include "croquis/codecs/kivi/kivi.h"

#include <algorithm>
#include <cstring>

#include "croquis/codecs/kivi/minmax.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kGroup = 32, kGroups = kPageTokens / kGroup;

constexpr ParamInfo kParams[] = {
    {"bits", "2", 0, 0, "2|4", "bits of a code"},
    {"group", "32", 0, 0, "32", "tokens (keys) or channels (values) that share a scale and a zero"},
    kPrecisionParam,
};

// A page of keys: for each of four groups of tokens, head_dim scales and head_dim zeros in f16; then one row of codes a
// token, lowest channel in the lowest bits. Rows are decoded as tiles: the scale belongs to the channel, so the
// integer page kernels, which scale by token, do not apply.
class KiviKeys final : public GenericCodec {
 public:
  KiviKeys(const CodecRequest& request, int bits) : GenericCodec(request), bits_(bits), top_((1 << bits) - 1) {}

  static size_t Bytes(int64_t head_dim, int bits) {
    return RoundUp64(size_t(kGroups * head_dim * 4 + kPageTokens * ((head_dim * bits + 7) / 8)));
  }
  size_t PageBytes() const noexcept override { return Bytes(HeadDim(), bits_); }
  int64_t Granularity() const noexcept override { return kGroup; }

  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept override {
    const int64_t dim = HeadDim();
    uint8_t code[kGroup * kMaxDim];
    for (int64_t begin = 0; begin < x.rows; begin += kGroup) {
      const MatView<const float> rows = x.Rows(begin, kGroup);
      f16* scales = reinterpret_cast<f16*>(page + ScalesAt((first + begin) / kGroup));
      f16* zeros = scales + dim;
      for (int64_t i = 0; i < dim; ++i) {
        float column[kGroup];
        for (int64_t t = 0; t < kGroup; ++t) column[t] = rows(t, i);
        const auto [lo, hi] = std::minmax_element(column, column + kGroup);
        const MinMax m = MinMaxOf(*lo, *hi, top_);
        scales[i] = m.scale;
        zeros[i] = m.zero;
        uint8_t column_code[kGroup];
        MinMaxCodes(m, top_, column, kGroup, 1, column_code);
        for (int64_t t = 0; t < kGroup; ++t) code[t * dim + i] = column_code[t];
      }
      for (int64_t t = 0; t < kGroup; ++t) PackRow(code + t * dim, page + CodesAt(first + begin + t));
    }
  }

 protected:
  void DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept override {
    const int64_t dim = HeadDim(), per_byte = 8 / bits_;
    float scale[kMaxDim], zero[kMaxDim];
    int64_t loaded = -1;
    for (int64_t t = first; t < first + count; ++t, x += dim) {
      if (const int64_t group = t / kGroup; group != loaded) {
        loaded = group;
        const f16* scales = reinterpret_cast<const f16*>(page + ScalesAt(group));
        simd::Pages().f16_to_f32(scales, dim, scale);
        simd::Pages().f16_to_f32(scales + dim, dim, zero);
      }
      const std::byte* row = page + CodesAt(t);
      for (int64_t i = 0; i < dim; ++i) {
        const int code = (std::to_integer<int>(row[i / per_byte]) >> (i % per_byte * bits_)) & top_;
        x[i] = zero[i] + scale[i] * float(code);
      }
    }
  }

 private:
  int64_t ScalesAt(int64_t group) const noexcept { return group * HeadDim() * 4; }
  int64_t CodesAt(int64_t t) const noexcept { return kGroups * HeadDim() * 4 + t * ((HeadDim() * bits_ + 7) / 8); }
  void PackRow(const uint8_t* code, std::byte* row) const noexcept {
    const int64_t per_byte = 8 / bits_;
    for (int64_t begin = 0; begin < HeadDim(); begin += per_byte) {
      int byte = 0;
      for (int64_t k = 0; k < std::min(per_byte, HeadDim() - begin); ++k) byte |= code[begin + k] << (k * bits_);
      *row++ = std::byte(uint8_t(byte));
    }
  }

  int bits_, top_;
};

int Bits(const Spec& spec) { return spec.Word("bits") == "2" ? 2 : 4; }

Result<Contract> ContractOf(int64_t head_dim, Role role, const Spec& spec) {
  const int bits = Bits(spec);
  if (role == Role::kValue) return KiviValues::ContractOf(head_dim, bits);
  return Contract{8 * double(KiviKeys::Bytes(head_dim, bits)) / double(kPageTokens * head_dim),
                  MinMaxGaussianMse((1 << bits) - 1, kGroup), false};
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  const int bits = Bits(request.spec);
  if (request.role == Role::kValue) {
    return KiviValues::Make(request, bits, ResolvePrecision(request.spec.Word("precision"), bits));
  }
  return std::unique_ptr<const Codec>(new KiviKeys(request, bits));
}

}  // namespace

extern const MethodInfo kMethod_kivi;
const MethodInfo kMethod_kivi = {"kivi",
                                 "min/max codes: keys per channel over 32 tokens, values per token over 32 channels",
                                 "arXiv 2402.02750",
                                 kParams,
                                 ContractOf,
                                 MakeCodec};

}  // namespace croquis::codecs
