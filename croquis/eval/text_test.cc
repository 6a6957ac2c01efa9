#include "croquis/eval/text.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace croquis::eval {
namespace {

class TextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("croquis_text_test." + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::filesystem::path folder_;
};

TEST_F(TextTest, FoldersAreReadInOrderOfNames) {
  Write("b.txt", "second");
  Write("a.txt", "first");
  Write("notes.md", "no");
  const auto text = ReadText(folder_.string());
  ASSERT_TRUE(text);
  EXPECT_EQ(*text, "first\n\nsecond");
}

TEST_F(TextTest, ErrorsSayWhatWasGot) {
  EXPECT_EQ(ReadText((folder_ / "none").string()).error().code, Code::kNotFound);
  EXPECT_EQ(ReadText(folder_.string()).error().code, Code::kNotFound);  // no *.txt yet
  EXPECT_EQ(ReadFile(folder_.string()).error().code, Code::kInvalidArgument);
  EXPECT_FALSE(ReadText(Write("empty.txt", "")));
  const auto packed = ReadText(Write("books.tar.xz", std::string("\xFD"
                                                                 "7zXZ\0abc",
                                                                 9)));
  ASSERT_FALSE(packed);
  EXPECT_EQ(packed.error().code, Code::kUnsupported);
  EXPECT_NE(packed.error().message.find("tar xJf"), std::string::npos);
  EXPECT_EQ(ReadFile(Write("long.txt", "12345"), 4).error().code, Code::kOutOfRange);
  EXPECT_TRUE(ReadFile(Write("long.txt", "12345"), 5));
}

TEST(Text, PrefixesDoNotSplitCharacters) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC";  // a, e acute, euro sign
  EXPECT_EQ(TextPrefix(text, 0), "");
  EXPECT_EQ(TextPrefix(text, 2), "a");
  EXPECT_EQ(TextPrefix(text, 3), "a\xC3\xA9");
  EXPECT_EQ(TextPrefix(text, 5), "a\xC3\xA9");
  EXPECT_EQ(TextPrefix(text, 6), text);
  EXPECT_EQ(TextPrefix(text, 60), text);
}

TEST(Text, WindowsAreConsecutiveOrSpread) {
  EXPECT_EQ(WindowStarts(1000, 300, 0), (std::vector<int64_t>{0, 300, 600}));
  EXPECT_EQ(WindowStarts(1000, 100, 4), (std::vector<int64_t>{0, 200, 500, 700}));
  EXPECT_EQ(WindowStarts(1000, 100, 40).size(), 10u);
  EXPECT_TRUE(WindowStarts(99, 100, 0).empty());
  EXPECT_TRUE(WindowStarts(99, 0, 0).empty());
}

}  // namespace
}  // namespace croquis::eval
