#include "croquis/codecs/dense_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "croquis/simd/page_kernels.h"

namespace croquis::codecs {

DenseCodec::DenseCodec(const CodecRequest& request, simd::RowType type) : CodecBase(request), type_(type) {
  for (simd::Target t : simd::Reachable()) kernel_[size_t(t)] = simd::Dense(t).name;
}

std::string_view DenseCodec::Kernel() const noexcept { return kernel_[size_t(simd::Active())]; }
bool DenseCodec::HasFastPath() const noexcept { return simd::Active() != simd::Target::kScalar; }

void DenseCodec::Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept {
  constexpr float kF16Max = 65504;
  const simd::PageKernels& kernels = simd::Pages();
  const int64_t n = HeadDim();
  float clamped[256];
  for (int64_t r = 0; r < x.rows; ++r) {
    std::byte* row = page + (first + r) * RowBytes();
    switch (type_) {
      case simd::RowType::kF32:
        std::memcpy(row, x.Row(r), size_t(RowBytes()));
        break;
      case simd::RowType::kBf16:
        kernels.f32_to_bf16(x.Row(r), n, reinterpret_cast<uint16_t*>(row));
        break;
      case simd::RowType::kF16:
        for (int64_t i = 0; i < n; ++i) clamped[i] = std::min(std::max(x(r, i), -kF16Max), kF16Max);
        kernels.f32_to_f16(clamped, n, reinterpret_cast<uint16_t*>(row));
        break;
    }
  }
}

void DenseCodec::Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept {
  const simd::PageKernels& kernels = simd::Pages();
  for (int64_t r = 0; r < x.rows; ++r) {
    const std::byte* row = page + (first + r) * RowBytes();
    switch (type_) {
      case simd::RowType::kF32:
        std::memcpy(x.Row(r), row, size_t(RowBytes()));
        break;
      case simd::RowType::kBf16:
        kernels.bf16_to_f32(reinterpret_cast<const uint16_t*>(row), HeadDim(), x.Row(r));
        break;
      case simd::RowType::kF16:
        kernels.f16_to_f32(reinterpret_cast<const uint16_t*>(row), HeadDim(), x.Row(r));
        break;
    }
  }
}

size_t DenseCodec::QueryBytes(int64_t rows) const noexcept {
  return RoundUp64(size_t(rows * HeadDim()) * sizeof(float));
}

void DenseCodec::Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept {
  float* y = reinterpret_cast<float*>(query);
  for (int64_t r = 0; r < q.rows; ++r)
    for (int64_t i = 0; i < HeadDim(); ++i) *y++ = q(r, i) * scale;
}

void DenseCodec::Score(const std::byte* page, const std::byte* query, int64_t rows, const std::byte* /*next*/,
                       size_t /*next_bytes*/, float* logits, std::byte* /*scratch*/) const noexcept {
  const MatView<const float> q{reinterpret_cast<const float*>(query), rows, HeadDim()};
  simd::Dense().score_rows(type_, q, page, RowBytes(), kPageTokens, logits, kPageTokens);
}

void DenseCodec::Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows,
                            const std::byte* /*next*/, size_t /*next_bytes*/, MatView<float> acc,
                            std::byte* /*scratch*/) const noexcept {
  simd::Dense().accumulate_rows(type_, p, kPageTokens, p_scale, rows, page, RowBytes(), kPageTokens, acc);
}

void DenseCodec::Finish(MatView<const float> acc, MatView<float> out) const noexcept {
  for (int64_t r = 0; r < acc.rows; ++r) std::copy_n(acc.Row(r), HeadDim(), out.Row(r));
}

size_t DenseCodec::ScratchBytes(int64_t /*rows*/) const noexcept { return 64; }

double FloatRoundingMse(int mantissa) {
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); };
  double mse = 0;
  for (int e = -40; e < 5; ++e) {  // binade [2^e, 2^(e+1)): ulp 2^(e - mantissa), both signs
    const double ulp = std::ldexp(1.0, e - mantissa);
    mse += 2 * (cdf(std::ldexp(1.0, e + 1)) - cdf(std::ldexp(1.0, e))) * ulp * ulp / 12;
  }
  return mse;
}

}  // namespace croquis::codecs
