#include "croquis/attention/polysketch/sketch.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "croquis/base/check.h"
#include "croquis/base/rng.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/feature_kernels.h"

namespace croquis::attention::polysketch {
namespace {

Matrix<float> GaussianMatrix(int64_t rows, int64_t cols, const Stream& random) {
  Matrix<float> g(rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) g.data()[i] = random.Gaussian(uint64_t(i));
  return g;
}

Matrix<float> SrhtMatrix(int64_t rows, int64_t cols, const Stream& random) {
  Matrix<float> g(rows, cols);
  const int64_t padded = int64_t(std::bit_ceil(uint64_t(rows)));
  std::vector<int64_t> order(static_cast<size_t>(padded));
  for (int64_t c = 0; c < cols; ++c) {
    const uint64_t transform = uint64_t(c / padded);
    const Stream signs = random.Sub(2 * transform), draws = random.Sub(2 * transform + 1);
    const int64_t at = c % padded;
    if (at == 0) std::iota(order.begin(), order.end(), 0);
    std::swap(order[size_t(at)], order[size_t(at + int64_t(draws.U32(uint64_t(at)) % uint64_t(padded - at)))]);
    for (int64_t i = 0; i < rows; ++i)
      g.Row(i)[c] = signs.Sign(uint64_t(i)) * (std::popcount(uint64_t(i & order[size_t(at)])) % 2 == 0 ? 1.f : -1.f);
  }
  return g;
}

}  // namespace

PolySketch::PolySketch(int64_t dim, int power, int64_t rank, SketchKind kind, uint64_t seed)
    : dim_(dim), power_(power), rank_(rank) {
  CROQUIS_DCHECK(power == 1 || power == 2 || power == 4);
  const Stream random{seed, Purpose("polysketch.matrices")};
  uint64_t drawn = 0;
  for (int count = power; count > 1; count /= 2) {
    auto& level = levels_.emplace_back();
    const int64_t rows = count == power ? dim : rank;
    for (int i = 0; i < count; ++i, ++drawn)
      level.push_back(kind == SketchKind::kGaussian ? GaussianMatrix(rows, rank, random.Sub(drawn))
                                                    : SrhtMatrix(rows, rank, random.Sub(drawn)));
  }
}

void PolySketch::Apply(MatView<const float> x, float* m, int64_t ldm, float* scratch) const {
  if (power_ == 1) {
    for (int64_t r = 0; r < x.rows; ++r) std::copy_n(x.Row(r), dim_, m + r * ldm);
    return;
  }
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  const int64_t piece = x.rows * rank_;
  const float scale = float(1 / std::sqrt(double(rank_)));
  float *products = scratch, *sketches = scratch + power_ * piece;
  for (const auto& level : levels_) {
    const int64_t count = int64_t(level.size());
    std::fill_n(products, count * piece, 0.f);
    for (int64_t i = 0; i < count; ++i) {
      const bool first = &level == &levels_.front();
      const Matrix<float>& g = level[size_t(i)];
      simd::Dense().small_gemm(first ? x.data : sketches + i * piece, first ? x.stride : rank_, g.data(), rank_,
                               products + i * piece, rank_, x.rows, rank_, g.rows());
    }
    if (count == 2) {
      for (int64_t r = 0; r < x.rows; ++r)
        loops.product(products + r * rank_, products + piece + r * rank_, scale, rank_, m + r * ldm);
      return;
    }
    for (int64_t i = 0; i < count / 2; ++i)
      loops.product(products + 2 * i * piece, products + (2 * i + 1) * piece, scale, piece, sketches + i * piece);
  }
}

}  // namespace croquis::attention::polysketch
