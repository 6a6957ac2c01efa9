#include <algorithm>
#include <string>

#include "croquis/codecs/kivi/kivi.h"
#include "croquis/codecs/kivi/minmax.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/sign_kernels.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kGroup = 32, kGroups = kPageTokens / kGroup;

constexpr int64_t Padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int64_t CodesStart(int64_t head_dim) { return int64_t(RoundUp64(size_t(kGroups * head_dim * 4))); }

}  // namespace

KiviKeys::KiviKeys(const CodecRequest& request, int bits)
    : GenericCodec(request), bits_(bits), top_((1 << bits) - 1), padded_(Padded(request.head_dim)) {
  NameOwnKernels([](simd::Target t) { return std::string(simd::Signs(t).name) + ", fine"; });
}

size_t KiviKeys::Bytes(int64_t head_dim, int bits) {
  return RoundUp64(size_t(CodesStart(head_dim) + kPageTokens * Padded(head_dim) * bits / 8));
}

Contract KiviKeys::ContractOf(int64_t head_dim, int bits) {
  return {8 * double(Bytes(head_dim, bits)) / double(kPageTokens * head_dim),
          MinMaxGaussianMse((1 << bits) - 1, kGroup), false};
}

int64_t KiviKeys::Granularity() const noexcept { return kGroup; }

int64_t KiviKeys::CodesAt(int64_t block) const noexcept { return CodesStart(HeadDim()) + block * 2 * padded_ * bits_; }

void KiviKeys::LoadGroup(const std::byte* page, int64_t group, float* scale, float* zero) const noexcept {
  const f16* scales = reinterpret_cast<const f16*>(page + group * HeadDim() * 4);
  simd::Pages().f16_to_f32(scales, HeadDim(), scale);
  simd::Pages().f16_to_f32(scales + HeadDim(), HeadDim(), zero);
}

void KiviKeys::Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept {
  const int64_t dim = HeadDim(), fields = 8 / bits_;
  for (int64_t begin = 0; begin < x.rows; begin += kGroup) {
    f16* scales = reinterpret_cast<f16*>(page + (first + begin) / kGroup * dim * 4);
    std::byte* blocks = page + CodesAt((first + begin) / simd::kSignTokens);
    std::fill_n(blocks, kGroup * padded_ * bits_ / 8, std::byte{0});
    for (int64_t i = 0; i < dim; ++i) {
      float column[kGroup];
      uint8_t code[kGroup];
      for (int64_t t = 0; t < kGroup; ++t) column[t] = x(begin + t, i);
      const auto [lo, hi] = std::minmax_element(column, column + kGroup);
      const MinMax m = MinMaxOf(*lo, *hi, top_);
      MinMaxCodes(m, top_, column, kGroup, 1, code);
      scales[i] = m.scale;
      scales[dim + i] = m.zero;
      const int shift = int(i / 4 % fields) * bits_;
      for (int64_t t = 0; t < kGroup; ++t) {
        std::byte* line = blocks + t / 16 * 2 * padded_ * bits_ + i / 4 / fields * 64;
        line[t % 16 * 4 + i % 4] |= std::byte(uint8_t(code[t] << shift));
      }
    }
  }
}

void KiviKeys::DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept {
  float scale[kMaxDim], zero[kMaxDim];
  const int64_t fields = 8 / bits_;
  for (int64_t r = 0, loaded = -1; r < count; ++r, x += HeadDim()) {
    const int64_t t = first + r;
    if (t / kGroup != loaded) {
      loaded = t / kGroup;
      LoadGroup(page, loaded, scale, zero);
    }
    const std::byte* lines = page + CodesAt(t / 16) + t % 16 * 4;
    for (int64_t i = 0; i < HeadDim(); ++i) {
      const int byte = std::to_integer<int>(lines[i / 4 / fields * 64 + i % 4]);
      x[i] = zero[i] + scale[i] * float((byte >> (i / 4 % fields * bits_)) & top_);
    }
  }
}

// The rows' SignQuery, their bytes, their <q, Z>.
size_t KiviKeys::ScratchBytes(int64_t rows) const noexcept {
  const size_t score =
      RoundUp64(size_t(rows) * sizeof(simd::SignQuery)) + size_t(rows * 2) * kMaxDim + RoundUp64(size_t(rows) * 4);
  return std::max(score, GenericCodec::ScratchBytes(rows));
}

void KiviKeys::Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& /*next*/,
                     float* logits, std::byte* scratch) const noexcept {
  const simd::SignKernels& kernels = simd::Signs();
  const int64_t dim = HeadDim();
  simd::SignQuery* folded = reinterpret_cast<simd::SignQuery*>(scratch);
  int8_t* bytes = reinterpret_cast<int8_t*>(scratch + RoundUp64(size_t(rows) * sizeof(simd::SignQuery)));
  float* base = reinterpret_cast<float*>(bytes + rows * 2 * kMaxDim);
  alignas(64) float scale[kMaxDim], zero[kMaxDim], product[kMaxDim] = {};
  const MatView<const float> q{reinterpret_cast<const float*>(query), rows, dim};
  for (int64_t group = 0; group < kGroups; ++group) {
    LoadGroup(page, group, scale, zero);
    simd::Dense().score_rows(simd::RowType::kF32, q, reinterpret_cast<const std::byte*>(zero), dim * 4, 1, base, 1);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < dim; ++i) product[i] = q(r, i) * scale[i];
      int8_t* hi = bytes + r * 2 * kMaxDim;
      folded[r] = kernels.quantise(product, padded_, hi, hi + kMaxDim);
    }
    float* out = logits + group * kGroup;
    kernels.code_sums(page + CodesAt(group * 2), bits_, 2, padded_, folded, rows, out, kPageTokens);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < kGroup; ++t) out[r * kPageTokens + t] += base[r];
    }
  }
}

}  // namespace croquis::codecs
