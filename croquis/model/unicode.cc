#include "croquis/model/unicode.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>

#include <array>
#include <limits>

namespace croquis::model {

Utf8Step DecodeUtf8(std::string_view s) {
  using Kind = Utf8Step::Kind;
  const auto byte = [&](size_t i) { return uint8_t(s[i]); };
  const uint8_t b0 = byte(0);
  if (b0 < 0x80) return {Kind::kCharacter, 1, b0};
  if (b0 < 0xC2 || b0 > 0xF4) return {Kind::kBad, 1, 0};
  const size_t need = b0 < 0xE0 ? 2 : b0 < 0xF0 ? 3 : 4;
  // The second byte's range is narrower after some first bytes (overlong forms, surrogates, beyond U+10FFFF).
  const uint8_t low = b0 == 0xE0 ? 0xA0 : b0 == 0xF0 ? 0x90 : 0x80, high = b0 == 0xED ? 0x9F : b0 == 0xF4 ? 0x8F : 0xBF;
  char32_t rune = b0 & (0xFFu >> (need + 1));
  for (size_t i = 1; i < need; ++i) {
    if (i == s.size()) return {Kind::kIncomplete, i, 0};
    const uint8_t b = byte(i);
    if (b < (i == 1 ? low : 0x80) || b > (i == 1 ? high : 0xBF)) return {Kind::kBad, i, 0};
    rune = rune << 6 | (b & 0x3F);
  }
  return {Kind::kCharacter, need, rune};
}

void AppendUtf8(std::string& out, char32_t rune) {
  if (rune < 0x80) {
    out += char(rune);
  } else if (rune < 0x800) {
    out += {char(0xC0 | rune >> 6), char(0x80 | (rune & 0x3F))};
  } else if (rune < 0x10000) {
    out += {char(0xE0 | rune >> 12), char(0x80 | (rune >> 6 & 0x3F)), char(0x80 | (rune & 0x3F))};
  } else {
    out += {char(0xF0 | rune >> 18), char(0x80 | (rune >> 12 & 0x3F)), char(0x80 | (rune >> 6 & 0x3F)),
            char(0x80 | (rune & 0x3F))};
  }
}

bool IsUtf8(std::string_view s) {
  while (!s.empty()) {
    const Utf8Step step = DecodeUtf8(s);
    if (step.kind != Utf8Step::Kind::kCharacter) return false;
    s.remove_prefix(step.length);
  }
  return true;
}

std::string ToUtf8(std::string_view s) {
  std::string out;
  out.reserve(s.size());
  while (!s.empty()) {
    const Utf8Step step = DecodeUtf8(s);
    out += step.kind == Utf8Step::Kind::kCharacter ? s.substr(0, step.length) : kReplacementCharacter;
    s.remove_prefix(step.length);
  }
  return out;
}

bool IsWhiteSpace(char32_t rune) { return u_isUWhiteSpace(UChar32(rune)); }

bool IsWordCharacter(char32_t rune) {
  const UChar32 c = UChar32(rune);
  return u_isUAlphabetic(c) || (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

Utf8Step LastCharacter(std::string_view s) {
  size_t at = s.size() - 1;
  while (at > 0 && (uint8_t(s[at]) & 0xC0) == 0x80) --at;
  return DecodeUtf8(s.substr(at));
}

Result<std::string> Normalize(std::string_view s, NormalForm form) {
  if (s.size() > size_t(std::numeric_limits<int32_t>::max()) / 4) {
    return OutOfRange("text to normalise: " + std::to_string(s.size()) + " bytes; at most 512 MiB at a time");
  }
  UErrorCode code = U_ZERO_ERROR;
  const icu::Normalizer2* normalizer = form == NormalForm::kNfc    ? icu::Normalizer2::getNFCInstance(code)
                                       : form == NormalForm::kNfd  ? icu::Normalizer2::getNFDInstance(code)
                                       : form == NormalForm::kNfkc ? icu::Normalizer2::getNFKCInstance(code)
                                                                   : icu::Normalizer2::getNFKDInstance(code);
  std::string out;
  if (U_SUCCESS(code)) {
    const icu::StringPiece piece(s.data(), int32_t(s.size()));
    if (normalizer->isNormalizedUTF8(piece, code)) return std::string(s);
    out.reserve(s.size());
    icu::StringByteSink<std::string> sink(&out);
    normalizer->normalizeUTF8(0, piece, sink, nullptr, code);
  }
  if (U_FAILURE(code)) return Internal(std::string("ICU could not normalise the text: ") + u_errorName(code));
  return out;
}

namespace {

constexpr bool PrintableByte(int b) {
  return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

struct ByteAlphabet {
  std::array<char32_t, 256> rune{};
  std::array<int16_t, 0x144> byte{};  // the highest character is U+0143
};

constexpr ByteAlphabet MakeByteAlphabet() {
  ByteAlphabet t;
  t.byte.fill(-1);
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    t.rune[size_t(b)] = PrintableByte(b) ? char32_t(b) : next++;
    t.byte[t.rune[size_t(b)]] = int16_t(b);
  }
  return t;
}

constexpr ByteAlphabet kAlphabet = MakeByteAlphabet();
static_assert(kAlphabet.rune[' '] == 0x120 && kAlphabet.rune[0xAD] == 0x143 && kAlphabet.byte[0x10A] == '\n');

}  // namespace

char32_t ByteToRune(uint8_t byte) { return kAlphabet.rune[byte]; }

int RuneToByte(char32_t rune) { return rune < kAlphabet.byte.size() ? kAlphabet.byte[rune] : -1; }

std::string BytesOfByteLevel(std::string_view s, bool* mapped) {
  std::string out;
  out.reserve(s.size());
  if (mapped != nullptr) *mapped = true;
  for (std::string_view rest = s; !rest.empty();) {
    const Utf8Step step = DecodeUtf8(rest);
    const int byte = step.kind == Utf8Step::Kind::kCharacter ? RuneToByte(step.rune) : -1;
    if (byte < 0) {
      if (mapped != nullptr) *mapped = false;
      return std::string(s);
    }
    out += char(byte);
    rest.remove_prefix(step.length);
  }
  return out;
}

}  // namespace croquis::model
