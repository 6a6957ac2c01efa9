#include "croquis/kvcache/cache.h"

#include <cstring>
#include <limits>
#include <thread>

#include "croquis/kvcache/impl.h"
#include "croquis/kvcache/test_cache.h"

namespace croquis::kvcache {
namespace {

using testing::AppendAll;
using testing::Config;
using testing::Fill;
using testing::MakeCache;
using testing::Rows;
using testing::State;

TEST(Cache, BytesEqualTheFormulaAndWhatIsAllocated) {
  for (const char* kv : {"eden:bits=3", "k=eden:bits=4,v=eden:bits=2", "f16", "f32", "k=bf16,v=int8"}) {
    const CacheConfig config = Config(kv, {"1=int8"});
    auto cache = MakeCache(config);
    for (const int64_t length : {0, 1, 4, 130, 147, 148, 149, 275, 276, 277, 1500, 2000}) {
      Fill(*cache, length);
      const Report r = cache->GetReport();
      EXPECT_EQ(r.total(), *KvCache::BytesFor(config, length)) << kv << " " << length;
      EXPECT_EQ(r.tokens, length);
      // What was really handed out: units from the pool (64 bytes of header each, counted among the tables), and one
      // block of sinks and rings.
      EXPECT_EQ(r.ring + r.sinks, int64_t(cache->impl().rows.size()));
      const int64_t headers = 64 * cache->impl().plan->Units(0, length) + 64 * cache->impl().plan->Units(1, length);
      EXPECT_EQ(r.key_pages + r.value_pages + headers, cache->impl().pool->live_bytes());
    }
  }
}

TEST(Cache, ThreeBitsTakeAFifth) {
  CacheConfig config;
  config.layers = 1, config.kv_heads = 8, config.head_dim = 128, config.capacity = 32768;
  config.policy = *ParseKvPolicy("eden:bits=3");
  for (int64_t i = 0; i < 64; ++i) config.rope.inv_freq.push_back(std::pow(1e6, -double(i) / 64));
  auto cache = MakeCache(config);
  const auto k = Rows(config, 0, true, 0, 2048), v = Rows(config, 0, false, 0, 2048);
  for (int64_t n = 0; n < 32768; n += 2048) {
    ASSERT_TRUE(cache->Append(0, k.View(), v.View()));
    cache->Commit(2048);
  }
  const Report r = cache->GetReport();
  EXPECT_EQ(r.f16_bytes, 32768 * 8 * 128 * 2 * 2);
  EXPECT_LE(5 * r.total(), r.f16_bytes);
  EXPECT_EQ(r.total(), *KvCache::BytesFor(config, 32768));
  EXPECT_EQ(r.key_pages, 8 * 255 * 6400);
  EXPECT_DOUBLE_EQ(r.key_bits, 3.125);
}

TEST(Cache, StateDoesNotDependOnChunks) {
  for (const char* kv : {"eden:bits=4,center=rope", "k=kivi:bits=4,v=int8", "f16"}) {
    auto whole = MakeCache(Config(kv));
    Fill(*whole, 777, 777, 5);
    for (const int64_t chunk : {1, 7, 100, 300}) {
      auto cache = MakeCache(Config(kv));
      Fill(*cache, 777, chunk, 5);
      EXPECT_EQ(State(*cache), State(*whole)) << kv << " " << chunk;
    }
  }
}

TEST(Cache, RollbackLeavesNoTrace) {
  for (const char* kv : {"eden:bits=4,center=rope", "k=kivi:bits=4,v=int8"})
    for (const int64_t length : {0, 3, 148, 531}) {
      auto cache = MakeCache(Config(kv));
      Fill(*cache, length, 50, 5);
      const std::string before = State(*cache);
      const int64_t bytes = cache->GetReport().total();
      for (const int64_t tokens : {1, 17, 400}) {
        AppendAll(*cache, tokens, 5);
        EXPECT_EQ(State(*cache), before) << "a snapshot holds what is committed";
        cache->Rollback();
        EXPECT_EQ(cache->length(), length);
        EXPECT_EQ(cache->GetReport().total(), bytes);
        ASSERT_EQ(State(*cache), before) << kv << " " << length << " " << tokens;
      }
      // Rolling back does not disturb what comes after.
      Fill(*cache, 600, 50, 5);
      auto fresh = MakeCache(Config(kv));
      Fill(*fresh, 600, 50, 5);
      EXPECT_EQ(State(*cache), State(*fresh));
    }
}

TEST(Cache, BranchesGoOnAlone) {
  const CacheConfig config = Config("eden:bits=4,center=rope");
  auto a = MakeCache(config);
  Fill(*a, 700, 50, 5);
  const std::string before = State(*a);
  const int64_t live = a->impl().pool->live_bytes();
  auto b = a->Branch();
  EXPECT_EQ(State(*b), before);
  EXPECT_EQ(a->impl().pool->live_bytes(), live) << "pages are shared";
  // Both write the page that was being filled when they parted, at the same time.
  std::thread other([&] { Fill(*b, 900, 33, 5); });
  Fill(*a, 1100, 50, 5);
  other.join();
  auto fresh = MakeCache(config);
  Fill(*fresh, 900, 50, 5);
  EXPECT_EQ(State(*b), State(*fresh));
  Fill(*fresh, 1100, 50, 5);
  EXPECT_EQ(State(*a), State(*fresh));
  // A branch outlives what it came from, and can be cut back without touching it.
  auto c = a->Branch();
  const std::string full = State(*a);
  ASSERT_TRUE(c->Truncate(350));
  EXPECT_EQ(State(*a), full);
  a.reset();
  Fill(*c, 500, 50, 5);
  EXPECT_EQ(c->length(), 500);
  const auto pool = c->impl().pool;
  b.reset(), c.reset(), fresh.reset();
  EXPECT_EQ(pool->live_bytes(), 0);
}

TEST(Cache, TruncateKeepsPagesAndDecodesWhatComesBack) {
  for (const char* kv : {"eden:bits=4,center=rope", "k=kivi:bits=4,v=int8", "f16"})
    for (const int64_t to : {0, 2, 4, 100, 148, 149, 300, 404, 405, 520, 650, 659, 660}) {
      const CacheConfig config = Config(kv);
      auto cache = MakeCache(config);
      Fill(*cache, 660, 50, 5);
      const HeadView before = ViewHead(*cache, 1, 1);
      // What the last tokens that stay stand for before.
      std::vector<std::vector<float>> values;
      for (int64_t p = std::max<int64_t>(4, to - 100); p < to; ++p) {
        std::vector<float> x(64);
        const int64_t t = p - before.sinks;
        if (t < before.encoded)
          before.value->Decode(before.ValuePage(t / 128), t % 128, MatView<float>(x.data(), 1, 64));
        else
          WidenRow(before.type, before.ring_v + t % before.slots * before.row_bytes, 64, x.data());
        values.push_back(x);
      }
      ASSERT_TRUE(cache->Truncate(to));
      EXPECT_EQ(cache->length(), to);
      EXPECT_EQ(cache->GetReport().total(), *KvCache::BytesFor(config, to));
      const HeadView after = ViewHead(*cache, 1, 1);
      EXPECT_EQ(after.encoded, EncodedTokens(to, 4, 128, kv[2] == 'k' ? 32 : 16));
      for (int64_t p = std::max<int64_t>(4, to - 100); p < to; ++p) {
        std::vector<float> x(64);
        const int64_t t = p - after.sinks;
        ASSERT_GE(t, after.encoded);
        WidenRow(after.type, after.ring_v + t % after.slots * after.row_bytes, 64, x.data());
        const auto& want = values[size_t(p - std::max<int64_t>(4, to - 100))];
        for (size_t i = 0; i < 64; ++i) ASSERT_NEAR(x[i], want[i], std::fabs(want[i]) * 0x1p-11 + 1e-7) << p;
      }
      // It goes on, and cutting to nothing is a fresh start.
      Fill(*cache, 700, 50, 5);
      if (to <= 4) {
        auto fresh = MakeCache(config);
        Fill(*fresh, 700, 50, 5);
        EXPECT_EQ(State(*cache), State(*fresh)) << kv << " " << to;
      }
    }
}

TEST(Cache, MakeRefusesInWords) {
  const auto refuse = [](auto change, const char* word) {
    CacheConfig c = Config("eden:bits=4");
    change(c);
    const auto made = KvCache::Make(c);
    ASSERT_FALSE(made) << word;
    EXPECT_NE(made.error().message.find(word), std::string::npos) << made.error().message;
  };
  refuse([](CacheConfig& c) { c.layers = 0; }, "layers");
  refuse([](CacheConfig& c) { c.kv_heads = -1; }, "kv_heads");
  refuse([](CacheConfig& c) { c.kv_heads = INT64_MAX; }, "kv_heads");
  refuse([](CacheConfig& c) { c.head_dim = 4096; }, "head_dim");
  refuse([](CacheConfig& c) { c.capacity = 0; }, "capacity");
  refuse([](CacheConfig& c) { c.sinks = -1; }, "sinks");
  refuse([](CacheConfig& c) { c.ring = INT64_MAX; }, "ring");
  refuse([](CacheConfig& c) { c.capacity = int64_t{1} << 31, c.layers = 4096, c.kv_heads = 16; }, "memory");
  refuse([](CacheConfig& c) { c.policy = *ParseKvPolicy("f16", std::vector<std::string>{"2=f16"}); }, "layers 0 to 1");
  refuse([](CacheConfig& c) { c.policy = *ParseKvPolicy("f16", std::vector<std::string>{"1/2=f16"}); },
         "kv heads 0 to 1");
  refuse([](CacheConfig& c) { c.policy.base.key = "nosuch"; }, "nosuch");
  refuse([](CacheConfig& c) { c.rope.inv_freq[3] = std::numeric_limits<double>::quiet_NaN(); }, "frequency");
  refuse([](CacheConfig& c) { c.rope.inv_freq.resize(33); }, "rotated pairs");
}

TEST(Cache, BranchesHoldTheirCommonTokensAlike) {
  for (const char* kv : {"eden:bits=4,center=rope", "k=kivi:bits=4,v=int8", "f16"}) {
    auto a = MakeCache(Config(kv));
    Fill(*a, 700);
    const auto b = a->Branch(), c = b->Branch();
    EXPECT_EQ(CommonTokens(*a, *b), 700);
    // The page being filled is copied and filled on both sides, with the common tokens that were in the ring.
    Fill(*a, 1000);
    Fill(*b, 730);
    Fill(*b, 1000, 7, 5);
    EXPECT_EQ(CommonTokens(*a, *b), 700);
    EXPECT_EQ(CommonTokens(*a, *c), 700);
    for (int64_t h = 0; h < 2; ++h) {
      const HeadView x = ViewHead(*a, 0, h), y = ViewHead(*b, 0, h);
      ASSERT_EQ(x.units[0], y.units[0]);
      ASSERT_NE(x.units[4], y.units[4]);  // positions 516 to 643
      EXPECT_EQ(std::memcmp(x.KeyPage(4), y.KeyPage(4), size_t(x.key->PageBytes())), 0);
      EXPECT_EQ(std::memcmp(x.ValuePage(4), y.ValuePage(4), size_t(x.value->PageBytes())), 0);
    }
    // What was in the ring all the time stays what it was; what comes back into it is decoded.
    ASSERT_TRUE(c->Truncate(695));
    EXPECT_EQ(CommonTokens(*a, *c), 695);
    ASSERT_TRUE(c->Truncate(400));
    EXPECT_EQ(CommonTokens(*a, *c), ViewHead(*c, 0, 0).sinks + ViewHead(*c, 0, 0).encoded);
    EXPECT_EQ(CommonTokens(*a, *MakeCache(Config(kv))), 0);
  }
}

TEST(Cache, AppendRefusesInWords) {
  auto cache = MakeCache(Config("eden:bits=4", {"1=f32"}));
  auto k = Rows(cache->config(), 0, true, 0, 8), v = Rows(cache->config(), 0, false, 0, 8);
  const auto refuse = [&](int64_t layer, const char* word, Code code) {
    const Status s = cache->Append(layer, k.View(), v.View());
    ASSERT_FALSE(s) << word;
    EXPECT_NE(s.error().message.find(word), std::string::npos) << s.error().message;
    EXPECT_EQ(s.error().code, code) << word;
    EXPECT_FALSE(cache->impl().Pending());
  };
  refuse(2, "layer 2", Code::kOutOfRange);
  refuse(-1, "layer -1", Code::kOutOfRange);
  v.Row(7)[127] = std::numeric_limits<float>::infinity();
  refuse(0, "value of layer 0, kv head 1, position 7", Code::kNumeric);
  std::swap(v.Row(7)[127], k.Row(3)[0]);
  refuse(1, "key of layer 1, kv head 0, position 3", Code::kNumeric);  // f32 holds no infinity either
  k.Row(3)[0] = std::numeric_limits<float>::quiet_NaN();
  refuse(0, "key of layer 0, kv head 0, position 3 contains", Code::kNumeric);
  k.Row(3)[0] = 0;
  v.Row(7)[127] = 1e5f;
  refuse(0, "65504", Code::kNumeric);
  EXPECT_TRUE(cache->Append(1, k.View(), v.View())) << "an f32 ring takes it";
  cache->Rollback();
  v.Row(7)[127] = 0;
  EXPECT_FALSE(cache->Append(0, k.View().Cols(0, 64), v.View()));
  EXPECT_FALSE(cache->Append(0, k.View().Rows(0, 3), v.View()));
  Fill(*cache, 1995);
  const Status full = cache->Append(0, k.View(), v.View());
  ASSERT_FALSE(full);
  EXPECT_NE(full.error().message.find("capacity of 2000"), std::string::npos) << full.error().message;
  EXPECT_FALSE(cache->Truncate(1996));
  EXPECT_FALSE(cache->Truncate(-1));
}

TEST(Cache, SmallCapacitiesAndZeroRing) {
  for (const int64_t capacity : {1, 3, 5, 100, 140}) {
    CacheConfig config = Config("eden:bits=4");
    config.capacity = capacity;
    auto cache = MakeCache(config);
    Fill(*cache, capacity, 3);
    EXPECT_EQ(cache->GetReport().total(), *KvCache::BytesFor(config, capacity));
    EXPECT_EQ(cache->GetReport().key_pages, 0);
  }
  CacheConfig config = Config("eden:bits=4");
  config.sinks = config.ring = 0;
  auto cache = MakeCache(config);
  Fill(*cache, 300, 7);
  EXPECT_EQ(ViewHead(*cache, 0, 0).encoded, 288);
  EXPECT_EQ(cache->GetReport().total(), *KvCache::BytesFor(config, 300));
}

TEST(Cache, ReportNamesKernels) {
  auto cache = MakeCache(Config("k=eden:bits=4,v=f16", {"1=f16"}));
  const Report r = cache->GetReport();
  ASSERT_EQ(r.kernels.size(), 3u);
  EXPECT_EQ(r.kernels[0].rfind("k eden:bits=4", 0), 0u) << r.kernels[0];
  EXPECT_NE(r.kernels[0].find("(2 heads)"), std::string::npos) << r.kernels[0];
  EXPECT_DOUBLE_EQ(r.key_bits, (4.25 + 16) / 2);
  EXPECT_DOUBLE_EQ(r.value_bits, 16);
}

TEST(UnitPool, GivesZeroesAndCounts) {
  UnitPool pool(0);
  std::vector<Unit*> units;
  for (int i = 0; i < 50; ++i) {
    units.push_back(pool.New(64 * size_t(i % 5 + 500)));
    std::memset(units.back()->data(), 1, size_t(units.back()->bytes) - sizeof(Unit));
  }
  UnitPool::Share(units[3]);
  const int64_t live = pool.live_bytes();
  pool.Drop(units[3]);
  EXPECT_EQ(pool.live_bytes(), live);
  for (Unit* u : units) pool.Drop(u);
  EXPECT_EQ(pool.live_bytes(), 0);
  for (int i = 0; i < 50; ++i) {
    Unit* u = pool.New(64 * size_t(i % 5 + 500));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(u->data()) % 64, 0u);
    for (int64_t b = 0; b < u->bytes - int64_t(sizeof(Unit)); ++b) ASSERT_EQ(u->data()[b], std::byte{0});
  }
}

}  // namespace
}  // namespace croquis::kvcache
