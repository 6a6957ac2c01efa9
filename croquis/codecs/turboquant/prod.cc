#include "croquis/codecs/turboquant/prod.h"

#include <algorithm>
#include <cmath>

#include "croquis/base/dtype.h"
#include "croquis/codecs/lloyd_max_codec.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kBlock = simd::kPackTokens;
constexpr int64_t kMaxDim = ScalarPageCodec::kMaxDim;

simd::PageLayout LayoutOf(int64_t head_dim, int bits) {
  return {.dim = int32_t(transforms::Rotation::Padded(head_dim)), .bits = bits, .runs = 1, .mins = false};
}

// y [dim] of token t.
void DecodeRow(const simd::PageLayout& layout, const simd::Levels& levels, bool values, const std::byte* page,
               int64_t t, float* y) {
  const float s = F16ToFloat(reinterpret_cast<const uint16_t*>(page)[t]);
  for (int64_t i = 0; i < layout.dim; ++i)
    y[i] = s * (levels.step * float(levels.Value(simd::GetCode(layout, values, page, t, i))));
}

}  // namespace

TurboQuantProd::TurboQuantProd(const CodecRequest& request, const Options& options, transforms::Rotation rotation,
                               SignProjection projection)
    : CodecBase(request),
      rotation_(std::move(rotation)),
      projection_(std::move(projection)),
      codes_(LayoutOf(request.head_dim, options.bits - 1)),
      signs_(LayoutOf(request.head_dim, 1)),
      precision_(options.precision) {
  sign_levels_.level[0][0] = -1;
  sign_levels_.level[0][1] = 1;
  if (HasCodes()) {
    book_ = &GaussianCodebook(options.bits - 1);
    code_levels_ = book_->levels;
  }
  NameKernels([this](simd::Target t) {
    return std::string(simd::Pages(t).name) + ", " + PrecisionWord(precision_) + ", codes and signs";
  });
}

Result<std::unique_ptr<const Codec>> TurboQuantProd::Make(const CodecRequest& request, const Options& options) {
  CROQUIS_TRY(auto rotation, transforms::Rotation::Make(request.head_dim, options.rounds, request.seed));
  CROQUIS_TRY(auto projection, SignProjection::Make(options.projection, request.head_dim, request.seed));
  return std::unique_ptr<const Codec>(new TurboQuantProd(request, options, std::move(rotation), std::move(projection)));
}

Contract TurboQuantProd::ContractOf(int64_t head_dim, const Options& options) {
  const simd::PageLayout codes = LayoutOf(head_dim, options.bits - 1), signs = LayoutOf(head_dim, 1);
  const size_t bytes = (options.bits > 1 ? codes.Bytes() : 0) + signs.Bytes();
  const double residual = options.bits > 1 ? LloydMaxRelMse(options.bits - 1, head_dim, options.rounds).raw : 1;
  return {8.0 * double(bytes) / double(kPageTokens * head_dim),
          residual * SignProjection::RelMse(options.projection, head_dim),
          options.projection == SignProjection::Kind::kGaussian};  // orthogonal: only as far as the rotation is Haar
}

void TurboQuantProd::QuantizeRow(const float* x, uint8_t* codes, uint8_t* signs, uint16_t scale[2]) const noexcept {
  alignas(64) float y[kMaxDim], r[kMaxDim];
  std::copy_n(x, HeadDim(), r);
  scale[0] = 0;
  if (HasCodes()) {
    alignas(64) float back[kMaxDim];
    rotation_.Apply(x, y);
    scale[0] = QuantizeLloydMax(*book_, ScaleRule::kRaw, y, codes_.dim, codes);
    const float s = F16ToFloat(scale[0]);
    for (int64_t i = 0; i < codes_.dim; ++i) y[i] = s * book_->value[codes[i]];
    rotation_.Inverse(y, back);
    for (int64_t i = 0; i < HeadDim(); ++i) r[i] -= back[i];
  }
  double norm2 = 0;
  for (int64_t i = 0; i < HeadDim(); ++i) norm2 += double(r[i]) * double(r[i]);
  const float sign_scale = projection_.Unit() * float(std::sqrt(norm2));
  scale[1] = sign_scale <= 3e38f ? FloatToF16(std::min(sign_scale, 65504.f)) : uint16_t(0);  // 0 for NaN and infinity
  projection_.Apply(r, y);
  for (int64_t i = 0; i < signs_.dim; ++i) signs[i] = y[i] > 0;
}

void TurboQuantProd::Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept {
  alignas(64) uint8_t codes[kBlock * kMaxDim], signs[kBlock * kMaxDim];
  const auto pack = IsValue() ? simd::Pages().pack_values : simd::Pages().pack_keys;
  uint16_t* code_scales = reinterpret_cast<uint16_t*>(page);
  uint16_t* sign_scales = reinterpret_cast<uint16_t*>(page + SignsAt());
  for (int64_t begin = 0; begin < x.rows; begin += kBlock) {
    for (int64_t r = 0; r < kBlock; ++r) {
      uint16_t scale[2];
      QuantizeRow(x.Row(begin + r), codes + r * codes_.dim, signs + r * signs_.dim, scale);
      if (HasCodes()) code_scales[first + begin + r] = scale[0];
      sign_scales[first + begin + r] = scale[1];
    }
    if (HasCodes()) pack(codes_, codes, (first + begin) / kBlock, page);
    pack(signs_, signs, (first + begin) / kBlock, page + SignsAt());
  }
}

void TurboQuantProd::Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept {
  alignas(64) float acc[2 * kMaxDim];
  for (int64_t r = 0; r < x.rows; ++r) {
    if (HasCodes()) DecodeRow(codes_, code_levels_, IsValue(), page, first + r, acc);
    DecodeRow(signs_, sign_levels_, IsValue(), page + SignsAt(), first + r, acc + CodesDim());
    Finish({acc, 1, AccDim()}, x.Rows(r, 1));
  }
}

size_t TurboQuantProd::KernelQueryBytes(int64_t rows) const noexcept {
  const simd::PageKernels& k = simd::Pages();
  return (HasCodes() ? k.query_bytes(codes_, code_levels_, precision_, rows) : 0) +
         k.query_bytes(signs_, sign_levels_, precision_, rows);
}

// The kernels' two prepared queries, then the projected rows they were made from.
size_t TurboQuantProd::QueryBytes(int64_t rows) const noexcept {
  return KernelQueryBytes(rows) + RoundUp64(size_t(rows * signs_.dim) * sizeof(float));
}

void TurboQuantProd::Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept {
  const simd::PageKernels& k = simd::Pages();
  float* y = reinterpret_cast<float*>(query + KernelQueryBytes(q.rows));
  const MatView<const float> rows{y, q.rows, signs_.dim};
  if (HasCodes()) {
    for (int64_t r = 0; r < q.rows; ++r) rotation_.Apply(q.Row(r), y + r * codes_.dim);
    k.prepare(codes_, code_levels_, precision_, rows, scale, query);
    query += k.query_bytes(codes_, code_levels_, precision_, q.rows);
  }
  for (int64_t r = 0; r < q.rows; ++r) projection_.Apply(q.Row(r), y + r * signs_.dim);
  k.prepare(signs_, sign_levels_, precision_, rows, scale, query);
}

void TurboQuantProd::Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next,
                           float* logits, std::byte* scratch) const noexcept {
  const simd::PageKernels& k = simd::Pages();
  if (!HasCodes()) return k.score(signs_, sign_levels_, precision_, page, query, rows, next, logits, scratch);
  k.score(codes_, code_levels_, precision_, page, query, rows, next, logits, scratch);
  float* residual = reinterpret_cast<float*>(scratch);
  k.score(signs_, sign_levels_, precision_, page + SignsAt(),
          query + k.query_bytes(codes_, code_levels_, precision_, rows), rows, {}, residual,
          scratch + RoundUp64(size_t(rows * kPageTokens) * sizeof(float)));
  for (int64_t i = 0; i < rows * kPageTokens; ++i) logits[i] += residual[i];
}

void TurboQuantProd::Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows,
                                const simd::Upcoming& next, MatView<float> acc, std::byte* scratch) const noexcept {
  const simd::PageKernels& k = simd::Pages();
  if (HasCodes())
    k.accumulate(codes_, code_levels_, precision_, page, p, p_scale, rows, next, acc.Cols(0, codes_.dim), scratch);
  k.accumulate(signs_, sign_levels_, precision_, page + SignsAt(), p, p_scale, rows, {},
               acc.Cols(CodesDim(), signs_.dim), scratch);
}

void TurboQuantProd::Finish(MatView<const float> acc, MatView<float> out) const noexcept {
  for (int64_t r = 0; r < acc.rows; ++r) {
    if (HasCodes())
      rotation_.Inverse(acc.Row(r), out.Row(r));
    else
      std::fill_n(out.Row(r), HeadDim(), 0.f);
    projection_.AddBack(acc.Row(r) + CodesDim(), out.Row(r));
  }
}

size_t TurboQuantProd::ScratchBytes(int64_t rows) const noexcept {
  const simd::PageKernels& k = simd::Pages();
  const size_t codes = HasCodes() ? k.scratch_bytes(codes_, code_levels_, precision_, rows) : 0;
  return std::max(codes, k.scratch_bytes(signs_, sign_levels_, precision_, rows)) +
         RoundUp64(size_t(rows * kPageTokens) * sizeof(float));
}

}  // namespace croquis::codecs
