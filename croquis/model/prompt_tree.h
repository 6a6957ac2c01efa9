// Prompts that share beginnings: each common beginning is read once, then branched.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"

namespace croquis::model {

// The tree of common beginnings of several token sequences, none of them empty.
class PromptTree {
 public:
  // The sequences must outlive it.
  explicit PromptTree(std::span<const std::vector<int32_t>> prompts);

  int64_t given() const { return given_; }        // tokens of all prompts together
  int64_t computed() const { return computed_; }  // tokens of the tree: what is read
  // Tokens that prompt i has in common with one that the order below puts before it.
  int64_t Shared(int64_t i) const { return shared_[size_t(i)]; }
  // The prompts in lexicographic order: those with a common beginning are neighbours.
  std::span<const int64_t> order() const { return order_; }

 private:
  std::vector<int64_t> order_, shared_;
  int64_t given_ = 0, computed_ = 0;
};

struct PromptCaches {
  std::vector<std::unique_ptr<kvcache::KvCache>> caches;  // one a prompt, in the order of the prompts
  Matrix<float> logits;                                   // [prompts, vocab], after each prompt's last token
};

// Reads every node of the tree once, into caches of `config` that share the pages of common beginnings. A token is
// read in chunks of `chunk` from the node's beginning on, so compressed caches hold what a prompt read alone would put
// into them only up to the different chunks (a chunk sees itself exactly). progress: called with the tokens read, of
// tree.computed(); returning false stops with an error.
// Errors: an empty prompt, those of the model and the cache, too little memory for all sequences at their longest
// (prompt and `more` tokens; config.capacity must hold them).
Result<PromptCaches> ReadPrompts(Executor& executor, Model& model, std::span<const std::vector<int32_t>> prompts,
                                 const PromptTree& tree, const kvcache::CacheConfig& config, int64_t more,
                                 int64_t chunk = 256, const std::function<bool(int64_t done)>& progress = {});

}  // namespace croquis::model
