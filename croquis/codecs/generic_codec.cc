#include "croquis/codecs/generic_codec.h"

#include <algorithm>
#include <string>

#include "croquis/simd/dense_kernels.h"

namespace croquis::codecs {

GenericCodec::GenericCodec(const CodecRequest& request, std::optional<transforms::Rotation> rotation)
    : CodecBase(request), rotation_(std::move(rotation)) {
  NameKernels([](simd::Target t) {
    return "generic (no integer kernels: tiles decoded to f32, then " + std::string(simd::Dense(t).name) + ")";
  });
}

void GenericCodec::Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept {
  alignas(64) float tile[kTileRows * kMaxDim];
  const int64_t dim = BasisDim();
  for (int64_t begin = 0; begin < x.rows; begin += kTileRows) {
    const int64_t count = std::min(kTileRows, x.rows - begin);
    DecodeTile(page, first + begin, count, tile);
    Finish({tile, count, dim}, x.Rows(begin, count));
  }
}

size_t GenericCodec::QueryBytes(int64_t rows) const noexcept {
  return RoundUp64(size_t(rows * BasisDim()) * sizeof(float));
}

void GenericCodec::Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept {
  const int64_t dim = BasisDim();
  float* y = reinterpret_cast<float*>(query);
  for (int64_t r = 0; r < q.rows; ++r, y += dim) {
    if (rotation_)
      rotation_->Apply(q.Row(r), y);
    else
      std::copy_n(q.Row(r), dim, y);
    for (int64_t i = 0; i < dim; ++i) y[i] *= scale;
  }
}

void GenericCodec::Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& /*next*/,
                         float* logits, std::byte* scratch) const noexcept {
  const int64_t dim = BasisDim();
  const MatView<const float> q{reinterpret_cast<const float*>(query), rows, dim};
  float* tile = reinterpret_cast<float*>(scratch);
  for (int64_t first = 0; first < kPageTokens; first += kTileRows) {
    DecodeTile(page, first, kTileRows, tile);
    simd::Dense().score_rows(simd::RowType::kF32, q, scratch, dim * int64_t(sizeof(float)), kTileRows, logits + first,
                             kPageTokens);
  }
}

void GenericCodec::Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows,
                              const simd::Upcoming& /*next*/, MatView<float> acc, std::byte* scratch) const noexcept {
  const int64_t dim = BasisDim();
  float* tile = reinterpret_cast<float*>(scratch);
  for (int64_t first = 0; first < kPageTokens; first += kTileRows) {
    bool any = false;  // tiles without weight (unused slots, far-off tokens) are not decoded
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < kTileRows; ++t) any |= p[r * kPageTokens + first + t] > 0;
    if (!any) continue;
    DecodeTile(page, first, kTileRows, tile);
    simd::Dense().accumulate_rows(simd::RowType::kF32, p + first, kPageTokens, p_scale, rows, scratch,
                                  dim * int64_t(sizeof(float)), kTileRows, acc);
  }
}

void GenericCodec::Finish(MatView<const float> acc, MatView<float> out) const noexcept {
  if (rotation_) return rotation_->Inverse(acc, out);
  for (int64_t r = 0; r < acc.rows; ++r) std::copy_n(acc.Row(r), HeadDim(), out.Row(r));
}

size_t GenericCodec::ScratchBytes(int64_t /*rows*/) const noexcept {
  // One row more than a tile: score_rows may read ahead past the end.
  return RoundUp64(size_t((kTileRows + 1) * BasisDim()) * sizeof(float));
}

}  // namespace croquis::codecs
