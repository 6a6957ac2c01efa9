// Text to token ids and back, for SentencePiece and byte-level BPE vocabularies.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

// What one token contributes to running text.
struct TokenText {
  enum class Kind : uint8_t {
    kSkip,  // special tokens and ids outside the vocabulary: nothing
    kText,  // `bytes`; in byte-level vocabularies possibly a part of a character
    kByte   // one byte of a character that the vocabulary lacks ("<0xE4>")
  } kind = Kind::kSkip;
  std::string_view bytes;  // lives as long as the tokenizer
};

// How the reference library of a vocabulary joins tokens to text.
struct TextRule {
  enum class BadBytes : uint8_t {
    kPerSequence,  // one U+FFFD for each maximal ill-formed part (byte-level BPE)
    kPerByte,      // one for each byte that belongs to no character (SentencePiece)
    kWholeRun      // an ill-formed run of kByte tokens is replaced as a whole, one for each byte (`tokenizers`)
  } bad_bytes = BadBytes::kPerSequence;
  int64_t strip_spaces = 0;  // leading spaces of the whole text that are removed, at most
  bool first_lasts = false;  // tokens count as the first until one gives text, not only the very first one
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Loads from a Hugging Face folder: tokenizer.json (BPE with byte-level or SentencePiece-style pre-tokenisation),
  // else tokenizer.model (SentencePiece), else vocab.json + merges.txt; special tokens and bos/eos also from
  // tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json.
  static Result<std::unique_ptr<Tokenizer>> FromFolder(const std::string& folder);

  // One more than the highest id; ids without a token decode to nothing.
  virtual int64_t VocabSize() const = 0;
  // Ids of `text` (any bytes; invalid UTF-8 becomes U+FFFD as in the reference libraries). Special tokens written in
  // the text are parsed only when `parse_special`; added tokens that are not special always are. BOS is added when
  // `add_special` and the vocabulary asks for it. Errors: text on which a pre-tokenisation pattern gives up.
  virtual Result<std::vector<int32_t>> Encode(std::string_view text, bool add_special = true,
                                              bool parse_special = false) const = 0;
  // Text of a sequence as the reference libraries decode it (special tokens skipped, no "clean-up" of spaces).
  virtual std::string Decode(std::span<const int32_t> ids) const = 0;
  virtual int32_t Bos() const = 0;                          // -1 when there is none
  virtual std::span<const int32_t> StopTokens() const = 0;  // eos and its like

  // The parts that Decode and StreamDecoder are made of. `first`: no token but skipped ones came before
  // (see TextRule::first_lasts); some vocabularies drop the space of the first word.
  virtual TokenText Text(int32_t id, bool first = false) const = 0;
  virtual TextRule Rule() const = 0;
  // Bytes of one token in running text (may be part of a character); empty for special tokens.
  std::string TokenBytes(int32_t id) const { return std::string(Text(id).bytes); }
};

// Streaming: feed ids one at a time, get text out that never ends inside a character. The concatenation of
// all outputs and Flush equals Decode of all ids.
class StreamDecoder {
 public:
  // `continues`: the text goes on from earlier text, so its leading space is kept.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool continues = false)
      : tokenizer_(&tokenizer), first_(!continues), strip_(continues ? 0 : tokenizer.Rule().strip_spaces) {}
  std::string Push(int32_t id);
  std::string Flush();  // what is left; incomplete characters become U+FFFD. The decoder goes on after it.

 private:
  std::string Strip(std::string text);

  const Tokenizer* tokenizer_;
  std::string pending_;
  bool first_;
  int64_t strip_;  // leading spaces that may still be removed
};

}  // namespace croquis::model
