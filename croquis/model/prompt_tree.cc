#include "croquis/model/prompt_tree.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "croquis/base/memory.h"

namespace croquis::model {
namespace {

using kvcache::KvCache;
using Prompts = std::span<const std::vector<int32_t>>;

int64_t CommonLength(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

class Reader {
 public:
  Reader(Executor& executor, Model& model, Prompts prompts, const PromptTree& tree, int64_t chunk,
         const std::function<bool(int64_t)>& progress)
      : executor_(executor), model_(model), prompts_(prompts), tree_(tree), chunk_(chunk), progress_(progress) {
    out_.caches.resize(prompts.size());
    out_.logits = Matrix<float>(int64_t(prompts.size()), model.config().vocab);
  }

  // Prompts order[lo, hi) begin with the `read` tokens that `cache` holds.
  Status Visit(int64_t lo, int64_t hi, int64_t read, std::unique_ptr<KvCache> cache) {
    // In lexicographic order all of them share what the first and the last do.
    const int64_t common = CommonLength(Prompt(lo), Prompt(hi - 1));
    const bool ends = int64_t(Prompt(lo).size()) == common;
    const auto tokens = std::span(Prompt(lo)).subspan(size_t(read), size_t(common - read));
    MatView<float> logits = out_.logits.View().Rows(Number(lo), ends ? 1 : 0);
    CROQUIS_CHECK_OK(model_.Forward(executor_, tokens, *cache, logits, chunk_, &Reader::OnChunk, this));
    done_ += int64_t(tokens.size());
    for (int64_t begin = lo; begin < hi;) {
      int64_t end = begin + 1;
      const bool leaf = int64_t(Prompt(begin).size()) == common;
      while (!leaf && end < hi && Prompt(end)[size_t(common)] == Prompt(begin)[size_t(common)]) ++end;
      // The last round takes the cache itself. NOLINTNEXTLINE(bugprone-use-after-move): there is no round after it.
      auto own = end < hi ? cache->Branch() : std::move(cache);
      if (leaf) {
        if (begin > lo) std::copy_n(out_.logits.Row(Number(lo)), out_.logits.cols(), out_.logits.Row(Number(begin)));
        out_.caches[size_t(Number(begin))] = std::move(own);
      } else {
        CROQUIS_CHECK_OK(Visit(begin, end, common, std::move(own)));
      }
      begin = end;
    }
    return {};
  }

  PromptCaches Take() { return std::move(out_); }

 private:
  int64_t Number(int64_t at) const { return tree_.order()[size_t(at)]; }
  const std::vector<int32_t>& Prompt(int64_t at) const { return prompts_[size_t(Number(at))]; }

  static bool OnChunk(void* context, int64_t done, int64_t /*total*/) {
    const auto& self = *static_cast<Reader*>(context);
    return !self.progress_ || self.progress_(self.done_ + done);
  }

  Executor& executor_;
  Model& model_;
  const Prompts prompts_;
  const PromptTree& tree_;
  const int64_t chunk_;
  const std::function<bool(int64_t)>& progress_;
  int64_t done_ = 0;
  PromptCaches out_;
};

// All sequences at their longest, shared beginnings counted once.
Status CheckRoom(Prompts prompts, const PromptTree& tree, const kvcache::CacheConfig& config, int64_t more) {
  CROQUIS_TRY(const int64_t empty, KvCache::BytesFor(config, 0));
  int64_t bytes = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const int64_t length = int64_t(prompts[i].size()) + more;
    if (length > config.capacity)
      return OutOfRange("prompt " + std::to_string(i + 1) + " has " + std::to_string(prompts[i].size()) +
                        " tokens; with " + std::to_string(more) + " more they do not fit a cache of " +
                        std::to_string(config.capacity));
    CROQUIS_TRY(const int64_t whole, KvCache::BytesFor(config, length));
    CROQUIS_TRY(const int64_t shared, KvCache::BytesFor(config, tree.Shared(int64_t(i))));
    bytes += whole - (shared - empty);
  }
  return CheckMemory(bytes, "the caches of " + std::to_string(prompts.size()) + " sequences");
}

}  // namespace

PromptTree::PromptTree(std::span<const std::vector<int32_t>> prompts)
    : order_(prompts.size()), shared_(prompts.size()) {
  std::iota(order_.begin(), order_.end(), int64_t{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int64_t a, int64_t b) { return prompts[size_t(a)] < prompts[size_t(b)]; });
  for (size_t i = 0; i < order_.size(); ++i) {
    const auto& prompt = prompts[size_t(order_[i])];
    if (i > 0) shared_[size_t(order_[i])] = CommonLength(prompts[size_t(order_[i - 1])], prompt);
    given_ += int64_t(prompt.size());
    computed_ += int64_t(prompt.size()) - shared_[size_t(order_[i])];
  }
}

Result<PromptCaches> ReadPrompts(Executor& executor, Model& model, Prompts prompts, const PromptTree& tree,
                                 const kvcache::CacheConfig& config, int64_t more, int64_t chunk,
                                 const std::function<bool(int64_t done)>& progress) {
  if (prompts.empty()) return PromptCaches();
  for (size_t i = 0; i < prompts.size(); ++i)
    if (prompts[i].empty()) return InvalidArgument("prompt " + std::to_string(i + 1) + " is empty");
  CROQUIS_CHECK_OK(CheckRoom(prompts, tree, config, more));
  CROQUIS_TRY(auto cache, KvCache::Make(config));
  Reader reader(executor, model, prompts, tree, chunk, progress);
  CROQUIS_CHECK_OK(reader.Visit(0, int64_t(prompts.size()), 0, std::move(cache)));
  return reader.Take();
}

}  // namespace croquis::model
