#include "croquis/eval/exact_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace croquis::eval {

ExactAttention::ExactAttention(const float* q, int64_t rows, int64_t dim, double scale)
    : rows_(rows),
      dim_(dim),
      max_(size_t(rows), -std::numeric_limits<double>::infinity()),
      mass_(size_t(rows), 0.0),
      sum_(size_t(rows * dim), 0.0) {
  for (int64_t i = 0; i < rows * dim; i++) q_.push_back(scale * double(q[i]));
}

void ExactAttention::Add(MatView<const float> k, MatView<const float> v) {
  for (int64_t t = 0; t < k.rows; t++) {
    const float *key = k.Row(t), *value = v.Row(t);
    for (int64_t r = 0; r < rows_; r++) {
      const double* q = &q_[size_t(r * dim_)];
      double *sum = &sum_[size_t(r * dim_)], &max = max_[size_t(r)], &mass = mass_[size_t(r)];
      double x = 0;
      for (int64_t i = 0; i < dim_; i++) x += q[i] * double(key[i]);
      if (x > max) {
        const double shrink = std::exp(max - x);  // 0 for the first key
        mass *= shrink;
        for (int64_t i = 0; i < dim_; i++) sum[i] *= shrink;
        max = x;
      }
      const double p = std::exp(x - max);
      mass += p;
      for (int64_t i = 0; i < dim_; i++) sum[i] += p * double(value[i]);
    }
  }
}

void ExactAttention::Finish(double* out) const {
  for (int64_t r = 0; r < rows_; r++) {
    for (int64_t i = 0; i < dim_; i++) {
      out[r * dim_ + i] = mass_[size_t(r)] > 0 ? sum_[size_t(r * dim_ + i)] / mass_[size_t(r)] : 0;
    }
  }
}

void ForEachStoredBlock(const kvcache::HeadView& view, int64_t head_dim,
                        const std::function<void(int64_t, MatView<const float>, MatView<const float>)>& use) {
  Matrix<float> k(codecs::kPageTokens, head_dim), v(codecs::kPageTokens, head_dim);
  const auto plain = [&](const std::byte* keys, const std::byte* values, int64_t slot, int64_t row) {
    kvcache::WidenRow(view.type, keys + slot * view.row_bytes, head_dim, k.Row(row));
    kvcache::WidenRow(view.type, values + slot * view.row_bytes, head_dim, v.Row(row));
  };
  for (int64_t p = 0; p < view.sinks; p++) {
    plain(view.sink_k, view.sink_v, p, 0);
    use(p, k.View().Rows(0, 1), v.View().Rows(0, 1));
  }
  for (int64_t page = 0; page < view.Pages(); page++) {
    const int64_t first = page * codecs::kPageTokens, rows = std::min(codecs::kPageTokens, view.encoded - first);
    view.key->Decode(view.KeyPage(page), 0, k.View().Rows(0, rows));
    view.value->Decode(view.ValuePage(page), 0, v.View().Rows(0, rows));
    if (view.center != nullptr)
      kvcache::AddCommon(*view.rope, *view.center, view.sinks + first, 0, 1.f, k.View().Rows(0, rows));
    use(view.sinks + first, k.View().Rows(0, rows), v.View().Rows(0, rows));
  }
  for (int64_t p = view.sinks + view.encoded; p < view.length; p++) {
    plain(view.ring_k, view.ring_v, (p - view.sinks) % view.slots, 0);
    use(p, k.View().Rows(0, 1), v.View().Rows(0, 1));
  }
}

double RelativeError(std::span<const float> x, std::span<const double> y) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < y.size(); i++) {
    error += (double(x[i]) - y[i]) * (double(x[i]) - y[i]);
    norm += y[i] * y[i];
  }
  return error == 0 ? 0 : std::sqrt(error / norm);
}

}  // namespace croquis::eval
