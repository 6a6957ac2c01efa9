#include "apps/run_batch.h"

#include <gtest/gtest.h>

namespace croquis::apps {
namespace {

TEST(ParsePrompts, Lines) {
  const auto p = ParsePrompts("one\n\n  two {\r\n \t\nthree", "file");
  ASSERT_TRUE(p);
  EXPECT_EQ(*p, (std::vector<std::string>{"one", "  two {", "three"}));
}

TEST(ParsePrompts, JsonLines) {
  const auto p = ParsePrompts("\n{\"prompt\": \"a\\nb\", \"id\": 7}\n\n{\"prompt\": \"\\u00e4\"}\n", "file");
  ASSERT_TRUE(p);
  EXPECT_EQ(*p, (std::vector<std::string>{"a\nb", "\xc3\xa4"}));
}

TEST(ParsePrompts, ErrorsNameTheLine) {
  for (const char* bad : {"{\"prompt\": \"a\"}\nplain", "{\"prompt\": \"a\"}\n{\"prompt\": 3}",
                          "{\"prompt\": \"a\"}\n{}", "{\"prompt\": \"a\"}\n[1]"}) {
    const auto p = ParsePrompts(bad, "file");
    ASSERT_FALSE(p) << bad;
    EXPECT_NE(p.error().message.find("file, line 2"), std::string::npos) << p.error().message;
  }
  for (const char* none : {"", "\n \n"}) EXPECT_FALSE(ParsePrompts(none, "file"));
}

}  // namespace
}  // namespace croquis::apps
