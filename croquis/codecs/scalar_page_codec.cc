#include "croquis/codecs/scalar_page_codec.h"

#include <algorithm>

#include "croquis/base/dtype.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kBlock = simd::kPackTokens;

}  // namespace

simd::Precision ResolvePrecision(std::string_view word, int64_t bits) {
  if (word == "auto") return bits >= 4 ? simd::Precision::kFine : simd::Precision::kFast;
  return word == "fine" ? simd::Precision::kFine : simd::Precision::kFast;
}

ScalarPageCodec::ScalarPageCodec(const CodecRequest& request, ScalarPageSetup setup)
    : CodecBase(request), setup_(std::move(setup)) {
  NameKernels(
      [this](simd::Target t) { return std::string(simd::Pages(t).name) + ", " + PrecisionWord(setup_.precision); });
}

void ScalarPageCodec::ToBasis(const float* x, float* y) const noexcept {
  if (setup_.rotation) return setup_.rotation->Apply(x, y);
  std::copy_n(x, HeadDim(), y);
  std::fill(y + HeadDim(), y + setup_.layout.dim, 0.f);
}

void ScalarPageCodec::QuantizeBlock(const float* y, int64_t rows, uint8_t* codes, uint16_t* scales,
                                    uint16_t* mins) const noexcept {
  const int64_t dim = setup_.layout.dim, runs = setup_.layout.runs;
  for (int64_t r = 0; r < rows; ++r)
    QuantizeRow(y + r * dim, codes + r * dim, scales + r * runs, mins ? mins + r * runs : nullptr);
}

void ScalarPageCodec::Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept {
  constexpr int64_t kMaxRuns = kMaxDim / 32;
  const simd::PageLayout& layout = setup_.layout;
  const int64_t dim = layout.dim, runs = layout.runs;
  alignas(64) float y[kBlock * kMaxDim];
  alignas(64) uint8_t codes[kBlock * kMaxDim];
  uint16_t scales[kBlock * kMaxRuns], mins[kBlock * kMaxRuns];
  const auto pack = IsValue() ? simd::Pages().pack_values : simd::Pages().pack_keys;
  uint16_t* page_scales = reinterpret_cast<uint16_t*>(page);
  uint16_t* page_mins = reinterpret_cast<uint16_t*>(page + layout.MinsAt());
  for (int64_t begin = 0; begin < x.rows; begin += kBlock) {
    for (int64_t r = 0; r < kBlock; ++r) ToBasis(x.Row(begin + r), y + r * dim);
    QuantizeBlock(y, kBlock, codes, scales, layout.mins ? mins : nullptr);
    for (int64_t r = 0; r < kBlock; ++r)
      for (int64_t run = 0; run < runs; ++run) {
        const int64_t at = run * kPageTokens + first + begin + r;
        page_scales[at] = scales[r * runs + run];
        if (layout.mins) page_mins[at] = mins[r * runs + run];
      }
    pack(layout, codes, (first + begin) / kBlock, page);
  }
}

void ScalarPageCodec::Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept {
  const simd::PageLayout& layout = setup_.layout;
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(page);
  const uint16_t* mins = reinterpret_cast<const uint16_t*>(page + layout.MinsAt());
  alignas(64) float y[kMaxDim];
  for (int64_t r = 0; r < x.rows; ++r) {
    const int64_t t = first + r;
    for (int64_t i = 0; i < layout.dim; ++i) {
      const int64_t at = (layout.runs == 1 ? 0 : i / 32) * kPageTokens + t;
      const int level = setup_.levels.Value(simd::GetCode(layout, IsValue(), page, t, i));
      y[i] = F16ToFloat(scales[at]) * (setup_.levels.step * float(level));
      if (layout.mins) y[i] += F16ToFloat(mins[at]);
    }
    if (setup_.rotation)
      setup_.rotation->Inverse(y, x.Row(r));
    else
      std::copy_n(y, HeadDim(), x.Row(r));
  }
}

// A query is what the kernel prepared, followed by the rows in the basis of the codes that it was prepared from:
// kept there so that Prepare takes no memory.
size_t ScalarPageCodec::QueryBytes(int64_t rows) const noexcept {
  return simd::Pages().query_bytes(setup_.layout, setup_.levels, setup_.precision, rows) +
         RoundUp64(size_t(rows * setup_.layout.dim) * sizeof(float));
}

void ScalarPageCodec::Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept {
  const simd::PageKernels& kernels = simd::Pages();
  const int64_t dim = setup_.layout.dim;
  float* y =
      reinterpret_cast<float*>(query + kernels.query_bytes(setup_.layout, setup_.levels, setup_.precision, q.rows));
  for (int64_t r = 0; r < q.rows; ++r) ToBasis(q.Row(r), y + r * dim);
  kernels.prepare(setup_.layout, setup_.levels, setup_.precision, {y, q.rows, dim}, scale, query);
}

void ScalarPageCodec::Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next,
                            float* logits, std::byte* scratch) const noexcept {
  simd::Pages().score(setup_.layout, setup_.levels, setup_.precision, page, query, rows, next, logits, scratch);
}

void ScalarPageCodec::Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows,
                                 const simd::Upcoming& next, MatView<float> acc, std::byte* scratch) const noexcept {
  simd::Pages().accumulate(setup_.layout, setup_.levels, setup_.precision, page, p, p_scale, rows, next, acc, scratch);
}

void ScalarPageCodec::Finish(MatView<const float> acc, MatView<float> out) const noexcept {
  if (setup_.rotation) return setup_.rotation->Inverse(acc, out);
  for (int64_t r = 0; r < acc.rows; ++r) std::copy_n(acc.Row(r), HeadDim(), out.Row(r));
}

size_t ScalarPageCodec::ScratchBytes(int64_t rows) const noexcept {
  return simd::Pages().scratch_bytes(setup_.layout, setup_.levels, setup_.precision, rows);
}

}  // namespace croquis::codecs
