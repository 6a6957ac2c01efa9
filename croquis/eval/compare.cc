#include "croquis/eval/compare.h"

#include <algorithm>
#include <chrono>
#include <memory>

#include "croquis/eval/compare_internal.h"
#include "croquis/eval/text.h"

namespace croquis::eval {
namespace {

using kvcache::KvCache;

Result<std::unique_ptr<KvCache>> MakeCache(const model::Model& model, const CompareOptions& o,
                                           const kvcache::KvPolicy& policy) {
  kvcache::CacheConfig config = model.CacheTemplate();
  config.capacity = o.ctx;
  config.sinks = o.sinks;
  config.ring = o.ring;
  config.policy = policy;
  config.seed = o.seed;
  return KvCache::Make(config);
}

// One cache during a pass over the windows.
struct Lane {
  const kvcache::KvPolicy* policy = nullptr;
  CacheScore* score = nullptr;
  std::unique_ptr<KvCache> cache;
  DivergenceCollector collector;
};

class Pass {
 public:
  Pass(Executor& executor, model::Model& model, const CompareOptions& options, int64_t step)
      : executor_(executor),
        model_(model),
        options_(options),
        step_(step),
        reference_logits_(step, model.config().vocab),
        test_logits_(step, model.config().vocab) {}

  // tokens: the window; next: the token after it or -1. lanes[0] is the reference.
  Status Window(std::span<const int32_t> tokens, int32_t next, std::vector<Lane>& lanes) {
    for (Lane& lane : lanes) {
      CROQUIS_TRY(lane.cache, MakeCache(model_, options_, *lane.policy));
    }
    for (int64_t at = 0; at < int64_t(tokens.size()); at += step_) {
      const int64_t n = std::min(step_, int64_t(tokens.size()) - at);
      std::vector<int32_t> targets;
      for (int64_t i = at + 1; i <= at + n; i++)
        targets.push_back(i < int64_t(tokens.size()) ? tokens[size_t(i)] : next);
      for (size_t l = 0; l < lanes.size(); l++) {
        const MatView<float> logits = (l == 0 ? reference_logits_ : test_logits_).View().Rows(0, n);
        const auto start = std::chrono::steady_clock::now();
        CROQUIS_CHECK_OK(model_.Forward(executor_, tokens.subspan(size_t(at), size_t(n)), *lanes[l].cache, logits, n));
        lanes[l].score->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        const int64_t skip = at == 0 ? 1 : 0;  // nothing is cached before the first position
        CompareRows(executor_, reference_logits_.View().Rows(0, n), logits, targets, std::min(skip, n),
                    lanes[l].collector);
      }
    }
    for (Lane& lane : lanes) lane.score->report = lane.cache->GetReport();
    return {};
  }

 private:
  Executor& executor_;
  model::Model& model_;
  const CompareOptions& options_;
  int64_t step_;
  Matrix<float> reference_logits_, test_logits_;
};

}  // namespace

Result<std::vector<int32_t>> WindowPrefix(const model::Model& model) {
  if (model.tokenizer() == nullptr) return std::vector<int32_t>{};
  return model.tokenizer()->Encode("", true);
}

void CompareRows(Executor& executor, MatView<const float> reference, MatView<const float> test,
                 std::span<const int32_t> targets, int64_t skip, DivergenceCollector& into) {
  std::vector<RowDivergence> rows(size_t(reference.rows));
  std::vector<ReferenceRow> scratch(size_t(executor.threads()));
  executor.ParallelFor(reference.rows, [&](int64_t r, int worker) {
    if (r < skip) return;
    ReferenceRow& ref = scratch[size_t(worker)];
    ref.Set(reference[r]);
    rows[size_t(r)] = ref.Compare(test[r], targets[size_t(r)]);
  });
  for (int64_t r = skip; r < reference.rows; r++) into.Add(rows[size_t(r)], targets[size_t(r)] >= 0);
}

Status CheckWindows(int64_t ctx, int64_t windows, int64_t prefix, int64_t text) {
  if (ctx < prefix + 2)
    return OutOfRange("a window of " + std::to_string(ctx) + " tokens is too short; wanted at least " +
                      std::to_string(prefix + 2));
  if (windows < 0) return OutOfRange("the number of windows must be 0 (all) or more, got " + std::to_string(windows));
  if (text < ctx - prefix)
    return InvalidArgument("the text has " + std::to_string(text) + " tokens, fewer than one window of " +
                           std::to_string(ctx) + "; take a longer text or a smaller --ctx");
  return {};
}

Status CheckLogits(const model::Model& model, int64_t rows) {
  const auto bytes = CheckedMul(CheckedMul(rows, model.config().vocab).value_or(-1), int64_t(2 * sizeof(float)));
  if (!bytes) return OutOfRange("logits of " + std::to_string(rows) + " tokens are too large");
  return CheckMemory(*bytes, "the logits of twice " + std::to_string(rows) + " tokens");
}

Result<CompareResult> CompareCaches(Executor& executor, model::Model& model, std::span<const int32_t> text,
                                    const CompareOptions& options, const ProgressFn& progress) {
  CROQUIS_TRY(const std::vector<int32_t> prefix, WindowPrefix(model));
  const auto body = options.ctx - int64_t(prefix.size());
  if (options.caches.empty()) return InvalidArgument("no cache to compare: name at least one, e.g. --kv eden:bits=4");
  if (options.chunk < 1)
    return OutOfRange("the chunk must have at least 1 token, got " + std::to_string(options.chunk));
  CROQUIS_CHECK_OK(CheckWindows(options.ctx, options.windows, int64_t(prefix.size()), int64_t(text.size())));
  CROQUIS_CHECK_OK(CheckLogits(model, std::min(options.chunk, options.ctx)));  // the caches check their own sizes
  const std::vector<int64_t> starts = WindowStarts(int64_t(text.size()), body, options.windows);

  CompareResult result;
  result.windows = int64_t(starts.size());
  result.windows_available = int64_t(text.size()) / body;
  result.caches.resize(options.caches.size());
  const int64_t passes = (options.chunked ? 1 : 0) + (options.decode ? 1 : 0);
  int64_t done = 0;
  for (const bool decode : {false, true}) {
    if (!(decode ? options.decode : options.chunked)) continue;
    std::vector<Lane> lanes(options.caches.size() + 1);
    lanes[0].policy = &options.reference;
    lanes[0].score = &result.reference;
    for (size_t i = 0; i < options.caches.size(); i++) {
      lanes[i + 1].policy = &options.caches[i];
      lanes[i + 1].score = &result.caches[i];
    }
    Pass pass(executor, model, options, decode ? 1 : std::min(options.chunk, options.ctx));
    for (const int64_t start : starts) {
      std::vector<int32_t> window = prefix;
      window.insert(window.end(), text.begin() + start, text.begin() + start + body);
      const int64_t after = start + body;
      CROQUIS_CHECK_OK(pass.Window(window, after < int64_t(text.size()) ? text[size_t(after)] : -1, lanes));
      if (progress && !progress(++done, passes * result.windows)) return Internal("interrupted");
    }
    for (Lane& lane : lanes) (decode ? lane.score->decode : lane.score->chunked) = lane.collector.Summary();
  }
  return result;
}

Result<DivergenceSummary> CompareContinuation(Executor& executor, model::Model& model, KvCache& reference,
                                              KvCache& test, std::span<const int32_t> tokens) {
  if (reference.length() != test.length()) {
    return InvalidArgument("the caches hold " + std::to_string(reference.length()) + " and " +
                           std::to_string(test.length()) + " tokens; wanted the same");
  }
  Matrix<float> a(1, model.config().vocab), b(1, model.config().vocab);
  DivergenceCollector collector;
  for (size_t i = 0; i < tokens.size(); i++) {
    CROQUIS_CHECK_OK(model.Forward(executor, tokens.subspan(i, 1), reference, a.View(), 1));
    CROQUIS_CHECK_OK(model.Forward(executor, tokens.subspan(i, 1), test, b.View(), 1));
    const int32_t target = i + 1 < tokens.size() ? tokens[i + 1] : -1;
    CompareRows(executor, a.View(), b.View(), std::span(&target, 1), 0, collector);
  }
  return collector.Summary();
}

}  // namespace croquis::eval
