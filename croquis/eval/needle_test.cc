// The needle test measures retrieval: a model that looks its answers up in the cache finds every fact, and the same
// model over a cache that cannot keep numbers apart finds none.
#include "croquis/eval/needle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "croquis/kvcache/layer_view.h"

namespace croquis::eval {
namespace {

// One token a byte; token 0 is BOS.
class ByteTokenizer : public model::Tokenizer {
 public:
  int64_t VocabSize() const override { return 257; }
  Result<std::vector<int32_t>> Encode(std::string_view text, bool add_special, bool) const override {
    std::vector<int32_t> ids;
    if (add_special) ids.push_back(0);
    for (char c : text) ids.push_back(int32_t(uint8_t(c)) + 1);
    return ids;
  }
  std::string Decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) text += Text(id).bytes;
    return text;
  }
  model::TokenText Text(int32_t id, bool = false) const override {
    if (id == 0) return {};
    return {model::TokenText::Kind::kText, std::string_view(bytes_).substr(size_t(id) - 1, 1)};
  }
  model::TextRule Rule() const override { return {}; }
  int32_t Bos() const override { return 0; }
  std::span<const int32_t> StopTokens() const override { return {}; }

 private:
  const std::string bytes_ = [] {
    std::string all;
    for (int b = 0; b < 256; b++) all += char(b);
    return all;
  }();
};

// Writes each token's id into its key, and continues the text as it went on after the earlier place that shares the
// longest ending with it: induction, with the cache as its only memory.
class LookupModel : public model::Model {
 public:
  LookupModel() {
    config_.name = "lookup";
    config_.vocab = 257;
    config_.layers = config_.heads = config_.kv_heads = 1;
    config_.head_dim = kDim;
    config_.max_position = 4096;
  }
  const model::ModelConfig& config() const override { return config_; }
  const model::Tokenizer* tokenizer() const override { return &tokenizer_; }
  std::string_view Compute() const override { return "lookup"; }
  int64_t WeightBytes() const override { return 0; }
  kvcache::CacheConfig CacheTemplate() const override {
    kvcache::CacheConfig c;
    c.layers = c.kv_heads = 1;
    c.head_dim = kDim;
    return c;
  }
  Status Forward(Executor&, std::span<const int32_t> tokens, kvcache::KvCache& cache, MatView<float> logits,
                 int64_t chunk, Progress, void*) override {
    for (size_t at = 0; at < tokens.size(); at += size_t(chunk)) {
      const auto n = int64_t(std::min(size_t(chunk), tokens.size() - at));
      Matrix<float> k(n, kDim), v(n, kDim);
      for (int64_t i = 0; i < n; i++) k.Row(i)[0] = float(tokens[at + size_t(i)]);
      for (int64_t i = 0; i < n; i++)
        std::fill_n(k.Row(i) + 1, kDim - 1, 100.f);  // hides a small number in a long vector
      CROQUIS_CHECK_OK(cache.Append(0, k.View(), v.View()));
      cache.Commit(n);
    }
    if (logits.rows == 0) return {};
    std::fill_n(logits.Row(logits.rows - 1), config_.vocab, 0.f);
    logits.Row(logits.rows - 1)[Next(cache)] = 10;
    return {};
  }
  Status Prefill(Executor&, std::span<const int32_t>, kvcache::KvCache&, attention::Prefill&, MatView<float>, int64_t,
                 Progress, void*) override {
    return Unsupported("this model has no attention");
  }
  int64_t PrefillBytes(int64_t, int64_t) const override { return 0; }
  Result<std::unique_ptr<attention::Prefill>> MakePrefill(const attention::PrefillPolicy&, uint64_t) const override {
    return Unsupported("this model has no attention");
  }
  Status ForwardBatch(Executor& executor, std::span<const int32_t> tokens, std::span<kvcache::KvCache* const> caches,
                      MatView<float> logits) override {
    for (size_t b = 0; b < tokens.size(); b++)
      CROQUIS_CHECK_OK(
          Forward(executor, tokens.subspan(b, 1), *caches[b], logits.Rows(int64_t(b), 1), 1, nullptr, nullptr));
    return {};
  }

 private:
  static constexpr int64_t kDim = 32;

  int32_t Next(const kvcache::KvCache& cache) const {
    std::vector<int32_t> seen(size_t(cache.length()));
    ForEachStoredKey(cache, seen);
    size_t best = 0, best_length = 0;
    for (size_t end = 1; end < seen.size(); end++) {  // tokens before `end` as an ending
      size_t same = 0;
      while (same < end && seen[end - 1 - same] == seen[seen.size() - 1 - same]) same++;
      if (same >= best_length) {
        best = end;
        best_length = same;
      }
    }
    return std::clamp(seen.empty() ? 0 : seen[best], 0, 256);
  }

  static void ForEachStoredKey(const kvcache::KvCache& cache, std::vector<int32_t>& seen) {
    const kvcache::HeadView view = kvcache::ViewHead(cache, 0, 0);
    Matrix<float> row(1, kDim);
    for (int64_t p = 0; p < view.length; p++) {
      if (p < view.sinks) {
        kvcache::WidenRow(view.type, view.sink_k + p * view.row_bytes, kDim, row.data());
      } else if (p < view.sinks + view.encoded) {
        const int64_t at = p - view.sinks;
        view.key->Decode(view.KeyPage(at / codecs::kPageTokens), at % codecs::kPageTokens, row.View());
      } else {
        kvcache::WidenRow(view.type, view.ring_k + (p - view.sinks) % view.slots * view.row_bytes, kDim, row.data());
      }
      seen[size_t(p)] = int32_t(std::lround(row.data()[0]));
    }
  }

  model::ModelConfig config_;
  ByteTokenizer tokenizer_;
};

std::string Haystack() {
  std::string text;
  for (int i = 0; i < 200; i++) text += "The house stood by the water and nobody came. ";
  return text;
}

TEST(Needle, PromptsHoldTheFactAtItsDepth) {
  const ByteTokenizer tokenizer;
  for (const int64_t length : {256, 700, 2000}) {
    size_t before = 0;
    for (const double depth : {0.0, 0.5, 1.0}) {
      const auto prompt = MakeNeedle(tokenizer, Haystack(), depth, length, 3, 0);
      ASSERT_TRUE(prompt) << prompt.error().message;
      EXPECT_LE(int64_t(prompt->tokens.size() + prompt->answer.size()), length);
      EXPECT_GE(int64_t(prompt->tokens.size() + prompt->answer.size()), length - 48);
      const std::string text = tokenizer.Decode(prompt->tokens);
      const size_t at = text.find(" is " + prompt->digits + ".");
      ASSERT_NE(at, std::string::npos);
      EXPECT_GE(at, before);
      before = at;
      EXPECT_EQ(tokenizer.Decode(prompt->answer), " " + prompt->digits + ".");
      EXPECT_TRUE(text.ends_with(" is"));
    }
    EXPECT_GT(before, size_t(length) / 4);  // depth 1 stands near the end
  }
  const auto a = MakeNeedle(tokenizer, Haystack(), 0, 256, 3, 0), b = MakeNeedle(tokenizer, Haystack(), 0, 256, 3, 1);
  EXPECT_NE(a->digits, b->digits);  // another trial, another fact
  EXPECT_EQ(MakeNeedle(tokenizer, Haystack(), 0, 60, 3, 0).error().code, Code::kOutOfRange);
  EXPECT_EQ(MakeNeedle(tokenizer, "", 0, 256, 3, 0).error().code, Code::kInvalidArgument);
  EXPECT_EQ(MakeNeedle(tokenizer, Haystack(), 1.5, 256, 3, 0).error().code, Code::kOutOfRange);
}

TEST(Needle, FindsWhatTheCacheKeepsAndNothingElse) {
  LookupModel model;
  Executor executor(2);
  NeedleOptions o;
  o.caches = {*kvcache::ParseKvPolicy("f16"), *kvcache::ParseKvPolicy("eden:bits=2")};
  o.lengths = {300, 900};
  o.depths = {0, 1};
  o.sinks = 0;
  o.ring = 16;
  const auto cells = RunNeedles(executor, model, Haystack(), o);
  ASSERT_TRUE(cells) << cells.error().message;
  ASSERT_EQ(cells->size(), 8u);
  for (const NeedleCell& c : *cells) {
    EXPECT_EQ(c.trials, 2);
    if (c.cache == 0) {
      EXPECT_EQ(c.accuracy, 1) << c.length << " " << c.depth;
      EXPECT_EQ(c.token_accuracy, 1);
      EXPECT_GT(c.log_prob, -1);  // 7 tokens of p = e^10 / (e^10 + 256): 7 * ln(.9885) = -.081
    } else {
      EXPECT_EQ(c.accuracy, 0) << c.length << " " << c.depth;
      EXPECT_LT(c.log_prob, -10);
    }
  }
}

TEST(Needle, FirstDigits) {
  EXPECT_EQ(FirstDigits(" 48213. And"), "48213");
  EXPECT_EQ(FirstDigits("none"), "");
  EXPECT_EQ(FirstDigits("12"), "12");
}

}  // namespace
}  // namespace croquis::eval
