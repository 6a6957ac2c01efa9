#include "croquis/model/tokenizer_base.h"

#include <algorithm>

#include "croquis/model/unicode.h"

namespace croquis::model {

void VocabTable::Set(int32_t id, TokenText::Kind kind, std::string_view bytes) {
  entries_[size_t(id)] = {arena_.size(), uint32_t(bytes.size()), kind};
  arena_ += bytes;
}

void VocabTable::SetFirst(int32_t id, std::string_view first_bytes) {
  first_[id] = {arena_.size(), uint32_t(first_bytes.size()), entries_[size_t(id)].kind};
  arena_ += first_bytes;
}

void VocabTable::SetPiece(int32_t id, std::string_view text, bool drop_first_space) {
  Set(id, TokenText::Kind::kText, text);
  if (drop_first_space && text.starts_with(' ')) SetFirst(id, text.substr(1));
}

TokenText VocabTable::Get(int32_t id, bool first) const {
  if (id < 0 || id >= size()) return {};
  const Entry* entry = &entries_[size_t(id)];
  if (first && !first_.empty()) {
    if (const auto it = first_.find(id); it != first_.end()) entry = &it->second;
  }
  return {entry->kind, std::string_view(arena_).substr(entry->begin, entry->length)};
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), token_at_(1, -1) {
  std::erase_if(tokens_, [](const AddedToken& t) { return t.content.empty(); });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (const char c : tokens_[i].content) {
      const auto [it, fresh] = edges_.try_emplace(uint64_t(node) << 8 | uint8_t(c), uint32_t(token_at_.size()));
      if (fresh) token_at_.push_back(-1);
      node = it->second;
    }
    token_at_[node] = int32_t(i);
    first_byte_.set(uint8_t(tokens_[i].content[0]));
  }
}

const AddedToken* AddedTokenMatcher::LongestAt(std::string_view text) const {
  int32_t found = -1;
  uint32_t node = 0;
  for (const char c : text) {
    const auto it = edges_.find(uint64_t(node) << 8 | uint8_t(c));
    if (it == edges_.end()) break;
    node = it->second;
    if (token_at_[node] >= 0) found = token_at_[node];
  }
  return found < 0 ? nullptr : &tokens_[size_t(found)];
}

void AddedTokenMatcher::Split(std::string_view text, bool parse_special, std::vector<Part>& out) const {
  size_t done = 0;  // text before it is in `out`
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    const AddedToken* token = first_byte_[uint8_t(text[at])] ? LongestAt(text.substr(at)) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->special && !parse_special) continue;
    if (token->single_word) {
      const bool word_before = begin > 0 && IsWordCharacter(LastCharacter(text.substr(0, begin)).rune);
      const bool word_after = end < text.size() && IsWordCharacter(DecodeUtf8(text.substr(end)).rune);
      if (word_before || word_after) continue;
    }
    while (token->lstrip && begin > done) {
      const Utf8Step last = LastCharacter(text.substr(0, begin));
      if (!IsWhiteSpace(last.rune)) break;
      begin -= last.length;
    }
    while (token->rstrip && end < text.size()) {
      const Utf8Step next = DecodeUtf8(text.substr(end));
      if (!IsWhiteSpace(next.rune)) break;
      end += next.length;
    }
    begin = std::max(begin, done);
    if (begin > done) out.push_back({done, begin, -1});
    if (end > begin) out.push_back({begin, end, token->id});
    done = std::max(done, end);
  }
  if (done < text.size()) out.push_back({done, text.size(), -1});
}

Result<std::vector<int32_t>> VocabTokenizer::Encode(std::string_view text, bool add_special, bool parse_special) const {
  if (text.size() > kMaxText) {
    return OutOfRange("text of " + std::to_string(text.size()) + " bytes; tokenizers take at most " +
                      std::to_string(kMaxText) + ": split it");
  }
  std::vector<int32_t> out;
  out.reserve(text.size() / 4 + 8);
  if (add_special) out = parts_.prefix;
  if (IsUtf8(text)) {
    CROQUIS_CHECK_OK(EncodeText(text, parse_special, out));
  } else {
    const std::string repaired = ToUtf8(text);
    if (repaired.size() > kMaxText) return OutOfRange("text too long after its invalid UTF-8 is replaced: split it");
    CROQUIS_CHECK_OK(EncodeText(repaired, parse_special, out));
  }
  if (add_special) out.insert(out.end(), parts_.suffix.begin(), parts_.suffix.end());
  return out;
}

std::string VocabTokenizer::Decode(std::span<const int32_t> ids) const {
  StreamDecoder decoder(*this);
  std::string out;
  for (const int32_t id : ids) out += decoder.Push(id);
  return out + decoder.Flush();
}

bool MarksOnlyLead(std::string_view token, std::string_view mark) {
  while (token.starts_with(mark)) token.remove_prefix(mark.size());
  return token.find(mark) == std::string_view::npos;
}

size_t PartBeforeMark(std::string_view text, std::string_view mark, size_t least) {
  for (size_t at = text.find(mark, std::max<size_t>(least, 1)); at != std::string_view::npos;
       at = text.find(mark, at + 1)) {
    if (!text.substr(0, at).ends_with(mark)) return at;
  }
  return text.size();
}

int ByteOfByteToken(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  out.reserve(text.size());
  for (;;) {
    const size_t at = from.empty() ? std::string_view::npos : text.find(from);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += to;
    text.remove_prefix(at + from.size());
  }
}

}  // namespace croquis::model
