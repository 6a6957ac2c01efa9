// What holds for every eviction policy: memory, copies, snapshots, what is refused.
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstring>

#include "croquis/kvcache/test_cache.h"

namespace croquis::kvcache {
namespace {

using testing::Bytes;
using testing::Config;
using testing::Fill;
using testing::MakeCache;
using testing::State;

const std::vector<std::string> kAll = {"window", "h2o", "subgen", "subgen:variant=paper",
                                       "subgen:variant=paper,samples=1"};

std::string With(const std::string& kv, const std::string& param) {
  return kv + (kv.find(':') == kv.npos ? ":" : ",") + param;
}

TEST(Policies, AreNamedLikeCodecs) {
  const std::vector<std::string> layers = {"0=f16", "1=h2o:memory=25"};
  const auto p = ParseKvPolicy("subgen:memory=40", layers);
  ASSERT_TRUE(p) << p.error().message;
  EXPECT_EQ(p->At(2, 0), (KvPair{"f16", "f16", "subgen:memory=40"}));
  EXPECT_EQ(p->At(0, 0), (KvPair{"f16", "f16"}));
  EXPECT_EQ(p->At(1, 1), (KvPair{"f16", "f16", "h2o:memory=25"}));
  const auto codec = ParseKvPolicy("eden:bits=3", std::vector<std::string>{"1=subgen"});
  ASSERT_TRUE(codec);
  EXPECT_EQ(codec->At(1, 0).evict, "subgen");
  EXPECT_EQ(codec->At(0, 0), (KvPair{"eden:bits=3", "eden:bits=3"}));
  for (const char* bad : {"subgen:memory=0", "subgen:memory=101", "subgen:nosuch=1", "window:local=3",
                          "subgen:variant=x", "k=subgen,v=f16", "h2o:memory", "subgn"})
    EXPECT_FALSE(ParseKvPolicy(bad)) << bad;
}

TEST(Policies, RefuseWhatTheyCannotDo) {
  const auto fails = [](const std::string& kv, const std::vector<std::string>& layers, const std::string& word) {
    const auto made = KvCache::Make(Config(kv, layers));
    ASSERT_FALSE(made) << kv;
    EXPECT_NE(made.error().message.find(word), std::string::npos) << made.error().message;
  };
  fails("f16", {"0/1=subgen"}, "whole layers");
  for (const std::string& kv : kAll) fails(With(kv, "slots=70"), {}, "wanted at least");
  for (const std::string& kv : kAll) {
    auto cache = MakeCache(Config(kv));
    Fill(*cache, 600);
    const Status s = cache->Truncate(300);
    ASSERT_FALSE(s) << kv;
    EXPECT_NE(s.error().message.find("evicted or merged"), std::string::npos) << s.error().message;
    EXPECT_EQ(cache->length(), 600);
    EXPECT_FALSE(cache->Delete(100, 200)) << kv;
    EXPECT_FALSE(cache->InsertAt(100)) << kv;
    EXPECT_TRUE(cache->InsertAt(600)) << kv;
  }
}

// The report is what is allocated, the formula says the same, and it is what was asked for.
TEST(Policies, BytesAreTheFormulaAndTheShare) {
  for (const std::string& kv : kAll)
    for (const int64_t memory : {25, 50, 100}) {
      const CacheConfig config = Config(With(kv, "memory=" + std::to_string(memory)));
      auto cache = MakeCache(config);
      for (const int64_t n : {1, 4, 40, 132, 200, 500, 1000}) {
        Fill(*cache, n);
        const Report r = cache->GetReport();
        EXPECT_EQ(r.total(), *KvCache::BytesFor(config, n)) << kv << " " << memory << " at " << n;
        int64_t held = int64_t(cache->impl().rows.size());
        for (const LayerState& layer : cache->impl().layers)
          for (const PolicyState& kept : layer.kept) held += int64_t(kept.bytes().size());
        EXPECT_EQ(r.total(), held) << kv << " " << memory << " at " << n;
        EXPECT_TRUE(memory == 100 || n < 500 || r.total() * 100 <= r.f16_bytes * memory) << kv << " at " << n;
        // Within a step of 16 rows and the notes on them.
        EXPECT_TRUE(memory != 50 || n < 1000 || double(r.total()) >= 0.5 * double(r.f16_bytes) - 4 * 24 * 272) << kv;
      }
    }
}

TEST(Policies, PoliciesTakeEqualMemory) {
  for (const std::string memory : {"memory=50", "memory=25", "slots=400"}) {
    std::vector<int64_t> total;
    for (const char* kv : {"window", "h2o", "subgen", "subgen:variant=paper"})
      total.push_back(*KvCache::BytesFor(Config(With(kv, memory)), 2000));
    const auto [least, most] = std::minmax_element(total.begin(), total.end());
    EXPECT_LT(double(*most - *least), 0.04 * double(*most)) << memory;
  }
}

TEST(Policies, SlotsStopGrowing) {
  for (const std::string& kv : kAll) {
    const CacheConfig config = Config(With(kv, "slots=256"));
    EXPECT_EQ(*KvCache::BytesFor(config, 1000), *KvCache::BytesFor(config, 2000)) << kv;
    EXPECT_LE(*KvCache::BytesFor(config, 2000), 256 * 4 * 64 * 4) << kv;
    auto cache = MakeCache(config);
    Fill(*cache, 2000);
    EXPECT_EQ(cache->GetReport().total(), *KvCache::BytesFor(config, 2000)) << kv;
  }
}

TEST(Policies, BranchesRollbackAndSnapshotsAreTheSameBits) {
  for (const std::string& kv : kAll) {
    const CacheConfig config = Config(kv);
    auto cache = MakeCache(config);
    for (const int64_t n : {3, 60, 170, 171, 640}) {
      Fill(*cache, n);
      const std::string before = State(*cache);
      testing::AppendAll(*cache, 37);
      cache->Rollback();
      EXPECT_EQ(State(*cache), before) << kv << " at " << n;
      auto branch = cache->Branch();
      Fill(*branch, n + 100);
      EXPECT_EQ(State(*cache), before) << kv << " at " << n;
      auto loaded = KvCache::LoadFromMemory(Bytes(before), config);
      ASSERT_TRUE(loaded) << kv << ": " << loaded.error().message;
      Fill(**loaded, n + 100);
      EXPECT_EQ(State(**loaded), State(*branch)) << kv << " at " << n;
      EXPECT_EQ((*loaded)->GetReport().total(), branch->GetReport().total());
    }
  }
}

// Runs leave the ring at fixed lengths, so without attention's feedback the chunks make no difference.
TEST(Policies, ChunksMakeNoDifference) {
  for (const std::string& kv : kAll) {
    auto one = MakeCache(Config(kv)), other = MakeCache(Config(kv));
    Fill(*one, 700, 1);
    Fill(*other, 700, 193);
    EXPECT_EQ(State(*one), State(*other)) << kv;
  }
}

TEST(Policies, TruncateReachesIntoTheRingOnly) {
  for (const std::string& kv : kAll) {
    const CacheConfig config = Config(kv);
    auto cache = MakeCache(config);
    Fill(*cache, 36 + 16 * 20 + 15);
    EXPECT_TRUE(cache->Truncate(36 + 16 * 20)) << kv;
    auto fresh = MakeCache(config);
    Fill(*fresh, 36 + 16 * 20);
    EXPECT_EQ(State(*cache), State(*fresh)) << kv;
    EXPECT_TRUE(cache->Truncate(0)) << kv;
    EXPECT_EQ(State(*cache), State(*MakeCache(config))) << kv;
    Fill(*cache, 500);
    Fill(*fresh, 500);
    EXPECT_EQ(State(*cache), State(*fresh)) << kv;
  }
}

TEST(Policies, DamagedSnapshotsAreRefusedOrHarmless) {
  for (const std::string& kv : kAll) {
    const CacheConfig config = Config(kv);
    auto cache = MakeCache(config);
    Fill(*cache, 300);
    std::string bytes = State(*cache);
    bytes[bytes.size() / 2] = char(bytes[bytes.size() / 2] ^ 0x40);
    EXPECT_FALSE(KvCache::LoadFromMemory(Bytes(bytes), config)) << kv;
    EXPECT_FALSE(KvCache::LoadFromMemory(Bytes(State(*cache)), Config(With(kv, "recent=16")))) << kv;
  }
}

// Bytes that lie but carry a right checksum: a cache that loads must be usable, whatever its contents.
TEST(Policies, LiesWithARightChecksumNeverCrash) {
  for (const std::string& kv : kAll) {
    CacheConfig config = Config(kv);
    config.layers = config.kv_heads = 1, config.head_dim = 8;
    config.rope.inv_freq.resize(4);
    auto cache = MakeCache(config);
    Fill(*cache, 400);
    const std::string bytes = State(*cache);
    uint64_t conf = 0, payload = 0;
    std::memcpy(&conf, bytes.data() + 40, 8);
    const size_t layer = 32 + 20 + size_t(conf);  // header, configuration section
    std::memcpy(&payload, bytes.data() + layer + 8, 8);
    ASSERT_EQ(layer + 20 + payload, bytes.size());
    const Stream random{4, Purpose("policies.test")};
    int loaded = 0;
    for (uint64_t n = 0; n < 400; ++n) {
      std::string bad = bytes;
      // Half of the lies in the header and the tables, which come first in the state.
      const uint64_t state = uint64_t(cache->impl().layers[0].kept[0].bytes().size());
      const uint64_t at = layer + 16 + payload - state + random.U32(2 * n) % (n % 2 == 0 ? 1200 : state);
      constexpr char kLies[] = {'\x00', '\x7f', '\xff', '\x80', '\x01', '\x47'};
      std::fill_n(bad.begin() + int64_t(std::min<uint64_t>(at, layer + 16 + payload - 4)), n % 3 == 0 ? 4 : 1,
                  kLies[random.U32(2 * n + 1) % std::size(kLies)]);
      const auto crc = uint32_t(crc32(0, reinterpret_cast<const Bytef*>(bad.data() + layer), uInt(16 + payload)));
      std::memcpy(bad.data() + layer + 16 + payload, &crc, 4);
      auto result = KvCache::LoadFromMemory(Bytes(bad), config);
      if (!result) continue;
      ++loaded;
      Fill(**result, 500);
      EXPECT_EQ((*result)->GetReport().total(), *KvCache::BytesFor(config, 500));
    }
    EXPECT_GT(loaded, 50) << kv;
  }
}

TEST(Policies, WindowKeepsTheMostRecentTokens) {
  auto cache = MakeCache(Config("window:slots=200"));
  Fill(*cache, 1000);
  const HeadView view = ViewHead(*cache, 1, 1);
  const int64_t rows = view.kept[0].rows;
  // 200 slots: 4 sinks, 48 of the ring, the rest in steps of 16.
  EXPECT_EQ(rows, (200 - 52 - 1) / 16 * 16);
  const auto k = testing::Rows(cache->config(), 1, true, 0, 1000);
  std::vector<float> row(64);
  for (int64_t r = 0; r < rows; ++r) {
    WidenRow(view.type, view.kept[0].k + r * view.row_bytes, 64, row.data());
    const int64_t position = view.sinks + view.encoded - rows + r;
    for (int64_t i = 0; i < 64; ++i) EXPECT_NEAR(row[size_t(i)], k.Row(position)[64 + i], 2e-3);
  }
}

}  // namespace
}  // namespace croquis::kvcache
