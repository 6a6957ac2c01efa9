#include "croquis/attention/attention.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <limits>

#include "croquis/attention/test_reference.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using kvcache::KvCache;
using testing::Attend;
using testing::Config;
using testing::Expected;
using testing::Fill;
using testing::RelativeError;
using testing::Sequence;
using testing::Shape;

std::unique_ptr<KvCache> MakeCache(const kvcache::CacheConfig& config) {
  auto made = KvCache::Make(config);
  EXPECT_TRUE(made) << made.error().message;
  return made ? *std::move(made) : nullptr;
}

AttendOptions Options(const Shape& s, int64_t window = 0, bool causal = true) {
  return {.layer = 0, .scale = 1 / std::sqrt(float(s.head_dim)), .window = window, .causal = causal};
}

// The kernels' own error against f64 on the decoded values: f32 sums for the dense types, 2e-4 for integer kernels of
// 16-bit precision, 1.5e-2 for those of 8 bits (shared/experiments/decode measured 1e-4 and 1.5e-2 at most); keys and
// values add up, so twice that.
double Tolerance(const codecs::Codec& codec) {
  const std::string_view method = codec.Method();
  const bool fast = codec.Kernel().find(", fast") != std::string_view::npos;
  const bool dense = method.starts_with("f16") || method.starts_with("bf16") || method.starts_with("f32");
  return fast ? 3e-2 : dense ? 2e-5 : 4e-4;
}

// Bit equality of two results.
void ExpectSame(const Matrix<float>& a, const Matrix<float>& b) {
  ASSERT_EQ(a.rows(), b.rows());
  ASSERT_EQ(a.cols(), b.cols());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), size_t(a.rows() * a.cols()) * 4), 0);
}

TEST(Attention, EveryMethodMatchesTheReferenceOnDecodedValues) {
  Executor executor(2);
  for (const codecs::MethodInfo* method : codecs::Methods()) {
    Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
    const std::string name(method->name);
    if (!codecs::Make(name, shape.head_dim, codecs::Role::kKey)) shape.head_dim = 128;
    // A method may serve keys or values alone; the other side is then f16.
    const bool keys = bool(codecs::Make(name, shape.head_dim, codecs::Role::kKey));
    const bool values = bool(codecs::Make(name, shape.head_dim, codecs::Role::kValue));
    ASSERT_TRUE(keys || values) << name;
    const auto config =
        Config(shape, "k=" + (keys ? name : std::string("f16")) + ",v=" + (values ? name : std::string("f16")));
    const Sequence sequence{shape, {}};
    auto cache = MakeCache(config);
    ASSERT_NE(cache, nullptr);
    const auto view = kvcache::ViewHead(*cache, 0, 0);
    const double tolerance = std::max(Tolerance(*view.key), Tolerance(*view.value));
    for (const int64_t length : {0, 1, 131, 132, 148, 149, 300, 1000}) {
      ASSERT_TRUE(Fill(*cache, sequence, length - cache->length()));
      for (const int64_t tokens : {1, 5, 40}) {
        const auto got = Attend(executor, *cache, sequence, tokens, Options(shape));
        EXPECT_LT(RelativeError(got, Expected(*cache, sequence, tokens, Options(shape))), tolerance)
            << name << " length " << length << " tokens " << tokens;
      }
    }
  }
}

TEST(Attention, PageAndRingEdges) {
  const Shape shape{.kv_heads = 1, .group = 3, .head_dim = 64};
  const Sequence sequence{shape, {}};
  Executor executor;
  auto config = Config(shape, "f32");
  config.sinks = 3, config.ring = 40;
  auto cache = MakeCache(config);
  // One token at a time over sinks, ring, the first pages' edges: every length once.
  for (int64_t length = 0; length < 330; ++length) {
    ASSERT_TRUE(Fill(*cache, sequence, length - cache->length()));
    const auto got = Attend(executor, *cache, sequence, 1, Options(shape));
    ASSERT_LT(RelativeError(got, Expected(*cache, sequence, 1, Options(shape))), 1e-5) << length;
  }
}

TEST(Attention, EveryGroupSize) {
  Executor executor(2);
  for (const char* kv : {"eden:bits=4", "f16", "eden:bits=2,precision=fine"})
    for (const int64_t group : {1, 2, 3, 4, 7, 8, 71}) {
      const Shape shape{.kv_heads = 2, .group = group, .head_dim = 64};
      const Sequence sequence{shape, {}};
      auto cache = MakeCache(Config(shape, kv));
      ASSERT_TRUE(Fill(*cache, sequence, 500));
      for (const int64_t tokens : {1, 3, 33}) {
        const auto got = Attend(executor, *cache, sequence, tokens, Options(shape));
        EXPECT_LT(RelativeError(got, Expected(*cache, sequence, tokens, Options(shape))), 4e-4)
            << kv << " group " << group << " tokens " << tokens;
      }
    }
}

TEST(Attention, EveryHeadSize) {
  Executor executor(2);
  for (const int64_t d : {64, 80, 96, 112, 128, 192, 256}) {
    const Shape shape{.kv_heads = 2, .group = 2, .head_dim = d};
    const Sequence sequence{shape, {}};
    for (const char* kv : {"f16", "eden:bits=4", "k=int8,v=eden:bits=5"}) {
      auto cache = MakeCache(Config(shape, kv));
      ASSERT_NE(cache, nullptr);
      ASSERT_TRUE(Fill(*cache, sequence, 400));
      const auto got = Attend(executor, *cache, sequence, 4, Options(shape));
      EXPECT_LT(RelativeError(got, Expected(*cache, sequence, 4, Options(shape))), 4e-4) << kv << " d " << d;
    }
  }
}

TEST(Attention, WindowAndNoMask) {
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  const Sequence sequence{shape, {}};
  Executor executor(2);
  for (const char* kv : {"f16", "eden:bits=4"}) {
    auto cache = MakeCache(Config(shape, kv));
    ASSERT_TRUE(Fill(*cache, sequence, 900));
    for (const int64_t window : {1, 2, 30, 128, 129, 300, 777, 901, 5000})
      for (const int64_t tokens : {1, 40, 150}) {
        const auto o = Options(shape, window);
        const auto got = Attend(executor, *cache, sequence, tokens, o);
        EXPECT_LT(RelativeError(got, Expected(*cache, sequence, tokens, o)), 4e-4)
            << kv << " " << window << " " << tokens;
      }
    for (const int64_t window : {0, 20, 500}) {
      const auto o = Options(shape, window, false);
      const auto got = Attend(executor, *cache, sequence, 37, o);
      EXPECT_LT(RelativeError(got, Expected(*cache, sequence, 37, o)), 4e-4) << kv << " no mask, window " << window;
    }
  }
}

TEST(Attention, ThreadsDoNotChangeAnyBit) {
  const Shape shape{.kv_heads = 3, .group = 4, .head_dim = 64};
  const Sequence sequence{shape, {}};
  for (const char* kv : {"f16", "eden:bits=4", "k=int8,v=eden:bits=3"}) {
    auto cache = MakeCache(Config(shape, kv, 8192));
    ASSERT_TRUE(Fill(*cache, sequence, 5000, 512));
    for (const int64_t tokens : {1, 7, 70}) {
      Executor one(1);
      const auto expected = Attend(one, *cache, sequence, tokens, Options(shape));
      for (const int threads : {2, 3, 7}) {
        Executor executor(threads);
        for (int repeat = 0; repeat < 3; ++repeat)
          ExpectSame(expected, Attend(executor, *cache, sequence, tokens, Options(shape)));
      }
    }
  }
}

// With exact pages it does not matter how a sequence is cut: the chunk is rounded to the ring's type before it is seen.
TEST(Attention, ChunkSizeDoesNotMatterWhenPagesAreExact) {
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  const Sequence sequence{shape, {}};
  Executor executor(2);
  for (const char* kv : {"f16", "bf16", "f32"}) {
    Matrix<float> whole(600, shape.heads() * shape.head_dim);
    for (const int64_t chunk : {600, 256, 100, 17}) {
      auto cache = MakeCache(Config(shape, kv));
      Matrix<float> all(600, shape.heads() * shape.head_dim);
      for (int64_t first = 0; first < 600; first += chunk) {
        const int64_t n = std::min<int64_t>(chunk, 600 - first);
        const auto q = sequence.Q(first, n), k = sequence.K(cache->config(), first, n), v = sequence.V(first, n);
        ASSERT_TRUE(
            AttendAndAppend(executor, *cache, Options(shape), q.View(), k.View(), v.View(), all.View().Rows(first, n)));
        cache->Commit(n);
      }
      if (chunk == 600) {
        whole = std::move(all);
        continue;
      }
      double worst = 0;
      for (int64_t i = 0; i < whole.rows() * whole.cols(); ++i)
        worst = std::max(worst, double(std::fabs(whole.data()[i] - all.data()[i])));
      EXPECT_LT(worst, 2e-5) << kv << " chunk " << chunk;  // f32 sums in another order; values are about 1
    }
  }
}

// One key far above the others: pages whose weights are negligible are left out, and nothing changes.
// One key outweighs all before it by 2^12 to 2^230: below 2^40 its weights are taken against the maximum of the first
// page, above its page is gone through again, also where 32-bit numbers would not hold them.
TEST(Attention, PeakedWeights) {
  const Shape shape{.kv_heads = 1, .group = 2, .head_dim = 64};
  Sequence sequence{shape, {}};
  Executor executor(2);
  for (const char* kv : {"f16", "eden:bits=4", "eden:bits=4,center=none"})
    for (const float peak : {1.f, 3.f, 4.f, 8.f, 20.f}) {
      auto config = Config(shape, kv);
      auto cache = MakeCache(config);
      for (int64_t first = 0; first < 2000; first += 100) {
        auto k = sequence.K(config, first, 100), v = sequence.V(first, 100);
        // The needle is aligned with the query that follows.
        const auto q = sequence.Q(2000, 1);
        if (first == 700)
          for (int64_t i = 0; i < 64; ++i) k.Row(33)[i] = peak * q.Row(0)[i];
        ASSERT_TRUE(cache->Append(0, k.View(), v.View()));
        cache->Commit(100);
      }
      const auto got = Attend(executor, *cache, sequence, 1, Options(shape));
      EXPECT_LT(RelativeError(got, Expected(*cache, sequence, 1, Options(shape))), kv[0] == 'f' ? 1e-5 : 4e-4)
          << kv << " peak " << peak;
    }
}

TEST(Attention, ErrorsAreNamedAndNothingIsAppended) {
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  const Sequence sequence{shape, {}};
  Executor executor;
  auto cache = MakeCache(Config(shape, "eden:bits=4", 100, 3));
  auto q = sequence.Q(0, 4), k = sequence.K(cache->config(), 0, 4), v = sequence.V(0, 4);
  Matrix<float> out(4, shape.heads() * shape.head_dim);
  const auto attend = [&](MatView<const float> qq, AttendOptions o) {
    return AttendAndAppend(executor, *cache, o, qq, k.View(), v.View(), out.View());
  };
  EXPECT_FALSE(attend(q.View().Rows(0, 3), Options(shape)));
  EXPECT_FALSE(attend(q.View().Cols(0, 64), Options(shape)));
  AttendOptions bad = Options(shape);
  bad.layer = 3;
  EXPECT_FALSE(attend(q.View(), bad));
  bad = Options(shape);
  bad.window = -1;
  EXPECT_FALSE(attend(q.View(), bad));
  k.Row(2)[64 + 5] = std::numeric_limits<float>::quiet_NaN();
  AttendOptions second = Options(shape);
  second.layer = 1;
  const Status nan = attend(q.View(), second);
  ASSERT_FALSE(nan);
  EXPECT_NE(nan.error().message.find("key of layer 1, kv head 1, position 2"), std::string::npos)
      << nan.error().message;
  EXPECT_EQ(kvcache::ViewHead(*cache, 1, 1).length, 0);
  k.Row(2)[64 + 5] = 1;
  EXPECT_TRUE(attend(q.View(), second));
  EXPECT_FALSE(attend(q.View(), second));  // twice without Commit
  cache->Rollback();
  EXPECT_TRUE(attend(q.View(), second));
}

// A restored or branched cache answers with the same bits.
TEST(Attention, SnapshotsAndBranchesAnswerTheSame) {
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  const Sequence sequence{shape, {}};
  Executor executor(2);
  const auto config = Config(shape, "k=eden:bits=4,v=eden:bits=3");
  auto cache = MakeCache(config);
  ASSERT_TRUE(Fill(*cache, sequence, 777));
  const std::string path = ::testing::TempDir() + "croquis_attention_snapshot";
  ASSERT_TRUE(cache->Save(path));
  auto loaded = KvCache::Load(path, config);
  std::remove(path.c_str());
  ASSERT_TRUE(loaded) << loaded.error().message;
  auto branch = cache->Branch();
  for (int step = 0; step < 40; ++step) {
    const auto expected = Attend(executor, *cache, sequence, 1, Options(shape));
    ExpectSame(expected, Attend(executor, **loaded, sequence, 1, Options(shape)));
    ExpectSame(expected, Attend(executor, *branch, sequence, 1, Options(shape)));
    for (KvCache* c : {cache.get(), loaded->get(), branch.get()}) ASSERT_TRUE(Fill(*c, sequence, 3));
  }
}

TEST(Attention, EveryTargetMatchesTheReference) {
  const Shape shape{.kv_heads = 2, .group = 4, .head_dim = 128};
  const Sequence sequence{shape, {}};
  Executor executor(2);
  int reached = 0;
  for (const simd::Target target : simd::Reachable()) {
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    ++reached;
    for (const char* kv : {"f16", "bf16", "f32", "int8", "q4_0", "eden:bits=4", "eden:bits=3,precision=fine"}) {
      auto cache = MakeCache(Config(shape, kv));
      ASSERT_TRUE(Fill(*cache, sequence, 450));
      const auto got = Attend(executor, *cache, sequence, 5, Options(shape));
      EXPECT_LT(RelativeError(got, Expected(*cache, sequence, 5, Options(shape))), 4e-4)
          << kv << " " << simd::Name(target);
    }
  }
  ASSERT_TRUE(simd::Force(""));
  EXPECT_GE(reached, 1);
}

}  // namespace
}  // namespace croquis::attention
