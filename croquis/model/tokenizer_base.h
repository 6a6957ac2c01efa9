// What all tokenizers share: the table of tokens, added tokens found in text, decoding.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/model/tokenizer.h"

namespace croquis::model {

// The text of every token, in one piece of memory.
class VocabTable {
 public:
  // Room for ids below `size`; all are kSkip.
  explicit VocabTable(int64_t size = 0) : entries_(size_t(size)) {}
  // Ids are below size(). `first_bytes`: what stands at the start of a text instead of `bytes`.
  void Set(int32_t id, TokenText::Kind kind, std::string_view bytes);
  void SetFirst(int32_t id, std::string_view first_bytes);
  // A piece whose first space is dropped at the start of a text, being the prefix that encoding put there.
  void SetPiece(int32_t id, std::string_view text, bool drop_first_space);
  TokenText Get(int32_t id, bool first) const;
  int64_t size() const { return int64_t(entries_.size()); }

 private:
  struct Entry {
    uint64_t begin = 0;
    uint32_t length = 0;
    TokenText::Kind kind = TokenText::Kind::kSkip;
  };
  std::string arena_;
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, Entry> first_;  // only those that differ
};

// The most ids that a vocabulary may have beyond its count of tokens: gaps cost memory that no file pays for.
inline constexpr int64_t kMaxIdGap = 1 << 20;

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;                 // parsed only on request, skipped when decoding
  bool single_word = false;             // only between characters that are not of words
  bool lstrip = false, rstrip = false;  // takes the white space on that side
  bool normalized = false;              // looked for after normalisation, not before
};

// Finds added tokens in text, leftmost first and the longest of those, as `tokenizers` does.
class AddedTokenMatcher {
 public:
  struct Part {
    size_t begin = 0, end = 0;
    int32_t id = -1;  // -1: text
  };
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);
  bool empty() const { return tokens_.empty(); }
  // Appends parts that cover `text` (well-formed UTF-8) in order; none is empty. Special tokens that are not parsed are
  // passed over as a whole, so that no other token is found inside them.
  void Split(std::string_view text, bool parse_special, std::vector<Part>& out) const;

 private:
  const AddedToken* LongestAt(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<uint64_t, uint32_t> edges_;  // (node << 8 | byte) -> node of the trie
  std::vector<int32_t> token_at_;                 // by node; -1: none
  std::bitset<256> first_byte_;
};

// What a loader finds out beside the way of encoding.
struct TokenizerParts {
  VocabTable table;
  TextRule rule;
  int32_t bos = -1;
  std::vector<int32_t> prefix, suffix;  // added around a text with add_special
  std::vector<int32_t> stops;
};

class VocabTokenizer : public Tokenizer {
 public:
  explicit VocabTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}
  int64_t VocabSize() const final { return parts_.table.size(); }
  Result<std::vector<int32_t>> Encode(std::string_view text, bool add_special, bool parse_special) const final;
  std::string Decode(std::span<const int32_t> ids) const final;
  int32_t Bos() const final { return parts_.bos; }
  std::span<const int32_t> StopTokens() const final { return parts_.stops; }
  TokenText Text(int32_t id, bool first) const final { return parts_.table.Get(id, first); }
  TextRule Rule() const final { return parts_.rule; }

 protected:
  // Appends the ids of well-formed UTF-8 of at most kMaxText bytes.
  virtual Status EncodeText(std::string_view text, bool parse_special, std::vector<int32_t>& out) const = 0;
  static constexpr size_t kMaxText = size_t{1} << 29;  // three times that, after escaping, still has 31-bit offsets

 private:
  TokenizerParts parts_;
};

// True when a token holds `mark` (what stands for a space) only at its start. If that holds for a whole vocabulary, no
// token reaches over the place before a mark that follows something else, so text can be cut there and its parts
// encoded one by one: the same ids from small work lists, which is several times faster than from one as long as the
// text.
bool MarksOnlyLead(std::string_view token, std::string_view mark);
// The length of the first part of such text, at least `least` bytes unless the text ends before.
size_t PartBeforeMark(std::string_view text, std::string_view mark, size_t least);

// "0xE4" of a token "<0xE4>", or -1.
int ByteOfByteToken(std::string_view token);
// `text` with every `from` replaced by `to`.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

}  // namespace croquis::model
