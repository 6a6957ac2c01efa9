#include "croquis/attention/polysketch/pairs.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "croquis/attention/partial.h"
#include "croquis/attention/polysketch/runner.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention::polysketch {
namespace {

constexpr int64_t kSlice = 64;  // rows of one product with a block: half of a causal tile's pairs are then skipped
constexpr int64_t kDepth = 128;

}  // namespace

MatView<const float> AsF32(const RowsView& rows, float* room) {
  if (rows.type == simd::RowType::kF32)
    return {reinterpret_cast<const float*>(rows.data), rows.rows, rows.dim, rows.stride};
  for (int64_t r = 0; r < rows.rows; ++r) rows.Read(r, room + r * rows.dim);
  return {room, rows.rows, rows.dim};
}

PolyTile::PolyTile(const PolyForm& form, int64_t rows, int64_t value_dim)
    : form_(form),
      value_dim_(value_dim),
      x_(size_t(rows * form.dim())),
      m_(size_t(rows * form.rank() + simd::kFeatureSlack)),
      sums_(size_t(rows * value_dim)),
      mass_(size_t(rows)),
      weights_(size_t(kSlice * linear::kMaxTile)),
      scratch_(size_t(std::max(form.ScratchFloats(rows), form.map().ScratchFloats(rows)))) {}

void PolyTile::Load(const RowsView& q, int64_t first, int64_t rows) {
  rows_ = rows;
  form_.Prepare(q.Rows(first, rows), true, x_.data());
  if (form_.config().HasState()) form_.Sketch(x_.data(), rows, m_.data(), form_.rank(), scratch_.data());
  std::fill_n(sums_.data(), rows * value_dim_, 0.f);
  std::fill_n(mass_.data(), rows, form_.bias());
}

void PolyTile::AddState(const float* state) {
  form_.map().Apply(m_.data(), form_.rank(), state, {sums_.data(), rows_, value_dim_}, mass_.data(), scratch_.data());
}

void PolyTile::AddPairs(const KeyBlock& block, const int64_t* last) {
  const simd::DenseKernels& dense = simd::Dense();
  const int64_t inputs = form_.LocalInputs();
  const float* const x = form_.ExactLocal() ? x_.data() : m_.data();
  int32_t limits[kSlice];
  for (int64_t first = 0; first < rows_; first += kSlice) {
    const int64_t rows = std::min(kSlice, rows_ - first);
    int64_t keys = 0;
    for (int64_t r = 0; r < rows; ++r) {
      limits[r] = int32_t(std::clamp<int64_t>(last[first + r], 0, block.v.rows));
      keys = std::max<int64_t>(keys, limits[r]);
    }
    if (keys == 0) continue;
    const int64_t ld = linear::Padded(keys);
    std::fill_n(weights_.data(), rows * ld, 0.f);
    dense.small_gemm(x + first * inputs, inputs, block.inputs, block.ld, weights_.data(), ld, rows, keys, inputs);
    simd::FeatureLoops().even_powers(weights_.data(), ld, rows, keys, form_.LocalPower(), limits, mass_.data() + first);
    for (int64_t k = 0; k < keys; k += kDepth)
      dense.small_gemm(weights_.data() + k, ld, block.v.Row(k), block.v.stride, sums_.data() + first * value_dim_,
                       value_dim_, rows, value_dim_, std::min(kDepth, keys - k));
  }
}

bool PolyTile::Finish(MatView<float> out, float* lse, const int64_t* sees) {
  bool finite = true;
  for (int64_t r = 0; r < rows_; ++r) {
    const float mass = mass_[size_t(r)];
    const bool any = sees[r] > 0 && mass > 0;
    finite &= std::isfinite(mass);
    const float scale = 1 / mass;
    const float* const sums = sums_.data() + r * value_dim_;
    float* const to = out.Row(r);
    if (any)
      for (int64_t c = 0; c < value_dim_; ++c) to[c] = sums[c] * scale;
    else
      std::fill_n(to, value_dim_, 0.f);
    if (lse != nullptr) lse[r] = any ? form_.Lse(mass) : kEmptyMax;
  }
  return finite;
}

Status RunPairs(Executor& executor, const PolyForm& form, const Problem& p, const Output& output, RunReport* report) {
  const int64_t nq = p.q.rows, nk = p.k.rows, dim = p.q.dim, dv = p.v.dim, block = linear::kMaxTile / 4;
  const int64_t blocks = (nk + block - 1) / block, tiles = (nq + kSlice - 1) / kSlice, group = p.Group();
  CROQUIS_CHECK_OK(CheckMemory(blocks * block * (dim + dv) * 4, "the keys of a head"));
  std::vector<float> keys(size_t(blocks * block * dim)), values(size_t(nk * dv)),
      rows(size_t(executor.threads() * block * dim));
  std::vector<PolyTile> workers;
  workers.reserve(size_t(executor.threads()));
  for (int i = 0; i < executor.threads(); ++i) workers.emplace_back(form, kSlice, dv);
  std::atomic<bool> finite{true};
  for (int64_t kv = 0; kv < p.k.heads; ++kv) {
    const MatView<const float> v = AsF32(p.v.Head(kv), values.data());
    executor.ParallelFor(blocks, [&](int64_t b, int worker) {
      const int64_t n = std::min(block, nk - b * block);
      float* const x = rows.data() + worker * block * dim;
      form.Prepare(p.k.Head(kv).Rows(b * block, n), false, x);
      linear::Transpose(x, dim, n, dim, keys.data() + b * block * dim, block);
    });
    executor.ParallelFor(group * tiles, [&](int64_t task, int worker) {
      const int64_t h = kv * group + task % group, first = (tiles - 1 - task / group) * kSlice,
                    n = std::min(kSlice, nq - first);
      PolyTile& tile = workers[size_t(worker)];
      tile.Load(p.q.Head(h), first, n);
      int64_t sees[kSlice], last[kSlice];
      for (int64_t r = 0; r < n; ++r) sees[r] = p.Visible(first + r).last;
      for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t r = 0; r < n; ++r) last[r] = sees[r] - b * block;
        tile.AddPairs({keys.data() + b * block * dim, block, v.Rows(b * block, std::min(block, nk - b * block))}, last);
      }
      float* const lse = output.lse == nullptr ? nullptr : output.lse + h * nq + first;
      if (!tile.Finish(output.Head(h, nq, dv).Rows(first, n), lse, sees)) finite = false;
    });
  }
  report->pairs = report->exact_pairs;
  if (finite) return {};
  return Numeric("polysketch: weights of degree " + std::to_string(form.config().degree) +
                 " do not fit f32; use normalise=1 or a smaller scale");
}

}  // namespace croquis::attention::polysketch
