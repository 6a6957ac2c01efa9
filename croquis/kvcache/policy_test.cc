#include <gtest/gtest.h>

#include "croquis/kvcache/cache.h"

namespace croquis::kvcache {
namespace {

TEST(Policy, OneMethodServesBoth) {
  const auto p = ParseKvPolicy("eden:bits=3,center=none");
  ASSERT_TRUE(p) << p.error().message;
  EXPECT_EQ(p->At(0, 0).key, "eden:bits=3,center=none");
  EXPECT_EQ(p->At(7, 3).value, "eden:bits=3,center=none");
  EXPECT_EQ(p->text, "eden:bits=3,center=none");
}

TEST(Policy, KeysAndValuesApart) {
  const auto p = ParseKvPolicy("k=eden:bits=4,center=none,v=eden:bits=3,rounds=2");
  ASSERT_TRUE(p) << p.error().message;
  EXPECT_EQ(p->base.key, "eden:bits=4,center=none");
  EXPECT_EQ(p->base.value, "eden:bits=3,rounds=2");
  const auto q = ParseKvPolicy("v=f16,k=int8");
  ASSERT_TRUE(q) << q.error().message;
  EXPECT_EQ(q->base, (KvPair{"int8", "f16"}));
}

TEST(Policy, LaterOverridesWin) {
  const std::vector<std::string> layers = {"0-3=f16", "1=k=int8,v=eden:bits=4", "2-3/1=v=int8", "3/0-1=bf16"};
  const auto p = ParseKvPolicy("eden:bits=2", layers);
  ASSERT_TRUE(p) << p.error().message;
  EXPECT_EQ(p->At(0, 0), (KvPair{"f16", "f16"}));
  EXPECT_EQ(p->At(1, 5), (KvPair{"int8", "eden:bits=4"}));
  EXPECT_EQ(p->At(2, 0), (KvPair{"f16", "f16"}));
  EXPECT_EQ(p->At(2, 1), (KvPair{"eden:bits=2", "int8"}));  // a side that is not named is the base's
  EXPECT_EQ(p->At(3, 1), (KvPair{"bf16", "bf16"}));
  EXPECT_EQ(p->At(4, 1), (KvPair{"eden:bits=2", "eden:bits=2"}));
}

TEST(Policy, ErrorsSayWhatWasWanted) {
  for (const char* bad : {"", "k=eden", "v=eden", "k=eden,k=f16,v=f16", "nosuch", "k=eden:bits=99,v=f16", "k=,v=f16",
                          "eden:bits=4,v=f16", "k=eden:bits=4,,v=f16"}) {
    const auto p = ParseKvPolicy(bad);
    ASSERT_FALSE(p) << bad;
    EXPECT_GT(p.error().message.size(), 20u) << bad;
  }
  for (const char* bad : {"", "f16", "=f16", "x=f16", "3-1=f16", "1/=f16", "1/a=f16", "-1=f16", "1=", "1=nosuch",
                          "0-=f16", "99999999999999999999=f16"}) {
    const std::vector<std::string> layers = {bad};
    EXPECT_FALSE(ParseKvPolicy("f16", layers)) << bad;
  }
}

}  // namespace
}  // namespace croquis::kvcache
