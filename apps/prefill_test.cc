// When run reads a prompt whole.
#include "apps/prefill.h"

#include <gtest/gtest.h>

namespace croquis::apps {
namespace {

TEST(Prefill, PromptsAreReadWholeWhereNothingSpeaksAgainstIt) {
  const auto kv = kvcache::ParseKvPolicy("eden:bits=4");
  ASSERT_TRUE(kv);
  const ReadingFacts good{.kv = &*kv, .restored = false, .tokens = 257, .chunk = 256, .bytes = 500, .available = 1000};
  EXPECT_EQ(WhyChunks(good), "");
  ReadingFacts f = good;
  f.bytes = 501;
  EXPECT_NE(WhyChunks(f).find("501 B"), std::string::npos) << WhyChunks(f);
  f = good, f.tokens = 256;
  EXPECT_NE(WhyChunks(f), "");
  f = good, f.restored = true;
  EXPECT_NE(WhyChunks(f).find("restored"), std::string::npos);
  for (const char* evicts : {"h2o", "window", "subgen:memory=50"}) {
    const auto policy = kvcache::ParseKvPolicy(evicts);
    ASSERT_TRUE(policy);
    f = good, f.kv = &*policy;
    EXPECT_NE(WhyChunks(f).find("evicts"), std::string::npos) << evicts;
  }
  const std::string layers[] = {"0=h2o"};
  const auto some = kvcache::ParseKvPolicy("f16", layers);
  ASSERT_TRUE(some);
  f = good, f.kv = &*some;
  EXPECT_NE(WhyChunks(f).find("evicts"), std::string::npos);
}

}  // namespace
}  // namespace croquis::apps
