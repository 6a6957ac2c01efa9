#include "croquis/eval/attention_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "croquis/attention/attention.h"
#include "croquis/eval/bandwidth.h"
#include "croquis/eval/exact_attention.h"
#include "croquis/eval/metrics.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::eval {
namespace {

using kvcache::KvCache;
constexpr int64_t kFillChunk = 512;

struct Lane {
  kvcache::KvPolicy policy;
  bool biased = false;
  std::unique_ptr<KvCache> cache;
  std::vector<double> seconds;   // a round's time over its layers
  std::vector<float> first_out;  // [heads * head_dim]: the output of layer 0
};

class Bench {
 public:
  Bench(Executor& executor, const AttentionBenchOptions& options) : executor_(executor), o_(options) {}

  Result<AttentionBench> Run(const ProgressFn& progress) {
    CROQUIS_CHECK_OK(Check());
    CROQUIS_CHECK_OK(MakeLanes());
    CROQUIS_CHECK_OK(Size());
    const int64_t steps = (o_.n + kFillChunk - 1) / kFillChunk + o_.reps + int64_t(lanes_.size());
    int64_t done = 0;
    const auto step = [&] { return !progress || progress(++done, steps); };
    for (Lane& lane : lanes_) {
      CROQUIS_TRY(lane.cache, KvCache::Make(Config(lane)));
    }
    for (int64_t first = 0; first < o_.n; first += kFillChunk) {
      CROQUIS_CHECK_OK(Fill(first));
      if (!step()) return Internal("interrupted");
    }
    ReadProbe probe(executor_, probe_bytes_);
    CROQUIS_CHECK_OK(Round(false));  // warms up: page tables, workspaces, clock
    double read = 0;
    for (int64_t r = 0; r < o_.reps; r++) {
      read = std::max(read, probe.Pass());
      CROQUIS_CHECK_OK(Round(true));
      if (!step()) return Internal("interrupted");
    }
    AttentionBench out;
    out.layers = layers_;
    out.read_gb_per_s = read / 1e9;
    out.limit = limit_;
    out.f16_bytes = layers_ * f16_layer_bytes_;
    out.beyond_caches = double(out.f16_bytes) > 1.5 * double(o_.last_cache);
    for (const Lane& lane : lanes_) {
      out.rows.push_back(Summarise(lane, out.read_gb_per_s));
      if (!step()) return Internal("interrupted");
    }
    return out;
  }

 private:
  Status Check() const {
    const auto& o = o_;
    if (o.n < 1 || o.heads < 1 || o.kv_heads < 1 || o.head_dim < 1 || o.reps < 1 || o.layers < 0) {
      return OutOfRange("tokens, heads, head sizes and repetitions must be at least 1");
    }
    if (o.heads % o.kv_heads != 0) {
      return InvalidArgument("the heads (" + std::to_string(o.heads) + ") must be a multiple of the kv heads (" +
                             std::to_string(o.kv_heads) + ")");
    }
    if (o.center_pairs < 0 || o.center_pairs > o.head_dim / 2) {
      return OutOfRange("--center-pairs lies between 0 and half the head size, " + std::to_string(o.head_dim / 2) +
                        "; got " + std::to_string(o.center_pairs));
    }
    return {};
  }

  Status MakeLanes() {
    CROQUIS_TRY(const kvcache::KvPolicy f16, kvcache::ParseKvPolicy("f16"));
    lanes_.resize(1);
    lanes_[0].policy = f16;
    for (const kvcache::KvPolicy& p : o_.caches) {
      if (!p.base.evict.empty())
        return Unsupported("bench attention measures codecs at a number of tokens; " + p.text +
                           " keeps fewer. What it costs: bench decode, eval, needle");
      if (p.text != "f16") lanes_.emplace_back().policy = p;
    }
    if (o_.center_pairs > 0) {
      for (const char* how : {"none", "rope"}) {
        Lane& lane = lanes_.emplace_back();
        CROQUIS_TRY(lane.policy, kvcache::ParseKvPolicy(o_.center_method + ",center=" + how));
        lane.biased = true;
      }
    }
    return {};
  }

  kvcache::CacheConfig Config(const Lane& lane) const {
    kvcache::CacheConfig c;
    c.layers = layers_;
    c.kv_heads = o_.kv_heads;
    c.head_dim = o_.head_dim;
    c.capacity = o_.n + 1;
    c.sinks = o_.sinks;
    c.ring = o_.ring;
    c.policy = lane.policy;
    c.seed = o_.seed;
    c.rope.inv_freq = InverseFrequencies();
    return c;
  }

  std::vector<double> InverseFrequencies() const {
    std::vector<double> w;
    for (int64_t i = 0; i < o_.head_dim / 2; i++)
      w.push_back(std::pow(10000.0, -2.0 * double(i) / double(o_.head_dim)));
    return w;
  }

  // Layers, and whether everything fits.
  Status Size() {
    layers_ = 1;
    std::vector<int64_t> one;
    int64_t all = 0;
    for (const Lane& lane : lanes_) {
      CROQUIS_TRY(const int64_t bytes, KvCache::BytesFor(Config(lane), o_.n + 1));
      one.push_back(bytes);
      all += bytes;
    }
    f16_layer_bytes_ = one[0];
    const int64_t target = std::max<int64_t>(600'000'000, 2 * o_.last_cache);
    const int64_t wish = o_.layers > 0 ? o_.layers : (target + one[0] - 1) / one[0];
    const int64_t most = std::max<int64_t>(1, (AvailableMemory() / 10 * 8 - std::min(target, int64_t(1) << 30)) / all);
    layers_ = o_.layers > 0 ? wish : std::min({wish, most, kMostLayers});
    limit_ = o_.layers > 0     ? LayerLimit::kAsked
             : layers_ == wish ? LayerLimit::kNone
             : layers_ == most ? LayerLimit::kMemory
                               : LayerLimit::kMost;
    // As much as f16 reads in a round, so that both meet the same caches.
    probe_bytes_ = std::clamp(layers_ * f16_layer_bytes_, int64_t(64) << 20, int64_t(1) << 30);
    const auto total = CheckedMul(all, layers_);
    if (!total) return NoMemory("that many layers and tokens exceed any memory");
    return CheckMemory(*total + probe_bytes_, "the caches of the benchmark");
  }

  // Keys and values [rows, kv_heads * head_dim] of positions first .. of a layer; biased keys carry R_p mu.
  void Data(int64_t layer, int64_t first, bool biased, MatView<float> k, MatView<float> v) const {
    const int64_t width = o_.kv_heads * o_.head_dim;
    executor_.ParallelFor(k.rows, [&](int64_t r, int) {
      const auto at = uint64_t(first + r) * uint64_t(width);
      FillGaussian(o_.seed, uint64_t(2 * layer), at, width, k.Row(r));
      FillGaussian(o_.seed, uint64_t(2 * layer + 1), at, width, v.Row(r));
      if (biased) AddBias(first + r, k.Row(r));
    });
  }

  // The common part: the same in every head, energy shared by pairs spread over the spectrum.
  void AddBias(int64_t position, float* k) const {
    const int64_t half = o_.head_dim / 2;
    const double each = o_.center_norm * std::sqrt(double(o_.head_dim) / double(o_.center_pairs));
    for (int64_t i = 0; i < o_.center_pairs; i++) {
      const int64_t pair = i * half / o_.center_pairs;
      const double angle = double(position) * std::pow(10000.0, -2.0 * double(pair) / double(o_.head_dim)) + double(i);
      const auto re = float(each * std::cos(angle)), im = float(each * std::sin(angle));
      for (int64_t h = 0; h < o_.kv_heads; h++) {
        k[h * o_.head_dim + pair] += re;
        k[h * o_.head_dim + pair + half] += im;
      }
    }
  }

  // Tokens first .. first + kFillChunk of all layers and caches.
  Status Fill(int64_t first) {
    const int64_t rows = std::min(kFillChunk, o_.n - first), width = o_.kv_heads * o_.head_dim;
    Matrix<float> k(rows, width), v(rows, width);
    for (int64_t layer = 0; layer < layers_; layer++) {
      for (const bool biased : {false, true}) {
        if (biased && o_.center_pairs == 0) continue;
        Data(layer, first, biased, k.View(), v.View());
        for (Lane& lane : lanes_) {
          if (lane.biased != biased) continue;
          CROQUIS_CHECK_OK(kvcache::CheckAppend(*lane.cache, layer, k.View(), v.View()));
          kvcache::AppendChecked(executor_, *lane.cache, layer, k.View(), v.View());
        }
      }
    }
    for (Lane& lane : lanes_) lane.cache->Commit(rows);
    return {};
  }

  // The decoded token's query, key and value: the same for all layers and caches.
  void Token(bool biased, Matrix<float>& q, Matrix<float>& k, Matrix<float>& v) const {
    FillGaussian(o_.seed, ~uint64_t(0), 0, q.cols(), q.data());
    for (int64_t i = 0; i < q.cols(); i++) q.data()[i] *= float(o_.logit_std);
    FillGaussian(o_.seed, ~uint64_t(1), 0, k.cols(), k.data());
    FillGaussian(o_.seed, ~uint64_t(2), 0, v.cols(), v.data());
    if (!biased) return;
    AddBias(o_.n, k.data());
    // Queries look less at the pairs of the common part, by as much as it is larger: its logits then vary as much as
    // the others. Otherwise attention would fall on a single key, and errors of keys would not show.
    const int64_t half = o_.head_dim / 2;
    for (int64_t h = 0; h < o_.heads; h++) {
      for (int64_t i = 0; i < o_.center_pairs; i++) {
        const int64_t pair = i * half / o_.center_pairs;
        for (const int64_t dim : {pair, pair + half})
          q.data()[h * o_.head_dim + dim] /= float(std::max(o_.center_norm, 1.0));
      }
    }
  }

  float Scale() const { return float(1 / std::sqrt(double(o_.head_dim))); }

  Status Round(bool keep) {
    Matrix<float> q(1, o_.heads * o_.head_dim), k(1, o_.kv_heads * o_.head_dim), v(1, k.cols()), out(1, q.cols());
    for (Lane& lane : lanes_) {
      Token(lane.biased, q, k, v);
      const auto start = std::chrono::steady_clock::now();
      for (int64_t layer = 0; layer < layers_; layer++) {
        const attention::AttendOptions options{.layer = layer, .scale = Scale()};
        CROQUIS_CHECK_OK(
            attention::AttendAndAppend(executor_, *lane.cache, options, q.View(), k.View(), v.View(), out.View()));
        if (layer == 0 && lane.first_out.empty()) lane.first_out.assign(out.data(), out.data() + out.cols());
      }
      const double t = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      lane.cache->Rollback();
      if (keep) lane.seconds.push_back(t / double(layers_));
    }
    return {};
  }

  AttentionRow Summarise(const Lane& lane, double read_gb_per_s) {
    AttentionRow row;
    const kvcache::Report report = lane.cache->GetReport();
    row.kv = lane.policy.text;
    row.keys = lane.biased ? "biased, " + std::to_string(o_.center_pairs) + " pairs" : "gaussian";
    for (const std::string& k : report.kernels) row.kernel += (row.kernel.empty() ? "" : "; ") + k;
    row.fast = report.all_fast;
    std::vector<double> t = lane.seconds, ratio, cost;
    row.ms_best = 1e3 * *std::min_element(t.begin(), t.end());
    for (size_t r = 0; r < t.size(); r++) ratio.push_back(lanes_[0].seconds[r] / t[r]);
    row.ratio_to_f16 = Median(ratio);
    if (lane.biased && &lane == &lanes_.back()) {
      const std::vector<double>& none = lanes_[lanes_.size() - 2].seconds;
      for (size_t r = 0; r < t.size(); r++) cost.push_back(t[r] / none[r]);
      row.center_cost = Median(cost);
    }
    row.ms = 1e3 * Median(t);
    row.bytes = report.total() / layers_;
    row.gb_per_s = double(row.bytes) / row.ms / 1e6;
    row.share_of_read = row.gb_per_s / read_gb_per_s;
    row.bits_per_number = (report.key_bits + report.value_bits) / 2;
    row.bits_total = report.bits_per_number;
    row.centered_pairs = report.centered_pairs;
    Errors(lane, row);
    return row;
  }

  // Attention in f64 of layer 0, over what is stored and over what went in.
  void Errors(const Lane& lane, AttentionRow& row) {
    const int64_t d = o_.head_dim, group = o_.heads / o_.kv_heads;
    Matrix<float> q(1, o_.heads * d), k(1, o_.kv_heads * d), v(1, o_.kv_heads * d);
    Token(lane.biased, q, k, v);
    std::vector<double> stored(size_t(o_.heads * d)), exact(size_t(o_.heads * d));
    executor_.ParallelFor(o_.kv_heads, [&](int64_t h, int) {
      const kvcache::HeadView view = kvcache::ViewHead(*lane.cache, 0, h);
      ExactAttention a(q.data() + h * group * d, group, d, double(Scale())), b = a;
      Matrix<float> rows_k(codecs::kPageTokens, d), rows_v(codecs::kPageTokens, d);
      ForEachStoredBlock(view, d, [&](int64_t, MatView<const float> sk, MatView<const float> sv) { a.Add(sk, sv); });
      std::vector<float> wide(static_cast<size_t>(o_.kv_heads * d)), wide_v(wide.size());
      for (int64_t p = 0; p < o_.n; p++) {
        const auto at = uint64_t(p) * uint64_t(o_.kv_heads * d) + uint64_t(h * d);
        FillGaussian(o_.seed, 0, at, d, wide.data() + h * d);
        FillGaussian(o_.seed, 1, at, d, wide_v.data() + h * d);
        if (lane.biased) AddBias(p, wide.data());
        b.Add({wide.data() + h * d, 1, d}, {wide_v.data() + h * d, 1, d});
      }
      // The token sees itself as the ring will hold it.
      std::vector<std::byte> rounded(size_t(view.row_bytes));
      kvcache::RoundRow(view.type, k.data() + h * d, d, rounded.data());
      kvcache::WidenRow(view.type, rounded.data(), d, rows_k.data());
      kvcache::RoundRow(view.type, v.data() + h * d, d, rounded.data());
      kvcache::WidenRow(view.type, rounded.data(), d, rows_v.data());
      a.Add(rows_k.View().Rows(0, 1), rows_v.View().Rows(0, 1));
      b.Add({k.data() + h * d, 1, d}, {v.data() + h * d, 1, d});
      a.Finish(stored.data() + h * group * d);
      b.Finish(exact.data() + h * group * d);
    });
    row.rel_error = RelativeError(lane.first_out, stored);
    row.total_error = RelativeError(lane.first_out, exact);
  }

  Executor& executor_;
  const AttentionBenchOptions& o_;
  std::vector<Lane> lanes_;
  int64_t layers_ = 0, f16_layer_bytes_ = 0, probe_bytes_ = 0;
  LayerLimit limit_ = LayerLimit::kNone;
};

}  // namespace

Result<AttentionBench> BenchAttention(Executor& executor, const AttentionBenchOptions& options,
                                      const ProgressFn& progress) {
  return Bench(executor, options).Run(progress);
}

}  // namespace croquis::eval
