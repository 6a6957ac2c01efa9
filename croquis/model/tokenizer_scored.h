// SentencePiece's BPE from pieces with scores alone, as GGUF and llama2.c's files carry it.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "croquis/model/bpe.h"
#include "croquis/model/tokenizer_base.h"

namespace croquis::model {

struct ScoredData {
  std::vector<std::string> pieces;
  std::vector<float> scores;
  std::vector<bool> usable, unused;   // usable: text may become this piece; unused: only on the way to a longer one
  std::array<int32_t, 256> byte_ids;  // -1: none
  int32_t unk = -1;                   // for bytes without a token; -1: dropped
  std::string space;                  // what stands for ' ' in pieces
  bool dummy_prefix = true;           // a space before the text, and before text after a special token
  std::vector<AddedToken> added;      // found in the text before it is cut
};

class ScoredTokenizer final : public VocabTokenizer {
 public:
  // Errors: sizes that differ, scores that are no numbers.
  static Result<std::unique_ptr<Tokenizer>> Make(TokenizerParts parts, ScoredData data);

 protected:
  Status EncodeText(std::string_view text, bool parse_special, std::vector<int32_t>& out) const override;

 private:
  ScoredTokenizer(TokenizerParts parts, ScoredData data);
  void EncodeWord(std::string_view text, BpeWorkspace<float>& workspace, std::vector<int32_t>& out) const;

  ScoredData data_;
  AddedTokenMatcher added_;
  std::unordered_map<std::string_view, int32_t> ids_;  // views of data_.pieces
  size_t longest_ = 0;
  bool by_words_ = true;  // MarksOnlyLead holds for every piece
};

}  // namespace croquis::model
