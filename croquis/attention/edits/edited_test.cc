// Edited caches against plain attention in double that holds keys as they are before RoPE, in the order of the text.
#include "croquis/attention/edits/edited.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "croquis/attention/hydragen/attend_batch.h"
#include "croquis/attention/test_reference.h"

namespace croquis::attention {
namespace {

using kvcache::KvCache;
using testing::Shape;

// Rotates the heads of a row by `angle positions`.
void Turn(const kvcache::CacheConfig& c, int64_t positions, int64_t heads, float* x) {
  const auto pairs = int64_t(c.rope.inv_freq.size());
  for (int64_t h = 0; h < heads; ++h, x += c.head_dim)
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t a = c.rope.interleaved ? 2 * i : i, b = c.rope.interleaved ? 2 * i + 1 : i + pairs;
      const double angle = c.rope.inv_freq[size_t(i)] * double(positions), re = double(x[a]), im = double(x[b]);
      x[a] = float(re * std::cos(angle) - im * std::sin(angle));
      x[b] = float(re * std::sin(angle) + im * std::cos(angle));
    }
}

// A text under edits: the cache, and beside it the keys and values of the tokens that stand, in order, un-rotated.
class Text {
 public:
  Text(const Shape& shape, const kvcache::CacheConfig& config, float common)
      : shape_(shape), common_(common), cache_(*KvCache::Make(config)) {}

  KvCache& cache() { return *cache_; }
  int64_t tokens() const { return int64_t(standing_.size()); }

  void Insert(int64_t at, int64_t n) {
    ASSERT_TRUE(cache_->InsertAt(at));
    const int64_t slot = cache_->length();
    Matrix<float> k = Numbers(shape_.kv_heads), v = Numbers(shape_.kv_heads);
    Matrix<float> ks(n, k.cols()), vs(n, v.cols());
    for (int64_t t = 0; t < n; ++t) {
      k = Numbers(shape_.kv_heads), v = Numbers(shape_.kv_heads);
      for (int64_t i = 0; i < k.cols(); ++i) k.data()[i] += common_;
      standing_.insert(standing_.begin() + at + t,
                       {slot + t, {k.data(), k.data() + k.cols()}, {v.data(), v.data() + v.cols()}});
      Turn(cache_->config(), slot + t, shape_.kv_heads, k.data());
      std::copy_n(k.data(), k.cols(), ks.Row(t));
      std::copy_n(v.data(), v.cols(), vs.Row(t));
    }
    ASSERT_TRUE(cache_->Append(0, ks.View(), vs.View()));
    cache_->Commit(n);
    ASSERT_EQ(cache_->tokens(), tokens());
  }
  void Delete(int64_t begin, int64_t end) {
    ASSERT_TRUE(cache_->Delete(begin, end));
    standing_.erase(standing_.begin() + begin, standing_.begin() + end);
    ASSERT_EQ(cache_->tokens(), tokens());
  }

  // Largest error of n tokens that attend from position `at`, relative to the norm of all answers. `stored`: against
  // what the cache stands for, decoded, instead of what went in.
  double Error(Executor& executor, int64_t at, int64_t n, int64_t window, bool stored) {
    EXPECT_TRUE(cache_->InsertAt(at));
    const auto& c = cache_->config();
    const int64_t slot = cache_->length(), d = c.head_dim;
    Matrix<float> q(n, shape_.heads() * d), k(n, shape_.kv_heads * d), v(n, shape_.kv_heads * d), out(n, q.cols());
    Matrix<float> plain_q(n, q.cols()), plain_k(n, k.cols());
    for (int64_t t = 0; t < n; ++t) {
      const auto one_q = Numbers(shape_.heads()), one_k = Numbers(shape_.kv_heads), one_v = Numbers(shape_.kv_heads);
      std::copy_n(one_q.data(), q.cols(), q.Row(t));
      std::copy_n(one_q.data(), q.cols(), plain_q.Row(t));
      std::copy_n(one_k.data(), k.cols(), k.Row(t));
      std::copy_n(one_k.data(), k.cols(), plain_k.Row(t));
      std::copy_n(one_v.data(), v.cols(), v.Row(t));
      Turn(c, slot + t, shape_.heads(), q.Row(t));
      Turn(c, slot + t, shape_.kv_heads, k.Row(t));
    }
    const AttendOptions options{.scale = 1 / std::sqrt(float(d)), .window = window};
    const Status s = AttendAndAppend(executor, *cache_, options, q.View(), k.View(), v.View(), out.View());
    EXPECT_TRUE(s) << s.error().message;
    cache_->Rollback();
    EXPECT_TRUE(cache_->InsertAt(tokens()));
    double diff = 0, norm = 1e-30;
    for (int64_t h = 0; h < shape_.kv_heads; ++h) {
      std::vector<std::vector<double>> keys, values;
      const auto decoded = testing::DecodeHead(*cache_, 0, h);
      for (int64_t p = 0; p < at + n; ++p) {
        const Item* item = p < at ? &standing_[size_t(p)] : nullptr;
        const float* from = item ? item->k.data() + h * d : plain_k.Row(p - at) + h * d;
        std::vector<float> key(from, from + d);
        const float* value = item ? item->v.data() + h * d : v.Row(p - at) + h * d;
        if (item && stored) {
          key.assign(decoded.k.Row(item->slot), decoded.k.Row(item->slot) + d);
          Turn(c, -item->slot, 1, key.data());
          value = decoded.v.Row(item->slot);
        }
        Turn(c, p, 1, key.data());
        keys.emplace_back(key.begin(), key.end());
        values.emplace_back(value, value + d);
      }
      for (int64_t t = 0; t < n; ++t)
        for (int64_t g = 0; g < shape_.group; ++g) {
          std::vector<float> query(plain_q.Row(t) + (h * shape_.group + g) * d,
                                   plain_q.Row(t) + (h * shape_.group + g + 1) * d);
          Turn(c, at + t, 1, query.data());
          std::vector<double> answer(static_cast<size_t>(d));
          double mass = 0;
          for (int64_t p = window > 0 ? std::max<int64_t>(0, at + t - window + 1) : 0; p <= at + t; ++p) {
            double dot = 0;
            for (int64_t i = 0; i < d; ++i) dot += double(query[size_t(i)]) * keys[size_t(p)][size_t(i)];
            const double w = std::exp(dot * double(options.scale));
            mass += w;
            for (int64_t i = 0; i < d; ++i) answer[size_t(i)] += w * values[size_t(p)][size_t(i)];
          }
          const float* got = out.Row(t) + (h * shape_.group + g) * d;
          for (int64_t i = 0; i < d; ++i) {
            const double want = answer[size_t(i)] / mass;
            diff += (double(got[i]) - want) * (double(got[i]) - want), norm += want * want;
          }
        }
    }
    return std::sqrt(diff / norm);
  }

 private:
  struct Item {
    int64_t slot;
    std::vector<float> k, v;
  };
  Matrix<float> Numbers(int64_t heads) { return testing::Rows(40 + ++draws_, 0, 1, heads * shape_.head_dim); }

  Shape shape_;
  float common_;
  std::unique_ptr<KvCache> cache_;
  std::vector<Item> standing_;
  uint64_t draws_ = 0;
};

kvcache::CacheConfig MakeConfig(const Shape& shape, const std::string& kv, bool interleaved = false) {
  auto config = testing::Config(shape, kv);
  config.ring = 32;
  config.rope.interleaved = interleaved;
  return config;
}

// Inserts, deletes and appends at random; attention is checked from the end, and from the middle as an insert sees it.
void Fuzz(const std::string& kv, int64_t group, bool interleaved, float common, bool stored, double tolerance) {
  const Shape shape{.kv_heads = 2, .group = group, .head_dim = 64};
  Executor executor(2);
  Text text(shape, MakeConfig(shape, kv, interleaved), common);
  const Stream random{uint64_t(group), Purpose("edited.test")};
  uint64_t draw = 0;
  const auto below = [&](int64_t n) { return int64_t(random.U32(draw++) % uint64_t(n)); };
  text.Insert(0, 400);
  for (int round = 0; round < 14; ++round) {
    const int64_t n = text.tokens(), at = below(n + 1);
    switch (below(3)) {
      case 0:
        text.Insert(at, 1 + below(150));
        break;
      case 1:
        text.Delete(at, std::min(n, at + below(120)));
        break;
      default:
        text.Insert(n, 1 + below(40));
    }
    if (::testing::Test::HasFatalFailure()) return;
    const int64_t window = round % 3 == 2 ? 150 : 0, from = round % 2 == 0 ? text.tokens() : below(text.tokens() + 1);
    const double error = text.Error(executor, from, 1 + below(4), window, stored);
    EXPECT_LT(error, tolerance) << kv << " round " << round << " from " << from << " of " << text.tokens() << " window "
                                << window;
  }
}

TEST(Edited, F32IsExact) {
  for (const int64_t group : {1, 3, 8}) Fuzz("f32", group, group == 3, 0, false, 1e-5);
}

TEST(Edited, CodesAreReadAsTheyAre) {
  Fuzz("eden:bits=4", 2, false, 0, true, 4e-4);
  Fuzz("k=int8,v=eden:bits=3,precision=fine", 4, true, 0, true, 4e-4);
}

TEST(Edited, WhatCentringRemovedTurnsToo) { Fuzz("eden:bits=4,center=rope", 2, false, 3.f, true, 4e-4); }

// Deleting a beginning moves everything; an insert at the front does, too, and the sinks with it.
TEST(Edited, TheFrontMoves) {
  const Shape shape{.kv_heads = 1, .group = 2, .head_dim = 64};
  Executor executor;
  Text text(shape, MakeConfig(shape, "f32"), 0);
  text.Insert(0, 500);
  text.Delete(0, 130);
  EXPECT_LT(text.Error(executor, text.tokens(), 3, 0, false), 1e-5);
  text.Insert(0, 10);
  EXPECT_LT(text.Error(executor, text.tokens(), 70, 0, false), 1e-5);
  text.Delete(0, text.tokens());
  EXPECT_EQ(text.cache().tokens(), 0);
  EXPECT_LT(text.Error(executor, 0, 5, 0, false), 1e-5);
  text.Insert(0, 20);
  EXPECT_LT(text.Error(executor, 20, 1, 0, false), 1e-5);
}

TEST(Edited, SnapshotsBranchesAndBatchesKeepTheEdits) {
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  const auto config = MakeConfig(shape, "eden:bits=4");
  Executor executor(2);
  Text text(shape, config, 0);
  text.Insert(0, 400);
  text.Delete(50, 90);
  text.Insert(200, 17);
  KvCache& cache = text.cache();
  const std::string path = ::testing::TempDir() + "/croquis_edited_snapshot.bin";
  ASSERT_TRUE(cache.Save(path));
  auto loaded = KvCache::Load(path, config);
  ASSERT_TRUE(loaded) << loaded.error().message;
  std::filesystem::remove(path);
  EXPECT_EQ((*loaded)->tokens(), 377);
  EXPECT_EQ((*loaded)->length(), 417);
  const auto branch = cache.Branch();
  const testing::Sequence sequence{shape, {}};
  const AttendOptions options{.scale = .125f};
  const auto expected = testing::Attend(executor, cache, sequence, 2, options);
  for (KvCache* other : {loaded->get(), branch.get()}) {
    const auto got = testing::Attend(executor, *other, sequence, 2, options);
    EXPECT_EQ(std::memcmp(got.data(), expected.data(), size_t(2 * got.cols()) * 4), 0);
  }
  const auto q = sequence.Q(417, 1), k = sequence.K(config, 417, 1), v = sequence.V(417, 1);
  Matrix<float> one(1, q.cols()), q2(2, q.cols()), k2(2, k.cols()), v2(2, v.cols()), two(2, q.cols());
  for (int64_t b = 0; b < 2; ++b) {
    std::copy_n(q.data(), q.cols(), q2.Row(b));
    std::copy_n(k.data(), k.cols(), k2.Row(b));
    std::copy_n(v.data(), v.cols(), v2.Row(b));
  }
  ASSERT_TRUE(AttendAndAppend(executor, cache, options, q.View(), k.View(), v.View(), one.View()));
  cache.Rollback();
  KvCache* const both[] = {&cache, branch.get()};
  ASSERT_TRUE(AttendBatch(executor, both, options, q2.View(), k2.View(), v2.View(), two.View()));
  for (int64_t b = 0; b < 2; ++b) EXPECT_EQ(std::memcmp(two.Row(b), one.data(), size_t(one.cols()) * 4), 0);
}

TEST(Edited, ThreadsChangeNothing) {
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  Text text(shape, MakeConfig(shape, "f16"), 0);
  text.Insert(0, 600);
  text.Delete(100, 300);
  text.Insert(50, 40);
  Matrix<float> first;
  for (const int threads : {1, 2, 5}) {
    Executor executor(threads);
    auto out = testing::Attend(executor, text.cache(), {shape, {}}, 90, {.scale = .125f});
    if (threads == 1)
      first = std::move(out);
    else
      EXPECT_EQ(std::memcmp(out.data(), first.data(), size_t(out.rows() * out.cols()) * 4), 0);
  }
}

TEST(Edited, ErrorsAndTruncation) {
  const Shape shape{.kv_heads = 1, .group = 1, .head_dim = 64};
  Text text(shape, MakeConfig(shape, "f32"), 0);
  text.Insert(0, 300);
  KvCache& cache = text.cache();
  EXPECT_FALSE(cache.Delete(-1, 2));
  EXPECT_FALSE(cache.Delete(5, 4));
  EXPECT_FALSE(cache.Delete(5, 301));
  EXPECT_FALSE(cache.InsertAt(301));
  EXPECT_TRUE(cache.InsertAt(300));
  EXPECT_FALSE(cache.edited());
  const auto k = testing::Rows(1, 0, 1, 64);
  ASSERT_TRUE(cache.Append(0, k.View(), k.View()));
  EXPECT_FALSE(cache.Delete(0, 1));  // pending
  EXPECT_FALSE(cache.InsertAt(0));
  cache.Rollback();
  text.Delete(250, 300);  // the end: room is given back
  EXPECT_EQ(cache.length(), 250);
  EXPECT_FALSE(cache.edited());
  text.Delete(10, 20);
  EXPECT_TRUE(cache.edited());
  EXPECT_EQ(cache.length(), 250);
  ASSERT_TRUE(cache.Truncate(200));
  EXPECT_EQ(cache.tokens(), 200);
  EXPECT_FALSE(cache.Truncate(201));  // 200 stand, though more slots are in use
}

}  // namespace
}  // namespace croquis::attention
