#include "croquis/eval/batch_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "croquis/attention/hydragen/attend_batch.h"
#include "croquis/base/memory.h"
#include "croquis/eval/attention_bench.h"
#include "croquis/eval/metrics.h"

namespace croquis::eval {
namespace {

using kvcache::KvCache;
constexpr int64_t kFillChunk = 512;

double Milliseconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

std::vector<KvCache*> Pointers(const std::vector<std::unique_ptr<KvCache>>& caches) {
  std::vector<KvCache*> p;
  p.reserve(caches.size());
  for (const auto& cache : caches) p.push_back(cache.get());
  return p;
}

Status Check(const BatchBenchOptions& o) {
  if (o.sequences < 1 || o.sequences > 4096 || o.prefix < 0 || o.own < 0 || o.reps < 1)
    return OutOfRange("sequences must be 1 to 4096, repetitions at least 1, prefix and own tokens 0 or more");
  if (o.heads < 1 || o.kv_heads < 1 || o.heads % o.kv_heads != 0)
    return InvalidArgument("the heads (" + std::to_string(o.heads) + ") must be a multiple of the kv heads (" +
                           std::to_string(o.kv_heads) + ")");
  return {};
}

// Medians of what the three ways took, and of their ratios within a round.
void Summarise(std::vector<double> (&ms)[3], BatchRow& row) {
  std::vector<double> alone, branches;
  for (size_t i = 0; i < ms[0].size(); ++i) {
    alone.push_back(ms[1][i] / ms[0][i]);
    branches.push_back(ms[2][i] / ms[0][i]);
  }
  row.shared_ms = Median(ms[0]), row.alone_ms = Median(ms[1]), row.branches_ms = Median(ms[2]);
  row.speedup = Median(alone), row.speedup_to_branches = Median(branches);
}

class AttentionLanes {
 public:
  AttentionLanes(Executor& executor, const BatchBenchOptions& o, const kvcache::KvPolicy& policy)
      : executor_(executor), o_(o), out_(o.sequences, o.heads * o.head_dim), first_(out_.rows(), out_.cols()) {
    config_.layers = 1, config_.kv_heads = o.kv_heads, config_.head_dim = o.head_dim;
    config_.capacity = o.prefix + o.own + 1;
    config_.sinks = o.sinks, config_.ring = o.ring, config_.policy = policy, config_.seed = o.seed;
    for (int64_t i = 0; i < o.head_dim / 2; i++)
      config_.rope.inv_freq.push_back(std::pow(10000.0, -2.0 * double(i) / double(o.head_dim)));
    q_ = Token(1, o.heads), k_ = Token(2, o.kv_heads), v_ = Token(3, o.kv_heads);
    for (int64_t i = 0; i < q_.rows() * q_.cols(); ++i) q_.data()[i] *= 2.5f;  // logits of this standard deviation
  }

  Result<BatchRow> Run(const std::function<bool()>& step) {
    CROQUIS_TRY(const int64_t bytes, KvCache::BytesFor(config_, config_.capacity));
    CROQUIS_CHECK_OK(CheckMemory((o_.sequences + 2) * bytes, std::to_string(o_.sequences) + " caches of " +
                                                                 config_.policy.text + "; take fewer sequences"));
    CROQUIS_CHECK_OK(Fill(step));
    std::vector<double> ms[3];
    BatchRow row;
    for (int64_t r = -1; r < o_.reps; ++r) {  // the first round warms up
      for (int way = 0; way < 3; ++way) {
        CROQUIS_TRY(const double t, Time(way));
        if (r >= 0) ms[way].push_back(t);
        if (way == 0) std::copy_n(out_.data(), out_.rows() * out_.cols(), first_.data());
        if (way == 1) row.error = std::max(row.error, Error());
      }
      if (!step()) return Internal("interrupted");
    }
    Summarise(ms, row);
    const kvcache::Report report = alone_[0]->GetReport();
    row.kv = config_.policy.text;
    row.fast = report.all_fast;
    for (const std::string& k : report.kernels) row.kernel += (row.kernel.empty() ? "" : "; ") + k;
    row.shared_bytes = kvcache::BytesTogether(Pointers(branches_));
    row.alone_bytes = kvcache::BytesTogether(Pointers(alone_));
    return row;
  }

 private:
  // A row of every sequence.
  Matrix<float> Token(uint64_t stream, int64_t heads) const {
    Matrix<float> m(o_.sequences, heads * o_.head_dim);
    FillGaussian(o_.seed, stream, 0, m.rows() * m.cols(), m.data());
    return m;
  }

  // Appends `tokens` of a stream to a cache.
  Status Append(KvCache& cache, uint64_t stream, int64_t tokens) {
    const int64_t width = o_.kv_heads * o_.head_dim;
    Matrix<float> k(kFillChunk, width), v(kFillChunk, width);
    for (int64_t done = 0; done < tokens; done += kFillChunk) {
      const int64_t n = std::min(kFillChunk, tokens - done);
      FillGaussian(o_.seed, 2 * stream, uint64_t(done * width), n * width, k.data());
      FillGaussian(o_.seed, 2 * stream + 1, uint64_t(done * width), n * width, v.data());
      CROQUIS_CHECK_OK(cache.Append(0, k.View().Rows(0, n), v.View().Rows(0, n)));
      cache.Commit(n);
    }
    return {};
  }

  Status Fill(const std::function<bool()>& step) {
    for (int64_t b = 0; b < o_.sequences; ++b) {
      CROQUIS_TRY(auto own, KvCache::Make(config_));
      CROQUIS_CHECK_OK(Append(*own, 10, o_.prefix));
      if (b == 0) {
        for (int64_t i = 0; i < o_.sequences; ++i) branches_.push_back(own->Branch());
        CROQUIS_TRY(own, KvCache::Make(config_));
        CROQUIS_CHECK_OK(Append(*own, 10, o_.prefix));
      }
      CROQUIS_CHECK_OK(Append(*own, uint64_t(11 + b), o_.own));
      CROQUIS_CHECK_OK(Append(*branches_[size_t(b)], uint64_t(11 + b), o_.own));
      alone_.push_back(std::move(own));
      if (!step()) return Internal("interrupted");
    }
    return {};
  }

  // Milliseconds of one way; the answers are in out_.
  Result<double> Time(int way) {
    const auto caches = Pointers(way == 1 ? alone_ : branches_);
    const attention::AttendOptions options{.scale = float(1 / std::sqrt(double(o_.head_dim)))};
    const auto start = std::chrono::steady_clock::now();
    if (way == 0) {
      CROQUIS_CHECK_OK(
          attention::AttendBatch(executor_, caches, options, q_.View(), k_.View(), v_.View(), out_.View()));
    } else {
      for (int64_t b = 0; b < o_.sequences; ++b)
        CROQUIS_CHECK_OK(attention::AttendAndAppend(executor_, *caches[size_t(b)], options, q_.View().Rows(b, 1),
                                                    k_.View().Rows(b, 1), v_.View().Rows(b, 1),
                                                    out_.View().Rows(b, 1)));
    }
    const double ms = Milliseconds(start);
    for (KvCache* cache : caches) cache->Rollback();
    return ms;
  }

  double Error() const {
    double worst = 0;
    for (int64_t r = 0; r < out_.rows(); ++r) {
      double diff = 0, norm = 1e-300;
      for (int64_t i = 0; i < out_.cols(); ++i) {
        const double x = double(out_.Row(r)[i]), e = double(first_.Row(r)[i]) - x;
        diff += e * e, norm += x * x;
      }
      worst = std::max(worst, std::sqrt(diff / norm));
    }
    return worst;
  }

  Executor& executor_;
  const BatchBenchOptions& o_;
  kvcache::CacheConfig config_;
  Matrix<float> q_, k_, v_, out_, first_;
  std::vector<std::unique_ptr<KvCache>> branches_, alone_;
};

}  // namespace

Result<std::vector<BatchRow>> BenchBatchAttention(Executor& executor, const BatchBenchOptions& o,
                                                  const ProgressFn& progress) {
  CROQUIS_CHECK_OK(Check(o));
  const int64_t total = int64_t(o.caches.size()) * (o.sequences + o.reps + 1);
  int64_t done = 0;
  std::vector<BatchRow> rows;
  for (const kvcache::KvPolicy& policy : o.caches) {
    AttentionLanes lanes(executor, o, policy);
    CROQUIS_TRY(BatchRow row, lanes.Run([&] { return !progress || progress(++done, total); }));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace croquis::eval
