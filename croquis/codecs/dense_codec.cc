#include "croquis/codecs/dense_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string>

#include "croquis/simd/page_kernels.h"

namespace croquis::codecs {

DenseCodec::DenseCodec(const CodecRequest& request, simd::RowType type) : GenericCodec(request), type_(type) {
  NameOwnKernels([](simd::Target t) {
    const std::string vectors(simd::Dense(t).name);
    const simd::SplitKernels* tiles = simd::Split(t);
    if (tiles == nullptr) return vectors;
    return std::string(tiles->name) + " from " + std::to_string(tiles->least_rows) + " rows, " + vectors + " below";
  });
}

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

// Rows lie one after the other: a tile is one run of numbers.
void DenseCodec::DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept {
  const simd::PageKernels& kernels = simd::Pages();
  const std::byte* rows = page + first * RowBytes();
  switch (type_) {
    case simd::RowType::kF32:
      std::memcpy(x, rows, size_t(count * RowBytes()));
      break;
    case simd::RowType::kBf16:
      kernels.bf16_to_f32(reinterpret_cast<const uint16_t*>(rows), count * HeadDim(), x);
      break;
    case simd::RowType::kF16:
      kernels.f16_to_f32(reinterpret_cast<const uint16_t*>(rows), count * HeadDim(), x);
      break;
  }
}

const simd::SplitKernels* DenseCodec::Tiles(int64_t rows) const noexcept {
  const simd::SplitKernels* tiles = simd::Split();
  return tiles != nullptr && rows >= tiles->least_rows ? tiles : nullptr;
}

size_t DenseCodec::QueryBytes(int64_t rows) const noexcept {
  const simd::SplitKernels* tiles = Tiles(rows);
  const size_t f32 = GenericCodec::QueryBytes(rows);  // also what tiles are prepared from
  return f32 + (tiles ? tiles->query_bytes(rows, HeadDim()) : 0);
}

void DenseCodec::Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept {
  const simd::SplitKernels* tiles = Tiles(q.rows);
  if (tiles == nullptr) return GenericCodec::Prepare(q, scale, query);
  std::byte* const scaled = query + tiles->query_bytes(q.rows, HeadDim());
  GenericCodec::Prepare(q, scale, scaled);
  tiles->prepare({reinterpret_cast<const float*>(scaled), q.rows, HeadDim()}, query);
}

size_t DenseCodec::ScratchBytes(int64_t rows) const noexcept {
  const simd::SplitKernels* tiles = Tiles(rows);
  return std::max(GenericCodec::ScratchBytes(rows), tiles ? tiles->scratch_bytes(rows, HeadDim()) : 0);
}

void DenseCodec::Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next,
                       float* logits, std::byte* scratch) const noexcept {
  if (const auto* tiles = Tiles(rows))
    return tiles->score(type_, page, query, rows, HeadDim(), next.Share(), next.ShareBytes(), logits, scratch);
  const MatView<const float> q{reinterpret_cast<const float*>(query), rows, HeadDim()};
  simd::Dense().score_rows(type_, q, page, RowBytes(), kPageTokens, logits, kPageTokens);
}

void DenseCodec::Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows,
                            const simd::Upcoming& next, MatView<float> acc, std::byte* scratch) const noexcept {
  if (const auto* tiles = Tiles(rows))
    return tiles->accumulate(type_, page, p, p_scale, next.Share(), next.ShareBytes(), acc, scratch);
  simd::Dense().accumulate_rows(type_, p, kPageTokens, p_scale, rows, page, RowBytes(), kPageTokens, acc);
}

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
