#include "croquis/kvcache/edit_map.h"

#include <gtest/gtest.h>

#include <limits>

#include "croquis/kvcache/test_cache.h"

namespace croquis::kvcache {
namespace {

// The slot of every position.
std::vector<int64_t> Slots(const EditMap& map) {
  std::vector<int64_t> slots;
  for (const EditSegment& s : map.segments())
    for (int64_t slot = s.begin; slot < s.end; ++slot) {
      EXPECT_EQ(slot + s.shift, int64_t(slots.size()));
      slots.push_back(slot);
    }
  return slots;
}

TEST(EditMap, IsAListOfSlots) {
  const Stream random{9, Purpose("edit_map.test")};
  uint64_t draw = 0;
  const auto below = [&](int64_t n) { return int64_t(random.U32(draw++) % uint64_t(n)); };
  for (int text = 0; text < 20; ++text) {
    EditMap map;
    std::vector<int64_t> plain;
    int64_t slots = 50;
    for (int64_t s = 0; s < slots; ++s) plain.push_back(s);
    for (int step = 0; step < 60; ++step) {
      const auto n = int64_t(plain.size());
      if (below(2) == 0) {
        const int64_t begin = below(n + 1), end = begin + below(n - begin + 1);
        map.Delete(slots, begin, end);
        plain.erase(plain.begin() + begin, plain.begin() + end);
      } else {
        const int64_t at = below(n + 1);
        map.InsertAt(slots, at);
        for (int64_t chunk = 0; chunk < 2; ++chunk) {  // an insert may come in chunks
          const int64_t tokens = 1 + below(9), cursor = map.Cursor(slots);
          if (map.edited()) map.Append(slots, tokens);
          for (int64_t t = 0; t < tokens; ++t) plain.insert(plain.begin() + cursor + t, slots + t);
          slots += tokens;
        }
        map.InsertAt(slots, map.Tokens(slots));
      }
      ASSERT_EQ(map.Tokens(slots), int64_t(plain.size()));
      ASSERT_EQ(map.Cursor(slots), int64_t(plain.size()));
      if (map.edited()) {
        ASSERT_EQ(Slots(map), plain);
      }
    }
    EditMap restored;
    ASSERT_TRUE(restored.Restore({map.segments().begin(), map.segments().end()}, -1, slots));
    EXPECT_EQ(Slots(restored), plain);
  }
}

TEST(EditMap, RefusesSegmentsThatMakeNoSense) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
  const std::vector<std::vector<EditSegment>> bad = {
      {{0, 11, 0}},               // more than there are
      {{-1, 5, 1}},               // before the first
      {{3, 3, -3}},               // empty
      {{0, 5, 1}},                // a gap at the front
      {{0, 5, 0}, {6, 8, 0}},     // a gap between
      {{0, 5, 0}, {4, 8, 1}},     // a slot twice
      {{0, 5, kMost}},            // far away
      {{kLeast, kMost, kLeast}},  // overflows
  };
  for (const auto& segments : bad) {
    EditMap map;
    EXPECT_FALSE(map.Restore(segments, -1, 10));
    EXPECT_FALSE(map.edited());
  }
  EditMap map;
  EXPECT_FALSE(map.Restore({{0, 5, 0}}, 6, 10));
  EXPECT_FALSE(map.Restore({{0, 5, 0}}, -2, 10));
  EXPECT_TRUE(map.Restore({{4, 10, -4}, {0, 2, 6}}, 3, 10));
}

// A damaged snapshot of an edited cache is refused, never read.
TEST(EditMap, SnapshotsOfEditedCachesAreChecked) {
  const auto config = testing::Config("f16");
  auto cache = testing::MakeCache(config);
  for (int64_t l = 0; l < config.layers; ++l) {
    const auto k = testing::Rows(config, l, true, 0, 40), v = testing::Rows(config, l, false, 0, 40);
    ASSERT_TRUE(cache->Append(l, k.View(), v.View()));
  }
  cache->Commit(40);
  ASSERT_TRUE(cache->Delete(3, 9));
  ASSERT_TRUE(cache->InsertAt(5));  // a cursor is kept, too
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::tmpfile(), &std::fclose);
  ASSERT_NE(file, nullptr);
  ASSERT_TRUE(WriteSnapshot(file.get(), cache->impl()));
  std::vector<std::byte> bytes(size_t(std::ftell(file.get())));
  std::rewind(file.get());
  ASSERT_EQ(std::fread(bytes.data(), 1, bytes.size(), file.get()), bytes.size());
  const auto loaded = KvCache::LoadFromMemory(bytes, config);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ((*loaded)->tokens(), 34);
  EXPECT_EQ((*loaded)->impl().edits.Cursor(40), 5);
  for (size_t i = 0; i < bytes.size(); i += 1 + i / 64) {  // every byte of the first sections, fewer of the rows
    auto damaged = bytes;
    damaged[i] ^= std::byte{0x41};
    EXPECT_FALSE(KvCache::LoadFromMemory(damaged, config)) << i;
    EXPECT_FALSE(KvCache::LoadFromMemory(std::span(bytes).first(i), config)) << i;
  }
}

}  // namespace
}  // namespace croquis::kvcache
