// The tokenizer of a tokenizer.json: added tokens, normalisers, pre-tokenisers, BPE.
#pragma once

#include <string_view>
#include <vector>

#include "croquis/model/bpe.h"
#include "croquis/model/tokenizer_base.h"
#include "croquis/model/tokenizer_pipeline.h"

namespace croquis::model {

struct BpePipeline {
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizers;
  std::vector<PreTokenizerStep> pre_tokenizers;
};

class BpeTokenizer final : public VocabTokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> Make(TokenizerParts parts, BpePipeline pipeline, const BpeData& data);

 protected:
  Status EncodeText(std::string_view text, bool parse_special, std::vector<int32_t>& out) const override;

 private:
  BpeTokenizer(TokenizerParts parts, BpePipeline pipeline, BpeModel model)
      : VocabTokenizer(std::move(parts)), pipeline_(std::move(pipeline)), model_(std::move(model)) {}
  // Text between added tokens; `at_start`: the whole text starts here.
  Status EncodePart(std::string_view text, bool at_start, bool parse_special, BpeModel::Workspace& workspace,
                    std::vector<int32_t>& out) const;

  BpePipeline pipeline_;
  BpeModel model_;
  bool by_words_ = false;                 // words may be cut further before spaces: MarksOnlyLead holds for every token
  AddedTokenMatcher plain_, normalized_;  // added tokens looked for before and after normalisation
};

// The id of the token written so, or -1.
using TokenLookup = std::unordered_map<std::string_view, int32_t>;
inline int32_t Find(const TokenLookup& ids, std::string_view token) {
  const auto it = ids.find(token);
  return it == ids.end() ? -1 : it->second;
}
// Fills bos, prefix, suffix and stops from the hints; `special` are the special tokens among `ids`.
void ApplyHints(const TokenLookup& ids, std::span<const AddedToken> added, const struct TokenizerHints& hints,
                TokenizerParts& parts);

// Pre-tokenisation patterns of byte-level vocabularies, as their tokenizer.json files write them.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// A step that cuts at every match of the pattern.
Result<PreTokenizerStep> IsolatedSplit(std::string_view pattern);

}  // namespace croquis::model
