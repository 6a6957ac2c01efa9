#include "croquis/attention/observe.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "croquis/attention/stream.h"
#include "croquis/kvcache/layer_view.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {

constexpr int64_t kTokens = 16;  // whose query rows are scored together

// The keys of one head in the order kept, sinks, ring, chunk, and the weights they receive.
class HeadObserver {
 public:
  HeadObserver(const kvcache::HeadView& head, const AttendOptions& options, MatView<const float> k, int64_t head_number,
               int64_t head_dim)
      : head_(head), options_(options), dim_(head_dim), chunk_(size_t(k.rows * head.row_bytes)) {
    for (int64_t t = 0; t < k.rows; ++t)
      kvcache::RoundRow(head.type, k.Row(t) + head_number * dim_, dim_, chunk_.data() + t * head.row_bytes);
    for (const kvcache::KeptRows& kept : head.kept)
      if (kept.use != kvcache::KeptRows::Use::kValues) kept_ += kept.rows;
    exact_ = ExactRows(head, chunk_.data(), nullptr, k.rows);
    keys_ = kept_;
    for (const DenseRows& rows : exact_) keys_ += rows.tokens;
    chunk_at_ = keys_ - k.rows;
    mass_.resize(size_t(keys_));
    energy_.resize(size_t(dim_));
  }

  // q [rows, dim], scaled.
  void AddQueries(MatView<const float> q) {
    for (int64_t r = 0; r < q.rows; ++r)
      for (int64_t i = 0; i < dim_; ++i) {
        const float x = q.Row(r)[i] * std::numbers::ln2_v<float>;
        energy_[size_t(i)] += x * x;
      }
  }

  // q [tokens * group, dim] of chunk tokens first ..: adds what they give to every key.
  void AddMass(MatView<const float> q, int64_t first, int64_t group) {
    Score(q);
    const auto& kernels = simd::Dense();
    float top[64], sum[64];
    for (int64_t r = 0; r < q.rows; r += group) {
      const int64_t seen = options_.causal ? chunk_at_ + first + r / group + 1 : keys_;
      for (int64_t g = r; g < r + group; g += 64) {
        const int64_t n = std::min<int64_t>(64, r + group - g);
        kernels.softmax_tiles(logits_.Row(g), keys_, n, seen, top, sum);
        for (int64_t i = 0; i < n; ++i) {
          const float* w = logits_.Row(g + i);
          const float scale = 1 / sum[i];
          for (int64_t j = 0; j < seen; ++j) mass_[size_t(j)] += scale * w[j];
        }
      }
    }
  }

  void Leave(kvcache::Sees sees, int64_t queries, kvcache::Observation& to) const {
    to.query_energy = energy_;
    to.queries = queries;
    if (sees != kvcache::Sees::kMass) return;
    const int64_t ring = kept_ + head_.sinks;
    to.kept.assign(mass_.begin(), mass_.begin() + kept_);
    to.ring.assign(mass_.begin() + ring, mass_.begin() + chunk_at_);
    to.chunk.assign(mass_.begin() + chunk_at_, mass_.end());
  }

 private:
  void Score(MatView<const float> q) {
    const auto& kernels = simd::Dense();
    if (logits_.rows() < q.rows) logits_ = Matrix<float>(q.rows, keys_);
    int64_t at = 0;
    for (const kvcache::KeptRows& kept : head_.kept) {
      if (kept.use == kvcache::KeptRows::Use::kValues) continue;
      kernels.score_rows(head_.type, q, kept.k, head_.row_bytes, kept.rows, logits_.data() + at, keys_);
      if (kept.log2_weight != nullptr)
        for (int64_t r = 0; r < q.rows; ++r) kernels.add(kept.log2_weight, kept.rows, logits_.Row(r) + at);
      at += kept.rows;
    }
    for (const DenseRows& rows : exact_) {
      kernels.score_rows(head_.type, q, rows.k, head_.row_bytes, rows.tokens, logits_.data() + at, keys_);
      at += rows.tokens;
    }
  }

  const kvcache::HeadView& head_;
  const AttendOptions& options_;
  const int64_t dim_;
  std::vector<std::byte> chunk_;
  std::array<DenseRows, 4> exact_;
  int64_t kept_ = 0, keys_ = 0, chunk_at_ = 0;
  std::vector<float> mass_, energy_;
  Matrix<float> logits_;
};

}  // namespace

Status CheckEviction(const kvcache::KvCache& cache, const AttendOptions& options) {
  if (options.window == 0 || !kvcache::ViewHead(cache, options.layer, 0).evicts) return {};
  return Unsupported(
      "attention: layer " + std::to_string(options.layer) + " of this model sees its last " +
      std::to_string(options.window) +
      " tokens only, and rows that an eviction policy keeps have no single position; take f16 or a codec "
      "for such layers (--kv-layers)");
}

void Observe(Executor& executor, kvcache::KvCache& cache, const AttendOptions& options, MatView<const float> q,
             MatView<const float> k) {
  const kvcache::Sees sees = kvcache::ViewHead(cache, options.layer, 0).sees;
  if (sees == kvcache::Sees::kNothing) return;
  const auto& config = cache.config();
  const int64_t dim = config.head_dim, group = q.cols / dim / config.kv_heads;
  executor.ParallelFor(config.kv_heads, [&](int64_t h, int) {
    const kvcache::HeadView head = kvcache::ViewHead(cache, options.layer, h);
    HeadObserver observer(head, options, k, h, dim);
    Matrix<float> rows(std::min(kTokens, q.rows) * group, dim);
    const float scale = options.scale * std::numbers::log2e_v<float>;
    for (int64_t first = 0; first < q.rows; first += kTokens) {
      const int64_t tokens = std::min(kTokens, q.rows - first);
      for (int64_t r = 0; r < tokens * group; ++r) {
        const float* from = q.Row(first + r / group) + (h * group + r % group) * dim;
        for (int64_t i = 0; i < dim; ++i) rows.Row(r)[i] = from[i] * scale;
      }
      observer.AddQueries(rows.View().Rows(0, tokens * group));
      if (sees == kvcache::Sees::kMass) observer.AddMass(rows.View().Rows(0, tokens * group), first, group);
    }
    observer.Leave(sees, q.rows * group, kvcache::PendingObservation(cache, options.layer, h));
  });
}

}  // namespace croquis::attention
