#include <algorithm>
#include <cmath>
#include <string>

#include "croquis/attention/partial.h"
#include "croquis/attention/polysketch/polysketch.h"
#include "croquis/base/memory.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention::polysketch {

Result<PolySketchState> PolySketchState::Make(const PolyConfig& config, int64_t dim, int64_t value_dim, float scale) {
  if (!config.HasState())
    return Unsupported("polysketch: exact weights of degree " + std::to_string(config.degree) +
                       " have no state of bounded size; use degree=2 or a sketch");
  if (dim < 1 || value_dim < 1 || dim > 1024 || value_dim > 1024)
    return OutOfRange("polysketch: head dims are 1 to 1024, got " + std::to_string(dim) + " and " +
                      std::to_string(value_dim));
  const int64_t rank = config.degree == 2 ? dim : config.rank;
  CROQUIS_CHECK_OK(CheckMemory(rank * (rank + 1) / 2 * (value_dim + 1) * 4, "the state of a head"));
  return PolySketchState(config, dim, value_dim, scale);
}

PolySketchState::PolySketchState(const PolyConfig& config, int64_t dim, int64_t value_dim, float scale)
    : form_(config, dim, scale),
      value_dim_(value_dim),
      state_(size_t(form_.map().StateFloats(value_dim))),
      block_k_(size_t(config.mixed ? config.block * dim : 0)),
      block_v_(size_t(config.mixed ? config.block * value_dim : 0)),
      row_(size_t(dim)),
      sketch_(size_t(form_.rank() + simd::kFeatureSlack)),
      features_(size_t(form_.map().features() + simd::kFeatureSlack)),
      scratch_(size_t(form_.ScratchFloats(1))) {}

// The features of one token are a column: state += phi(k) [v, 1].
void PolySketchState::AddToState(const float* k, const float* v) {
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  const int64_t rank = form_.rank(), features = form_.map().features();
  form_.Sketch(k, 1, sketch_.data(), rank, scratch_.data());
  loops.square_rows(sketch_.data(), rank, 1, rank, 0, rank, features_.data(), features);
  for (int64_t u = 0, f = 0; u < rank; f += rank - u, ++u)
    simd::Dense().scale(features_.data() + f + 1, rank - u - 1, 2.f);
  loops.rank_one(features_.data(), features, v, value_dim_, state_.data());
  simd::Dense().add(features_.data(), features, state_.data() + features * value_dim_);
}

void PolySketchState::Append(std::span<const float> k, std::span<const float> v) {
  const int64_t dim = form_.dim();
  const MatView<const float> row(k.data(), 1, dim);
  form_.Prepare(row, false, row_.data());
  ++tokens_;
  if (!form_.config().mixed) return AddToState(row_.data(), v.data());
  if (held_ == form_.config().block) {
    for (int64_t t = 0; t < held_; ++t) AddToState(block_k_.data() + t * dim, block_v_.data() + t * value_dim_);
    held_ = 0;
  }
  std::copy_n(row_.data(), dim, block_k_.data() + held_ * dim);
  std::copy_n(v.data(), value_dim_, block_v_.data() + held_ * value_dim_);
  ++held_;
}

float PolySketchState::Attend(std::span<const float> q, std::span<float> out) {
  std::fill(out.begin(), out.end(), 0.f);
  if (tokens_ == 0) return kEmptyMax;
  const simd::DenseKernels& dense = simd::Dense();
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  const int64_t dim = form_.dim(), rank = form_.rank(), features = form_.map().features();
  form_.Prepare(MatView<const float>(q.data(), 1, dim), true, row_.data());
  const float one = 1;
  float mass = form_.bias();
  const MatView<float> answer(out.data(), 1, value_dim_);
  if (tokens_ > held_) {
    form_.Sketch(row_.data(), 1, sketch_.data(), rank, scratch_.data());
    loops.square_rows(sketch_.data(), rank, 1, rank, 0, rank, features_.data(), features);
    dense.accumulate_rows(simd::RowType::kF32, features_.data(), features, &one, 1,
                          reinterpret_cast<const std::byte*>(state_.data()), value_dim_ * 4, features, answer);
    loops.row_dots(features_.data(), features, 1, features, state_.data() + features * value_dim_, &mass);
  }
  if (held_ > 0) {
    std::vector<float> weights(static_cast<size_t>(held_));
    const int32_t last = int32_t(held_);
    dense.score_rows(simd::RowType::kF32, {row_.data(), 1, dim}, reinterpret_cast<const std::byte*>(block_k_.data()),
                     dim * 4, held_, weights.data(), held_);
    loops.even_powers(weights.data(), held_, 1, held_, form_.config().degree, &last, &mass);
    dense.accumulate_rows(simd::RowType::kF32, weights.data(), held_, &one, 1,
                          reinterpret_cast<const std::byte*>(block_v_.data()), value_dim_ * 4, held_, answer);
  }
  if (!(mass > 0)) return kEmptyMax;
  dense.scale(out.data(), value_dim_, 1 / mass);
  return form_.Lse(mass);
}

}  // namespace croquis::attention::polysketch
