#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "croquis/kvcache/test_cache.h"

namespace croquis::kvcache {
namespace {

using testing::Bytes;
using testing::Config;
using testing::Fill;
using testing::MakeCache;
using testing::State;
using testing::TempPath;

TEST(Snapshot, RestoresTheSameBitsAndGoesOnTheSame) {
  for (const char* kv : {"eden:bits=4,center=rope", "k=kivi:bits=4,v=int8", "k=bf16,v=eden:bits=2", "f32"})
    for (const int64_t length : {0, 3, 100, 148, 400, 777}) {
      const CacheConfig config = Config(kv, {"1/0=int8"});
      auto cache = MakeCache(config);
      Fill(*cache, length, 50, 5);
      const std::string path = TempPath("snapshot_restore");
      ASSERT_TRUE(cache->Save(path));
      auto loaded = KvCache::Load(path, config);
      std::remove(path.c_str());
      ASSERT_TRUE(loaded) << loaded.error().message;
      EXPECT_EQ((*loaded)->length(), length);
      EXPECT_EQ(State(**loaded), State(*cache)) << kv << " " << length;
      EXPECT_EQ((*loaded)->GetReport().total(), cache->GetReport().total());
      Fill(*cache, 900, 50, 5);
      Fill(**loaded, 900, 31, 5);
      EXPECT_EQ(State(**loaded), State(*cache)) << "after going on: " << kv << " " << length;
    }
}

TEST(Snapshot, ReplacesAFileWholeOrNotAtAll) {
  const CacheConfig config = Config("eden:bits=4");
  const std::string folder = TempPath("snapshot_folder");
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  const std::string path = folder + "/a.kv";
  auto cache = MakeCache(config);
  ASSERT_TRUE(cache->Save(path));
  Fill(*cache, 300);
  testing::AppendAll(*cache, 5);  // pending tokens are not part of it
  ASSERT_TRUE(cache->Save(path));
  EXPECT_EQ((*KvCache::Load(path, config))->length(), 300);
  // Nothing is left beside it; a save that fails leaves nothing either.
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files += entry.is_regular_file();
  EXPECT_EQ(files, 1);
  std::filesystem::create_directory(folder + "/taken");
  const Status onto_folder = cache->Save(folder + "/taken");
  ASSERT_FALSE(onto_folder);
  EXPECT_EQ(onto_folder.error().code, Code::kIo);
  EXPECT_FALSE(cache->Save(folder + "/missing/a.kv"));
  files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files += entry.is_regular_file();
  EXPECT_EQ(files, 1);
  std::filesystem::remove_all(folder);
}

TEST(Snapshot, KilledDuringASaveLeavesAWholeFile) {
  const CacheConfig config = Config("eden:bits=4");
  const std::string path = TempPath("snapshot_killed");
  auto small = MakeCache(config), large = MakeCache(config);
  Fill(*small, 200);
  Fill(*large, 900);
  ASSERT_TRUE(small->Save(path));
  // The child saves without end; whenever it dies, what is there must be one of the two caches, whole.
  for (int trial = 0; trial < 8; ++trial) {
    const pid_t child = fork();
    if (child == 0)
      while (true)
        if (!large->Save(path) || !small->Save(path)) _exit(1);
    ASSERT_GT(child, 0);
    usleep(useconds_t(1000 + 3137 * trial));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child's save failed";
    const auto loaded = KvCache::Load(path, config);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_TRUE((*loaded)->length() == 200 || (*loaded)->length() == 900);
  }
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(path).parent_path()))
    if (entry.path().string().starts_with(path)) std::filesystem::remove(entry.path());
}

TEST(Snapshot, RefusesAnotherConfiguration) {
  const CacheConfig config = Config("eden:bits=4");
  auto cache = MakeCache(config);
  Fill(*cache, 300);
  const std::string bytes = State(*cache);
  const auto refuse = [&](auto change, const char* word) {
    CacheConfig c = config;
    change(c);
    const auto loaded = KvCache::LoadFromMemory(Bytes(bytes), c);
    ASSERT_FALSE(loaded) << word;
    EXPECT_NE(loaded.error().message.find(word), std::string::npos) << loaded.error().message;
  };
  refuse([](CacheConfig& c) { c.model_id = 1; }, "model");
  refuse([](CacheConfig& c) { c.layers = 3; }, "layers");
  refuse([](CacheConfig& c) { c.kv_heads = 4; }, "kv_heads");
  refuse([](CacheConfig& c) { c.head_dim = 128; }, "head_dim");
  refuse([](CacheConfig& c) { c.sinks = 5; }, "sinks");
  refuse([](CacheConfig& c) { c.ring = 64; }, "ring");
  refuse([](CacheConfig& c) { c.seed = 4; }, "seed");
  refuse([](CacheConfig& c) { c.rope.inv_freq[1] *= 1.5; }, "rope");
  refuse([](CacheConfig& c) { c.rope.interleaved = true; }, "rope");
  refuse([](CacheConfig& c) { c.policy = *ParseKvPolicy("eden:bits=3"); }, "k=eden:bits=4");
  refuse([](CacheConfig& c) { c.policy = *ParseKvPolicy("eden:bits=4", std::vector<std::string>{"1/1=f16"}); },
         "layer 1 head 1");
  refuse([](CacheConfig& c) { c.capacity = 200; }, "300 tokens");
  CacheConfig larger = config;
  larger.capacity = 10000;
  EXPECT_TRUE(KvCache::LoadFromMemory(Bytes(bytes), larger));
  EXPECT_EQ(KvCache::Load("/nonexistent/x.kv", config).error().code, Code::kNotFound);
  EXPECT_FALSE(KvCache::Load("/", config));
}

// Small enough to try every length and every byte.
CacheConfig Small() {
  CacheConfig c = Config("eden:bits=2,center=rope");
  c.layers = 1, c.kv_heads = 1, c.head_dim = 32, c.sinks = 1, c.ring = 2, c.capacity = 64;
  c.rope.inv_freq.resize(16);
  return c;
}

TEST(Snapshot, EveryTruncationIsAnError) {
  auto cache = MakeCache(Small());
  Fill(*cache, 30);
  const std::string bytes = State(*cache);
  ASSERT_TRUE(KvCache::LoadFromMemory(Bytes(bytes), Small()));
  for (size_t n = 0; n < bytes.size(); ++n) {
    std::string cut = bytes.substr(0, n);
    ASSERT_FALSE(KvCache::LoadFromMemory(Bytes(cut), Small())) << n;
    // The same with a header that agrees with the shorter file.
    if (n < 32) continue;
    const uint64_t size = n;
    std::memcpy(cut.data() + 24, &size, 8);
    ASSERT_FALSE(KvCache::LoadFromMemory(Bytes(cut), Small())) << n;
  }
  EXPECT_FALSE(KvCache::LoadFromMemory(Bytes(bytes + 'x'), Small()));
}

TEST(Snapshot, EveryFlippedByteIsAnError) {
  auto cache = MakeCache(Small());
  Fill(*cache, 30);
  std::string bytes = State(*cache);
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char was = bytes[i];
    bytes[i] = char(was ^ (1 << (i % 8)));
    ASSERT_FALSE(KvCache::LoadFromMemory(Bytes(bytes), Small())) << i;
    bytes[i] = was;
  }
}

// Bytes that lie but carry a right checksum: a cache that loads must be usable, whatever its contents.
TEST(Snapshot, FlipsWithARightChecksumNeverCrash) {
  auto cache = MakeCache(Small());
  Fill(*cache, 30);
  const std::string bytes = State(*cache);
  uint64_t conf = 0, payload = 0;
  std::memcpy(&conf, bytes.data() + 40, 8);
  const size_t layer = 32 + 20 + size_t(conf);  // header, configuration section
  std::memcpy(&payload, bytes.data() + layer + 8, 8);
  ASSERT_EQ(layer + 20 + payload, bytes.size());
  int loaded = 0, refused = 0;
  // Every byte of what has a structure (the common part, sinks, ring), a sample of the codes, where all bytes are
  // alike.
  const size_t structured = 2 * (payload - 2 * 1280);  // two pages of 32 dims at 2 bits
  for (size_t n = 0; n < 2 * payload; n += n < structured ? 1 : 27) {
    const size_t i = layer + 16 + n / 2;
    std::string bad = bytes;
    bad[i] = n % 2 == 0 ? char(~bad[i]) : char(0x7f);  // 0x7f.. is NaN in f16
    const uint32_t crc = uint32_t(crc32(0, reinterpret_cast<const Bytef*>(bad.data() + layer), uInt(16 + payload)));
    std::memcpy(bad.data() + layer + 16 + payload, &crc, 4);
    auto result = KvCache::LoadFromMemory(Bytes(bad), Small());
    if (!result) {
      ++refused;
      continue;
    }
    ++loaded;
    Fill(**result, 40);
    ASSERT_TRUE((*result)->Truncate(10));
  }
  EXPECT_GT(loaded, 100);
  EXPECT_GT(refused, 10);  // pairs out of order, numbers that are not finite
}

}  // namespace
}  // namespace croquis::kvcache
