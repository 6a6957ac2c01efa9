#include "croquis/model/unicode.h"

#include <gtest/gtest.h>
#include <unicode/utf8.h>

#include "croquis/base/rng.h"

namespace croquis::model {
namespace {

using Kind = Utf8Step::Kind;

TEST(Utf8, EveryCharacterComesBack) {
  for (char32_t rune = 0; rune <= 0x10FFFF; ++rune) {
    if (rune >= 0xD800 && rune < 0xE000) continue;
    std::string s;
    AppendUtf8(s, rune);
    const Utf8Step step = DecodeUtf8(s);
    ASSERT_EQ(step.kind, Kind::kCharacter) << std::hex << uint32_t(rune);
    ASSERT_EQ(step.length, s.size());
    ASSERT_EQ(step.rune, rune);
    if (s.size() > 1) {
      ASSERT_EQ(DecodeUtf8(s.substr(0, s.size() - 1)).kind, Kind::kIncomplete);
    }
    ASSERT_EQ(LastCharacter("\xE4\xBD\xA0" + s).rune, rune);
  }
}

// ICU decodes the same bytes: the same characters, and one replacement for each ill-formed part.
TEST(Utf8, RepairsAsIcuDoes) {
  const Stream stream{1, Purpose("test.utf8")};
  // Bytes that start, continue or break characters, so that every case of table 3-8 is met many times.
  constexpr uint8_t kBytes[] = {0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0,
                                0xE1, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF, 0x00, 0xE4, 0xBD, 0xED};
  for (uint64_t trial = 0; trial < 20000; ++trial) {
    std::string s;
    for (uint64_t i = 0; i < 12; ++i) s += char(kBytes[stream.U32(trial * 12 + i) % std::size(kBytes)]);
    std::string wanted;
    for (int32_t at = 0; at < int32_t(s.size());) {
      UChar32 c = 0;
      U8_NEXT_OR_FFFD(s.data(), at, int32_t(s.size()), c);
      AppendUtf8(wanted, char32_t(c));
    }
    ASSERT_EQ(ToUtf8(s), wanted);
    ASSERT_EQ(IsUtf8(s), s == wanted);
    ASSERT_TRUE(IsUtf8(wanted));
  }
}

TEST(Utf8, NormalForms) {
  EXPECT_EQ(*Normalize("cafe\u0301 \u212b", NormalForm::kNfc), "caf\u00e9 \u00c5");
  EXPECT_EQ(*Normalize("caf\u00e9", NormalForm::kNfd), "cafe\u0301");
  EXPECT_EQ(*Normalize("\ufb01\u00bd", NormalForm::kNfkc), "fi1\u20442");
  EXPECT_EQ(*Normalize("\uac01", NormalForm::kNfkd), "\u1100\u1161\u11a8");
  EXPECT_EQ(*Normalize("", NormalForm::kNfc), "");
}

TEST(ByteLevel, AlphabetIsABijection) {
  std::string all, letters;
  for (int b = 0; b < 256; ++b) {
    EXPECT_EQ(RuneToByte(ByteToRune(uint8_t(b))), b);
    all += char(b);
    AppendUtf8(letters, ByteToRune(uint8_t(b)));
  }
  EXPECT_EQ(BytesOfByteLevel(letters), all);
  EXPECT_EQ(BytesOfByteLevel("\u0120Hello"), " Hello");
  bool mapped = true;
  EXPECT_EQ(BytesOfByteLevel("a b", &mapped), "a b");  // a space is no letter of the alphabet
  EXPECT_FALSE(mapped);
  EXPECT_EQ(RuneToByte(0x10FFFF), -1);
}

TEST(Unicode, ClassesOfCharacters) {
  for (const char32_t c : {U' ', U'\n', U'\u0085', U'\u00a0', U'\u2003', U'\u3000'}) EXPECT_TRUE(IsWhiteSpace(c));
  for (const char32_t c : {U'a', U'\u180e', U'\u200b'}) EXPECT_FALSE(IsWhiteSpace(c));
  for (const char32_t c : {U'a', U'_', U'7', U'\u4f60', U'\u0301', U'\u200d'}) EXPECT_TRUE(IsWordCharacter(c));
  for (const char32_t c : {U'-', U' ', U'\u00bd', U'\u3002'}) EXPECT_FALSE(IsWordCharacter(c));
}

}  // namespace
}  // namespace croquis::model
