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

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Loads from a Hugging Face folder: tokenizer.json (BPE with byte-level or SentencePiece-style pre-tokenisation),
  // else tokenizer.model (SentencePiece), else vocab.json + merges.txt; special tokens and bos/eos also from
  // tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json.
  static Result<std::unique_ptr<Tokenizer>> FromFolder(const std::string& folder);

  virtual int64_t VocabSize() const = 0;
  // Ids of `text` (any bytes; invalid UTF-8 becomes U+FFFD as in the reference libraries). Special tokens written in the
  // text are parsed only when `parse_special`. BOS is added when `add_special` and the vocabulary asks for it.
  virtual Result<std::vector<int32_t>> Encode(std::string_view text, bool add_special = true,
                                              bool parse_special = false) const = 0;
  // Bytes of one token in running text (may be part of a character); empty for special tokens.
  virtual std::string TokenBytes(int32_t id) const = 0;
  // Text of a sequence as the reference libraries decode it (special tokens skipped).
  virtual std::string Decode(std::span<const int32_t> ids) const = 0;
  virtual int32_t Bos() const = 0;                      // -1 when there is none
  virtual std::span<const int32_t> StopTokens() const = 0;  // eos and its like
};

// Streaming: feed ids one at a time, get text out that never ends inside a character. The concatenation of
// all outputs and Flush equals Decode of all ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  std::string Push(int32_t id);
  std::string Flush();  // what is left; incomplete characters become U+FFFD

 private:
  const Tokenizer* tokenizer_;
  std::string pending_;
  bool first_ = true;
};

}  // namespace croquis::model
