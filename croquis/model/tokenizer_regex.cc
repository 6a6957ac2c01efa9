#include "croquis/model/tokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

pcre2_code* Raw(auto* code) { return reinterpret_cast<pcre2_code*>(code); }

std::string Pcre2Message(int code) {
  PCRE2_UCHAR8 text[256] = {};
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

Error NotTranslated(std::string_view pattern, const std::string& what) {
  return Unsupported("pre-tokenisation pattern '" + std::string(pattern.substr(0, 200)) + "': " + what +
                     " is not supported");
}

bool IsWordOrDigit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// What an escape that means something else to PCRE2 becomes; empty if it can stay as it is.
std::string TranslateEscape(char c, bool in_class) {
  switch (c) {
    case 's':
      return "\\p{White_Space}";
    case 'S':
      return "\\P{White_Space}";
    case 'w':
      return in_class ? "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}" : "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    case 'W':
      return in_class ? "" : "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    case 'd':
      return "\\p{Nd}";
    case 'D':
      return "\\P{Nd}";
    case 'v':
      return "\\x{0b}";
    default:
      return "";
  }
}

// Escapes of letters with the same meaning in all three libraries.
constexpr std::string_view kSameEscapes = "pPnrtfaebBAzZ";

}  // namespace

Result<std::string> TranslateRegex(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  size_t class_start = 0;  // position of the first member, where ']' is a plain character
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (i + 1 == pattern.size()) return NotTranslated(pattern, "a backslash at the end");
      const char e = pattern[++i];
      if (const std::string t = TranslateEscape(e, in_class); !t.empty()) {
        out += t;
      } else if (e == 'u') {
        if (pattern.size() - i < 5) return NotTranslated(pattern, "'\\u' without four digits");
        out += "\\x{" + std::string(pattern.substr(i + 1, 4)) + "}";
        i += 4;
      } else if (e == 'x' && i + 1 < pattern.size() && pattern[i + 1] == '{') {
        out += "\\x";
      } else if (IsWordOrDigit(e) && kSameEscapes.find(e) == std::string_view::npos) {
        return NotTranslated(pattern, std::string("the escape '\\") + e + "'");
      } else {
        out += {'\\', e};
      }
      continue;
    }
    if (in_class) {
      if (c == '[') {
        const bool posix = i + 1 < pattern.size() && pattern[i + 1] == ':';
        return NotTranslated(pattern, posix ? "a POSIX class" : "a class inside a class");
      }
      if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') return NotTranslated(pattern, "'&&' in a class");
      if (c == ']' && i > class_start) in_class = false;
    } else if (c == '[') {
      in_class = true;
      class_start = i + 1;
      if (class_start < pattern.size() && pattern[class_start] == '^') ++class_start;
    }
    out += c;
  }
  if (in_class) return NotTranslated(pattern, "a class without its ']'");
  return out;
}

void Regex::Free::operator()(Code* code) const { pcre2_code_free(Raw(code)); }

Result<Regex> Regex::Compile(std::string_view pattern, const std::string& translated) {
  // A pattern of a vocabulary is a few hundred bytes; the limit keeps a hostile one from taking long to compile.
  if (translated.size() > 65536) {
    return Unsupported("pre-tokenisation pattern of " + std::to_string(translated.size()) + " bytes; at most 65536");
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    return Unsupported("pre-tokenisation pattern '" + std::string(pattern.substr(0, 200)) +
                       "': " + Pcre2Message(error) + " (at byte " + std::to_string(offset) + " of its PCRE2 form)");
  }
  // Where the compiler is not available, matching is interpreted: the same results, slower.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return Regex(std::string(pattern), reinterpret_cast<Code*>(code));
}

Result<Regex> Regex::Make(std::string_view pattern) {
  if (!IsUtf8(pattern)) return Corrupt("pre-tokenisation pattern: not UTF-8");
  CROQUIS_TRY(const std::string translated, TranslateRegex(pattern));
  return Compile(pattern, translated);
}

Result<Regex> Regex::Literal(std::string_view text) {
  if (text.empty() || !IsUtf8(text)) return Corrupt("pre-tokenisation pattern: an empty string, or not UTF-8");
  std::string quoted;
  for (const char c : text) {
    if (uint8_t(c) < 0x80 && !IsWordOrDigit(c) && c != '\0') quoted += '\\';
    quoted += c == '\0' ? "\\x{0}" : std::string(1, c);
  }
  return Compile(text, quoted);
}

Status Regex::FindAll(std::string_view text, std::vector<std::pair<size_t, size_t>>& out) const {
  struct MatchData {
    pcre2_match_data* data;
    ~MatchData() { pcre2_match_data_free(data); }
  };
  const pcre2_code* code = Raw(code_.get());
  const MatchData match{pcre2_match_data_create(1, nullptr)};
  if (match.data == nullptr) return NoMemory("no memory for matching a pre-tokenisation pattern");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  for (size_t at = 0; at < text.size();) {
    // The text was checked once by the caller; checking it from the start on every call would be quadratic.
    int rc = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, match.data, nullptr);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its state on the heap
      rc = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match.data, nullptr);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return OutOfRange("pre-tokenisation gave up at byte " + std::to_string(at) + " of a text of " +
                        std::to_string(text.size()) + " bytes (" + Pcre2Message(rc) + "): split the text");
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.data);
    const size_t begin = range[0], end = range[1];
    if (end > begin && begin >= at) {
      out.emplace_back(begin, end);
      at = end;
    } else {  // an empty match (or \K trickery): go on after the next character
      at = std::max(at, begin);
      at += at < text.size() ? DecodeUtf8(text.substr(at)).length : 1;
    }
  }
  return {};
}

}  // namespace croquis::model
