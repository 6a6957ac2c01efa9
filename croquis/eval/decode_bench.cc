#include "croquis/eval/decode_bench.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "croquis/eval/metrics.h"

namespace croquis::eval {
namespace {

struct Lane {
  std::string kv;
  std::unique_ptr<kvcache::KvCache> cache;
  double prompt_seconds = 0;
};

double Milliseconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Result<std::vector<std::vector<double>>> TimeSteps(Executor& executor, model::Model& model,
                                                   std::span<kvcache::KvCache* const> caches,
                                                   std::span<const int32_t> tokens, const ProgressFn& progress) {
  std::vector<std::vector<double>> ms(caches.size());
  Matrix<float> logits(1, model.config().vocab);
  for (size_t i = 0; i < tokens.size(); i++) {
    for (size_t c = 0; c < caches.size(); c++) {
      const auto start = std::chrono::steady_clock::now();
      CROQUIS_CHECK_OK(model.Forward(executor, tokens.subspan(i, 1), *caches[c], logits.View(), 1));
      ms[c].push_back(Milliseconds(start));
    }
    if (progress && !progress(int64_t(i) + 1, int64_t(tokens.size()))) return Internal("interrupted");
  }
  return ms;
}

Result<std::vector<DecodeRow>> BenchDecode(Executor& executor, model::Model& model, std::span<const int32_t> tokens,
                                           const DecodeBenchOptions& o, const ProgressFn& progress) {
  if (o.n < 1 || o.steps < 1 || o.chunk < 1) return OutOfRange("context, steps and chunk must be at least 1");
  if (tokens.empty()) return InvalidArgument("no tokens to fill the context with");
  CROQUIS_TRY(const kvcache::KvPolicy f16, kvcache::ParseKvPolicy("f16"));
  std::vector<kvcache::KvPolicy> policies = {f16};
  for (const kvcache::KvPolicy& p : o.caches) {
    if (p.text != "f16") policies.push_back(p);
  }
  std::vector<int32_t> context;
  while (int64_t(context.size()) < o.n + o.steps) context.push_back(tokens[context.size() % tokens.size()]);

  std::vector<Lane> lanes;
  const int64_t chunk = std::min(o.chunk, o.n), chunks = (o.n + chunk - 1) / chunk;
  const int64_t total = chunks * int64_t(policies.size()) + o.steps;
  int64_t done = 0;
  for (const kvcache::KvPolicy& policy : policies) {
    kvcache::CacheConfig config = model.CacheTemplate();
    config.capacity = o.n + o.steps;
    config.sinks = o.sinks;
    config.ring = o.ring;
    config.policy = policy;
    config.seed = o.seed;
    Lane lane;
    lane.kv = policy.text;
    CROQUIS_TRY(lane.cache, kvcache::KvCache::Make(config));
    for (int64_t at = 0; at < o.n; at += chunk) {
      const int64_t n = std::min(chunk, o.n - at);
      const auto start = std::chrono::steady_clock::now();
      CROQUIS_CHECK_OK(
          model.Forward(executor, std::span(context).subspan(size_t(at), size_t(n)), *lane.cache, {}, chunk));
      lane.prompt_seconds += Milliseconds(start) / 1e3;
      if (progress && !progress(++done, total)) return Internal("interrupted");
    }
    lanes.push_back(std::move(lane));
  }
  std::vector<kvcache::KvCache*> caches;
  caches.reserve(lanes.size());
  for (const Lane& lane : lanes) caches.push_back(lane.cache.get());
  const auto step = [&](int64_t, int64_t) { return !progress || progress(++done, total); };
  CROQUIS_TRY(const auto times, TimeSteps(executor, model, caches, std::span(context).subspan(size_t(o.n)), step));
  std::vector<DecodeRow> rows;
  for (size_t i = 0; i < lanes.size(); i++) {
    const Lane& lane = lanes[i];
    DecodeRow row;
    row.kv = lane.kv;
    row.prompt_tokens_per_s = double(o.n) / lane.prompt_seconds;
    std::vector<double> ms = times[i], ratio;
    for (size_t j = 0; j < ms.size(); j++) ratio.push_back(times[0][j] / times[i][j]);
    row.ratio_to_f16 = Median(ratio);
    row.ms = Median(ms);
    row.ms_best = *std::min_element(ms.begin(), ms.end());
    row.report = lane.cache->GetReport();
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace croquis::eval
