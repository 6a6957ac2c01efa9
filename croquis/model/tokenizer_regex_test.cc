#include "croquis/model/tokenizer_regex.h"

#include <gtest/gtest.h>

#include "croquis/model/tokenizer_bpe.h"

namespace croquis::model {
namespace {

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::Make(pattern);
  EXPECT_TRUE(regex) << (regex ? "" : regex.error().message);
  std::vector<std::pair<size_t, size_t>> ranges;
  EXPECT_TRUE(regex->FindAll(text, ranges));
  std::vector<std::string> out;
  for (const auto& [begin, end] : ranges) out.emplace_back(text.substr(begin, end - begin));
  return out;
}

using Words = std::vector<std::string>;

TEST(TokenizerRegex, PatternsOfVocabularies) {
  EXPECT_EQ(Matches(kGpt2Pattern, "It's 12 o'clock,  now\n\n x"),
            (Words{"It", "'s", " 12", " o", "'", "clock", ",", " ", " now", "\n\n", " x"}));
  EXPECT_EQ(Matches(kLlama3Pattern, "WE'LL 12345 \u00e9t\u00e9\r\n\r\nx"),
            (Words{"WE", "'LL", " ", "123", "45", " \u00e9t\u00e9", "\r\n\r\n", "x"}));
  EXPECT_EQ(Matches(kQwen2Pattern, "a123 \u4f60\u597d!!\n"), (Words{"a", "1", "2", "3", " \u4f60\u597d", "!!\n"}));
  EXPECT_EQ(Matches(kTekkenPattern, "HTTPServer camelCase"), (Words{"HTTPServer", " camel", "Case"}));
}

TEST(TokenizerRegex, WhiteSpaceAndWordsAsUnicodeHasThem) {
  EXPECT_EQ(Matches("\\s", "\u180e\u0085\u3000x"), (Words{"\u0085", "\u3000"}));  // U+180E is none since Unicode 6.3
  EXPECT_EQ(Matches("[^\\s]+", "a\u2003b"), (Words{"a", "b"}));
  EXPECT_EQ(Matches("\\w+", "e\u0301t\u203fu-v"), (Words{"e\u0301t\u203fu", "v"}));
  EXPECT_EQ(Matches("[\\w-]+", "e\u0301-v w"), (Words{"e\u0301-v", "w"}));
  EXPECT_EQ(Matches("\\u0041|\\x{42}", "ABC"), (Words{"A", "B"}));
  EXPECT_EQ(Matches("[]a]", "]"), (Words{"]"}));
}

TEST(TokenizerRegex, EmptyMatchesAreLeftOut) {
  EXPECT_EQ(Matches("a*", "baac\u4f60"), (Words{"aa"}));
  EXPECT_EQ(Matches("x*", "\u4f60"), Words{});
  EXPECT_EQ(Matches("", "abc"), Words{});
}

TEST(TokenizerRegex, LiteralsAreQuoted) {
  const auto regex = Regex::Literal(".*\u2581[");
  ASSERT_TRUE(regex);
  std::vector<std::pair<size_t, size_t>> ranges;
  ASSERT_TRUE(regex->FindAll("xx.*\u2581[", ranges));
  ASSERT_EQ(ranges.size(), 1u);
  EXPECT_EQ(ranges[0].first, 2u);
  EXPECT_FALSE(Regex::Literal(""));
}

TEST(TokenizerRegex, WhatReadsDifferentlyIsRefusedByName) {
  const std::pair<const char*, const char*> kCases[] = {{"[a[b]]", "class inside a class"},
                                                        {"[a&&b]", "'&&'"},
                                                        {"\\h", "\\h"},
                                                        {"[\\W]", "\\W"},
                                                        {"[[:alpha:]]", "POSIX"},
                                                        {"(", "PCRE2"},
                                                        {"a\\", "backslash"},
                                                        {"[a", "']'"},
                                                        {"\\R", "\\R"},
                                                        {"\\C", "\\C"}};
  for (const auto& [pattern, named] : kCases) {
    const auto regex = Regex::Make(pattern);
    ASSERT_FALSE(regex) << pattern;
    EXPECT_NE(regex.error().message.find(named), std::string::npos) << pattern << ": " << regex.error().message;
  }
  EXPECT_FALSE(Regex::Make("\xFF"));
  EXPECT_FALSE(Regex::Make(std::string(1 << 20, 'a')));
}

// Exponentially many ways to match: PCRE2 stops at its limit, and that is an error, not a silent end of the text.
TEST(TokenizerRegex, BacktrackingIsBounded) {
  const auto regex = Regex::Make("(?:a|aa)+$");
  ASSERT_TRUE(regex);
  std::vector<std::pair<size_t, size_t>> ranges;
  const Status status = regex->FindAll(std::string(200, 'a') + "c", ranges);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kOutOfRange);
}

TEST(TokenizerRegex, LongRuns) {
  const std::string spaces(1 << 20, ' '), letters(1 << 20, 'a');
  for (const std::string_view pattern : {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern, kTekkenPattern}) {
    const Words words = Matches(pattern, spaces + "x");
    ASSERT_EQ(words.size(), 2u);
    EXPECT_EQ(words[1], " x");
    EXPECT_EQ(Matches(pattern, letters), Words{letters});
  }
}

}  // namespace
}  // namespace croquis::model
