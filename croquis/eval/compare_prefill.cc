#include "croquis/eval/compare_prefill.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "croquis/eval/compare_internal.h"
#include "croquis/eval/text.h"

namespace croquis::eval {
namespace {

// One method over all windows.
struct Lane {
  std::unique_ptr<attention::Prefill> method;
  PrefillScore* score = nullptr;
  DivergenceCollector collector;
};

// Reads a window; the cache, in 16 bits, is written and not read.
Status Read(Executor& executor, model::Model& model, std::span<const int32_t> tokens, Lane& lane,
            MatView<float> logits) {
  kvcache::CacheConfig config = model.CacheTemplate();
  config.capacity = int64_t(tokens.size());
  CROQUIS_TRY(config.policy, kvcache::ParseKvPolicy("f16"));
  CROQUIS_TRY(const auto cache, kvcache::KvCache::Make(config));
  const auto start = std::chrono::steady_clock::now();
  CROQUIS_CHECK_OK(model.Prefill(executor, tokens, *cache, *lane.method, logits));
  lane.score->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {};
}

}  // namespace

Result<PrefillCompareResult> ComparePrefill(Executor& executor, model::Model& model, std::span<const int32_t> text,
                                            const PrefillCompareOptions& options, const ProgressFn& progress) {
  CROQUIS_TRY(const std::vector<int32_t> prefix, WindowPrefix(model));
  const auto body = options.ctx - int64_t(prefix.size());
  if (options.methods.empty()) return InvalidArgument("no prefill to compare: name at least one, e.g. --prefill auto");
  CROQUIS_CHECK_OK(CheckWindows(options.ctx, options.windows, int64_t(prefix.size()), int64_t(text.size())));
  CROQUIS_CHECK_OK(CheckLogits(model, options.ctx));
  const std::vector<int64_t> starts = WindowStarts(int64_t(text.size()), body, options.windows);

  PrefillCompareResult result;
  result.windows = int64_t(starts.size());
  result.windows_available = int64_t(text.size()) / body;
  result.methods.resize(options.methods.size());
  std::vector<Lane> lanes(options.methods.size() + 1);
  for (size_t l = 0; l < lanes.size(); ++l) {
    const attention::PrefillPolicy exact;
    CROQUIS_TRY(lanes[l].method, model.MakePrefill(l == 0 ? exact : options.methods[l - 1], options.seed));
    lanes[l].score = l == 0 ? &result.reference : &result.methods[l - 1];
  }
  Matrix<float> reference(options.ctx, model.config().vocab), test(options.ctx, model.config().vocab);
  int64_t done = 0;
  for (const int64_t start : starts) {
    std::vector<int32_t> window = prefix;
    window.insert(window.end(), text.begin() + start, text.begin() + start + body);
    std::vector<int32_t> targets(window.begin() + 1, window.end());
    targets.push_back(start + body < int64_t(text.size()) ? text[size_t(start + body)] : -1);
    for (size_t l = 0; l < lanes.size(); ++l) {
      const MatView<float> logits = (l == 0 ? reference : test).View();
      CROQUIS_CHECK_OK(Read(executor, model, window, lanes[l], logits));
      CompareRows(executor, reference.View(), logits, targets, 1, lanes[l].collector);
      if (progress && !progress(++done, result.windows * int64_t(lanes.size()))) return Internal("interrupted");
    }
  }
  for (Lane& lane : lanes) {
    lane.score->divergence = lane.collector.Summary();
    lane.score->report = lane.method->report();
  }
  return result;
}

}  // namespace croquis::eval
