// Reads the stages of a tokenizer.json around its model. Every error names what is not supported.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "croquis/model/tokenizer_base.h"
#include "croquis/model/tokenizer_json_util.h"
#include "croquis/model/tokenizer_pipeline.h"

namespace croquis::model {

Result<std::vector<NormalizerStep>> ParseNormalizers(const Json* normalizer);  // null: none

struct PreTokenizers {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;  // words are then spelled in the byte alphabet
};
Result<PreTokenizers> ParsePreTokenizers(const Json* pre_tokenizer);

// What a decoder makes of each token. `tokenizers` decodes token by token up to a Fuse; the decoders of BPE models can
// all be written as a map of tokens and a rule for the joined text.
struct DecoderPlan {
  enum class Join : uint8_t { kSpaces, kByteLevel, kMetaspace, kPlain } join = Join::kSpaces;
  std::string mark;                                           // kMetaspace: what stands for a space
  bool drop_first_marks = false;                              // kMetaspace: the first token's marks are no spaces
  std::vector<std::pair<std::string, std::string>> replaces;  // kPlain
  bool byte_fallback = false;                                 // kPlain: "<0xE4>" is a byte
  int64_t strip_token_spaces = 0;                             // kPlain: leading spaces removed from each token
  int64_t strip_spaces = 0;                                   // and from the joined text

  TextRule Rule() const;
  // Enters the token's text into the table.
  void Fill(int32_t id, const std::string& token, VocabTable& table) const;
};
Result<DecoderPlan> ParseDecoder(const Json* decoder);

// Ids added around a text by a post-processor.
struct Frame {
  std::vector<int32_t> prefix, suffix;
};
Result<Frame> ParsePostProcessor(const Json* post_processor);

}  // namespace croquis::model
