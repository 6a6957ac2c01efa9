// UTF-8 and Unicode normalisation for the tokenizers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "croquis/base/result.h"

namespace croquis::model {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";             // U+2581, SentencePiece's visible space

// What stands at the start of a byte string.
struct Utf8Step {
  enum class Kind : uint8_t {
    kCharacter,  // a well-formed character of `length` bytes
    kBad,        // a maximal ill-formed part of `length` bytes (Unicode 15, section 3.9, table 3-8)
    kIncomplete  // the string ends inside a character that is well-formed so far; `length` bytes are left
  } kind = Kind::kBad;
  size_t length = 0;
  char32_t rune = 0;
};
// `s` must not be empty.
Utf8Step DecodeUtf8(std::string_view s);

void AppendUtf8(std::string& out, char32_t rune);
bool IsUtf8(std::string_view s);
// Every maximal ill-formed part becomes one U+FFFD.
std::string ToUtf8(std::string_view s);

bool IsWhiteSpace(char32_t rune);
// Letters, marks, digits, connectors and joiners: \w of Rust's regular expressions.
bool IsWordCharacter(char32_t rune);
// The last character of well-formed UTF-8 that is not empty.
Utf8Step LastCharacter(std::string_view s);

enum class NormalForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
// The normal form of well-formed UTF-8, by ICU (its Unicode version).
Result<std::string> Normalize(std::string_view s, NormalForm form);

// GPT-2's bijection of the 256 bytes with printable characters: the printable bytes of Latin-1 are themselves, the
// others are U+0100 upwards in order.
char32_t ByteToRune(uint8_t byte);
// The inverse; -1 for characters that stand for no byte.
int RuneToByte(char32_t rune);
// The bytes that a string of such characters stands for; the string itself if one of them stands for no byte
// (`mapped` then says false).
std::string BytesOfByteLevel(std::string_view s, bool* mapped = nullptr);

}  // namespace croquis::model
