#include "croquis/attention/linear/feature_map.h"

#include <algorithm>

#include "croquis/base/check.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention::linear {
namespace {

// Features and tokens of one product: 128 rows of 64 values are 32 KiB, which stay in the first cache.
constexpr int64_t kChunk = 128;

}  // namespace

FeatureMap::FeatureMap(int64_t inputs, bool square, float same, float other)
    : inputs_(inputs), square_(square), same_(same), other_(other) {
  for (int64_t u = 0; u < inputs;) {
    Chunk chunk{u, u, features_, 0};
    do {
      chunk.features += square ? inputs - u : 1;
      ++u;
    } while (u < inputs && chunk.features + (square ? inputs - u : 1) <= kChunk);
    chunk.end = u;
    features_ += chunk.features;
    largest_ = std::max(largest_, chunk.features);
    chunks_.push_back(chunk);
  }
}

void FeatureMap::Add(const float* xt, int64_t ldx, MatView<const float> v, float* state, float* scratch) const {
  CROQUIS_DCHECK(ldx % kTileStep == 0 && v.rows <= kMaxTile);
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  const int64_t dv = v.cols, padded = Padded(v.rows);
  float* const masses = state + features_ * dv;
  for (const Chunk& c : chunks_) {
    const float* features = xt + c.begin * ldx;
    int64_t ld = ldx;
    if (square_) {
      loops.square_columns(xt, ldx, padded, inputs_, c.begin, c.end, same_, other_, scratch, padded, masses + c.first);
      features = scratch, ld = padded;
    } else {
      loops.row_sums(features, ld, c.features, v.rows, masses + c.first);
    }
    for (int64_t t = 0; t < v.rows; t += kChunk)
      simd::Dense().small_gemm(features + t, ld, v.Row(t), v.stride, state + c.first * dv, dv, c.features, dv,
                               std::min(kChunk, v.rows - t));
  }
}

void FeatureMap::Apply(const float* x, int64_t ldx, const float* state, MatView<float> out, float* mass,
                       float* scratch) const {
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  const int64_t dv = out.cols;
  const float* const masses = state + features_ * dv;
  for (const Chunk& c : chunks_) {
    const float* features = x + c.begin;
    int64_t ld = ldx;
    if (square_) {
      loops.square_rows(x, ldx, out.rows, inputs_, c.begin, c.end, scratch, c.features);
      features = scratch, ld = c.features;
    }
    simd::Dense().small_gemm(features, ld, state + c.first * dv, dv, out.data, out.stride, out.rows, dv, c.features);
    loops.row_dots(features, ld, out.rows, c.features, masses + c.first, mass);
  }
}

void Transpose(const float* from, int64_t ld, int64_t rows, int64_t cols, float* to, int64_t ldt) {
  // Sixteen rows at a time: the lines of `to` that a column of them touches are filled whole.
  for (int64_t r = 0; r < rows; r += kTileStep)
    for (int64_t c = 0; c < cols; ++c)
      for (int64_t i = 0; i < kTileStep; ++i) to[c * ldt + r + i] = r + i < rows ? from[(r + i) * ld + c] : 0.f;
}

}  // namespace croquis::attention::linear
