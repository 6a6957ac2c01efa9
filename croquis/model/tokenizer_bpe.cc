#include "croquis/model/tokenizer_bpe.h"

#include <algorithm>
#include <limits>

#include "croquis/model/tokenizer_formats.h"

namespace croquis::model {

namespace {

// Whether encoding the parts before each U+2581 one by one gives the ids of the whole. The mark must be a token, as an
// unknown one could fuse with the unknown character before it.
bool CanCutAtMarks(const BpeData& data) {
  if (data.byte_level || data.ignore_merges) return false;
  bool mark_known = false;
  for (const auto& [token, id] : data.vocab) {
    if (!MarksOnlyLead(token, kSpaceMark)) return false;
    mark_known = mark_known || token == kSpaceMark;
  }
  return mark_known;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> BpeTokenizer::Make(TokenizerParts parts, BpePipeline pipeline, const BpeData& data) {
  CROQUIS_TRY(BpeModel model, BpeModel::Make(data));
  std::vector<AddedToken> plain, normalized;
  for (AddedToken& token : pipeline.added) {
    if (token.normalized) {  // found in normalised text, so it is looked for in its own normalised form
      CROQUIS_TRY(token.content, ApplyNormalizers(pipeline.normalizers, token.content));
    }
    (token.normalized ? normalized : plain).push_back(std::move(token));
  }
  pipeline.added.clear();
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(std::move(parts), std::move(pipeline), std::move(model)));
  tokenizer->by_words_ = CanCutAtMarks(data);
  tokenizer->plain_ = AddedTokenMatcher(std::move(plain));
  tokenizer->normalized_ = AddedTokenMatcher(std::move(normalized));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

Status BpeTokenizer::EncodeText(std::string_view text, bool parse_special, std::vector<int32_t>& out) const {
  std::vector<AddedTokenMatcher::Part> parts;
  plain_.Split(text, parse_special, parts);
  BpeModel::Workspace workspace;
  for (const auto& part : parts) {
    if (part.id >= 0) {
      out.push_back(part.id);
    } else {
      CROQUIS_CHECK_OK(
          EncodePart(text.substr(part.begin, part.end - part.begin), part.begin == 0, parse_special, workspace, out));
    }
  }
  return {};
}

Status BpeTokenizer::EncodePart(std::string_view text, bool at_start, bool parse_special,
                                BpeModel::Workspace& workspace, std::vector<int32_t>& out) const {
  std::string normal;
  if (!pipeline_.normalizers.empty()) {
    CROQUIS_TRY(normal, ApplyNormalizers(pipeline_.normalizers, text));
    text = normal;
  }
  std::vector<AddedTokenMatcher::Part> parts;
  normalized_.Split(text, parse_special, parts);
  WordList list;
  for (const auto& part : parts) {
    if (part.id >= 0) {
      out.push_back(part.id);
      continue;
    }
    list.words.assign(1, {text.substr(part.begin, part.end - part.begin), at_start && part.begin == 0});
    list.storage.clear();
    CROQUIS_CHECK_OK(ApplyPreTokenizers(pipeline_.pre_tokenizers, list));
    for (const Word& word : list.words) {
      if (word.text.size() > size_t(std::numeric_limits<int32_t>::max())) {
        return OutOfRange("a word of " + std::to_string(word.text.size()) +
                          " bytes after normalisation; at most 2 GiB: split the text");
      }
      for (std::string_view rest = word.text; !rest.empty();) {
        const size_t n = by_words_ ? PartBeforeMark(rest, kSpaceMark, 1) : rest.size();
        model_.Encode(rest.substr(0, n), workspace, out);
        rest.remove_prefix(n);
      }
    }
  }
  return {};
}

void ApplyHints(const TokenLookup& ids, std::span<const AddedToken> added, const TokenizerHints& hints,
                TokenizerParts& parts) {
  const auto known = [&](int32_t id) { return id >= 0 && id < parts.table.size(); };
  const int32_t eos = Find(ids, hints.eos);
  if (const int32_t bos = Find(ids, hints.bos); bos >= 0) {
    parts.bos = bos;
  } else if (parts.bos < 0 && !parts.prefix.empty()) {
    parts.bos = parts.prefix.front();
  } else if (parts.bos < 0 && known(hints.bos_id)) {
    parts.bos = hints.bos_id;
  }
  if (hints.add_bos.has_value()) {
    parts.prefix.clear();
    if (*hints.add_bos && parts.bos >= 0) parts.prefix.push_back(parts.bos);
  }
  if (hints.add_eos.has_value()) {
    parts.suffix.clear();
    if (*hints.add_eos && eos >= 0) parts.suffix.push_back(eos);
  }
  const auto stop = [&](int32_t id) {
    if (known(id) && std::find(parts.stops.begin(), parts.stops.end(), id) == parts.stops.end()) {
      parts.stops.push_back(id);
    }
  };
  stop(eos);
  for (const int32_t id : hints.stop_ids) stop(id);
  // Ends of a turn: chat models write these, while their files often name only the end of a text.
  constexpr std::string_view kEnds[] = {"<|eot_id|>", "<|eom_id|>",    "<|im_end|>",    "<|end_of_text|>",
                                        "<|end|>",    "<|endoftext|>", "<end_of_turn>", "<|eos|>"};
  for (const AddedToken& token : added) {
    if (token.special && std::find(std::begin(kEnds), std::end(kEnds), token.content) != std::end(kEnds))
      stop(token.id);
  }
}

Result<PreTokenizerStep> IsolatedSplit(std::string_view pattern) {
  CROQUIS_TRY(Regex regex, Regex::Make(pattern));
  return PreTokenizerStep(SplitStep{std::move(regex), SplitBehavior::kIsolated, false});
}

}  // namespace croquis::model
