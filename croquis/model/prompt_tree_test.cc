#include "croquis/model/prompt_tree.h"

#include <gtest/gtest.h>

#include <cmath>

#include "croquis/base/rng.h"
#include "croquis/model/sampler.h"

namespace croquis::model {
namespace {

using kvcache::KvCache;
using Prompts = std::vector<std::vector<int32_t>>;

std::unique_ptr<Model> Bundled(Executor& executor) {
  LoadOptions options;
  options.dtype = LoadOptions::Dtype::kF32;
  auto model = Model::Load(CROQUIS_SOURCE_DIR "/models/croquis-4m", executor, options);
  EXPECT_TRUE(model) << model.error().message;
  return model ? *std::move(model) : nullptr;
}

// `tokens` random ids behind `begin`.
std::vector<int32_t> Prompt(std::vector<int32_t> begin, int64_t tokens, uint64_t seed) {
  const Stream random{seed, Purpose("prompt_tree.test")};
  for (int64_t i = 0; i < tokens; ++i) begin.push_back(int32_t(3 + random.U32(uint64_t(i)) % 2000));
  return begin;
}

// Two levels of common beginnings, a prompt that is the beginning of others, one that comes twice, one apart.
Prompts SomePrompts() {
  const auto root = Prompt({}, 300, 1), left = Prompt(root, 260, 2), right = Prompt(root, 40, 3);
  return {Prompt(left, 30, 4), Prompt(right, 5, 5), left, Prompt(left, 1, 6), Prompt({}, 20, 7), Prompt(right, 5, 5)};
}

kvcache::CacheConfig Config(const Model& model, const char* kv) {
  auto config = model.CacheTemplate();
  config.capacity = 700, config.ring = 32;
  config.policy = *kvcache::ParseKvPolicy(kv);
  return config;
}

TEST(PromptTree, CountsWhatIsReadOnce) {
  const Prompts prompts = SomePrompts();
  const PromptTree tree(prompts);
  EXPECT_EQ(tree.given(), 590 + 345 + 560 + 561 + 20 + 345);
  EXPECT_EQ(tree.computed(), 300 + 260 + 30 + 1 + 40 + 5 + 20);
  EXPECT_EQ(tree.Shared(4), 0);
}

TEST(PromptTree, ReadsWhatEachPromptReadAloneGives) {
  Executor executor(2);
  const auto model = Bundled(executor);
  ASSERT_NE(model, nullptr);
  const Prompts prompts = SomePrompts();
  const PromptTree tree(prompts);
  const auto config = Config(*model, "f32");
  int64_t last = 0;
  auto read = ReadPrompts(executor, *model, prompts, tree, config, 8, 64, [&](int64_t done) {
    EXPECT_GT(done, last);
    last = done;
    return true;
  });
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(last, tree.computed());
  std::vector<KvCache*> caches;
  for (const auto& cache : read->caches) caches.push_back(cache.get());
  EXPECT_LT(kvcache::BytesTogether(caches), 6 * kvcache::BytesTogether({caches.data(), 1}));

  // Greedy decoding together and alone: the same tokens as long as no two logits are closer than the order of sums
  // can turn; the logits themselves are compared at every step, along the batch's own choices.
  const Sampler greedy = *Sampler::Make({});
  std::vector<std::unique_ptr<KvCache>> alone;
  Matrix<float> expected(int64_t(prompts.size()), model->config().vocab), together = std::move(read->logits);
  for (size_t i = 0; i < prompts.size(); ++i) {
    alone.push_back(*KvCache::Make(config));
    ASSERT_TRUE(model->Forward(executor, prompts[i], *alone[i], expected.View().Rows(int64_t(i), 1), 64));
  }
  for (int64_t step = 0; step < 8; ++step) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < together.rows(); ++i) {
      double worst = 0, largest = 0;
      for (int64_t j = 0; j < together.cols(); ++j) {
        worst = std::max(worst, std::fabs(double(together.Row(i)[j]) - double(expected.Row(i)[j])));
        largest = std::max(largest, std::fabs(double(expected.Row(i)[j])));
      }
      EXPECT_LT(worst, 1e-4 * largest) << "prompt " << i << " step " << step;
      ids.push_back(greedy.Sample(together.View()[i], {}, step));
      EXPECT_EQ(ids.back(), greedy.Sample(expected.View()[i], {}, step)) << "prompt " << i << " step " << step;
    }
    ASSERT_TRUE(model->ForwardBatch(executor, ids, caches, together.View()));
    for (size_t i = 0; i < alone.size(); ++i)
      ASSERT_TRUE(
          model->Forward(executor, std::span(ids).subspan(i, 1), *alone[i], expected.View().Rows(int64_t(i), 1)));
  }
}

TEST(PromptTree, ErrorsLeaveCachesAsTheyWere) {
  Executor executor(2);
  const auto model = Bundled(executor);
  ASSERT_NE(model, nullptr);
  const auto config = Config(*model, "eden:bits=4");
  const Prompts empty = {{1, 2}, {}};
  EXPECT_FALSE(ReadPrompts(executor, *model, empty, PromptTree(empty), config, 1));
  const Prompts long_one = {std::vector<int32_t>(700, 5)};
  const auto too_long = ReadPrompts(executor, *model, long_one, PromptTree(long_one), config, 1);
  ASSERT_FALSE(too_long);
  EXPECT_NE(too_long.error().message.find("prompt 1"), std::string::npos);

  const Prompts two = {{1, 2, 3}, {1, 2, 4}};
  const auto read = ReadPrompts(executor, *model, two, PromptTree(two), config, 5);
  ASSERT_TRUE(read);
  const std::vector<KvCache*> caches = {read->caches[0].get(), read->caches[1].get()};
  Matrix<float> logits(2, model->config().vocab);
  const int32_t bad[] = {5, 1000000}, good[] = {5, 6};
  EXPECT_FALSE(model->ForwardBatch(executor, bad, caches, logits.View()));
  EXPECT_FALSE(model->ForwardBatch(executor, std::span(good).first(1), caches, logits.View()));
  const std::vector<KvCache*> twice = {caches[0], caches[0]};
  EXPECT_FALSE(model->ForwardBatch(executor, good, twice, logits.View()));
  EXPECT_EQ(caches[0]->length(), 3);
  EXPECT_TRUE(model->ForwardBatch(executor, good, caches, logits.View()));
  EXPECT_EQ(caches[0]->length(), 4);
  EXPECT_EQ(caches[1]->length(), 4);
}

}  // namespace
}  // namespace croquis::model
