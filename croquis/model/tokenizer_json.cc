// tokenizer.json, and vocab.json with merges.txt, into a BpeTokenizer.
#include <algorithm>
#include <unordered_map>

#include "croquis/model/tokenizer_bpe.h"
#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/tokenizer_json_stages.h"
#include "croquis/model/tokenizer_json_util.h"

namespace croquis::model {
namespace {

Status ReadVocab(const Json* vocab, const std::string& where, BpeData& data) {
  if (vocab == nullptr || !vocab->is_object())
    return Corrupt(where + ": the vocabulary should be an object of tokens and ids");
  data.vocab.reserve(vocab->size());
  for (const auto& [token, id] : vocab->items()) {
    const int32_t value = TokenId(id);
    if (value < 0) return Corrupt(where + ": the id of '" + token.substr(0, 80) + "' is no token id");
    data.vocab.emplace_back(token, value);
  }
  return {};
}

// "left right"; the first space cuts, as neither part holds one.
Status AddMerge(std::string_view line, const std::string& where, BpeData& data) {
  const size_t cut = line.find(' ');
  if (cut == std::string_view::npos || cut == 0 || line.find(' ', cut + 1) != std::string_view::npos) {
    return Corrupt(where + ": merge " + std::to_string(data.merges.size()) +
                   " should be two tokens and a space between");
  }
  data.merges.emplace_back(line.substr(0, cut), line.substr(cut + 1));
  return {};
}

Status ReadMerges(const Json* merges, BpeData& data) {
  const std::string where = "tokenizer.json: model";
  if (merges == nullptr || !merges->is_array()) return Corrupt(where + ": 'merges' should be a list");
  data.merges.reserve(merges->size());
  for (const Json& merge : *merges) {
    if (merge.is_string()) {
      CROQUIS_CHECK_OK(AddMerge(merge.get_ref<const std::string&>(), where, data));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      data.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      return Corrupt(where + ": merge " + std::to_string(data.merges.size()) + " is neither a string nor two strings");
    }
  }
  return {};
}

Status RefuseAffix(const Json& model, const char* key, const std::string& where) {
  CROQUIS_TRY(const std::string affix, StringMember(model, key, "", where));
  if (!affix.empty()) return Unsupported(where + ": " + key + " '" + affix + "' is not supported");
  return {};
}

Result<BpeData> ReadModel(const Json& root) {
  const std::string where = "tokenizer.json: model";
  const Json* model = Member(root, "model");
  if (model == nullptr) return Corrupt("tokenizer.json: no 'model'");
  const std::string type = TypeName(*model);
  // Files of old versions leave the type out; only BPE has merges.
  if (type != "BPE" && !(type == "(none)" && Member(*model, "merges") != nullptr)) {
    return Unsupported(where + " '" + type + "' is not supported; Croquis reads BPE models");
  }
  BpeData data;
  if (const Json* dropout = Member(*model, "dropout"); dropout != nullptr && *dropout != 0) {
    return Unsupported(where + ": BPE dropout is not supported (it makes encoding random): set it to null");
  }
  CROQUIS_CHECK_OK(RefuseAffix(*model, "continuing_subword_prefix", where));
  CROQUIS_CHECK_OK(RefuseAffix(*model, "end_of_word_suffix", where));
  CROQUIS_TRY(data.unk_token, StringMember(*model, "unk_token", "", where));
  CROQUIS_TRY(data.fuse_unk, BoolMember(*model, "fuse_unk", false, where));
  CROQUIS_TRY(data.byte_fallback, BoolMember(*model, "byte_fallback", false, where));
  CROQUIS_TRY(data.ignore_merges, BoolMember(*model, "ignore_merges", false, where));
  CROQUIS_CHECK_OK(ReadVocab(Member(*model, "vocab"), where, data));
  CROQUIS_CHECK_OK(ReadMerges(Member(*model, "merges"), data));
  return data;
}

Result<std::vector<AddedToken>> ReadAddedTokens(const Json* list) {
  const std::string where = "tokenizer.json: added_tokens";
  std::vector<AddedToken> out;
  if (list == nullptr) return out;
  if (!list->is_array()) return Corrupt(where + " should be a list");
  for (const Json& item : *list) {
    AddedToken token;
    const Json* id = Member(item, "id");
    token.id = id == nullptr ? -1 : TokenId(*id);
    if (token.id < 0) return Corrupt(where + ": a token without its id");
    CROQUIS_TRY(token.content, StringMember(item, "content", "", where));
    CROQUIS_CHECK_OK(ReadFlags(item, where, &token));
    out.push_back(std::move(token));
  }
  return out;
}

// Adds tokens of the hints that are not there yet; those without an id get the next free one.
void MergeAdded(const std::vector<AddedToken>& more, const TokenLookup& ids, int64_t next,
                std::vector<AddedToken>& added) {
  for (const AddedToken& token : added) next = std::max<int64_t>(next, int64_t(token.id) + 1);
  for (const AddedToken& token : more) {
    const auto same = [&](const AddedToken& t) { return t.content == token.content; };
    if (token.content.empty() || std::any_of(added.begin(), added.end(), same)) continue;
    added.push_back(token);
    int32_t& id = added.back().id;
    if (const int32_t known = Find(ids, token.content); known >= 0) id = known;
    if (id < 0) id = int32_t(next);
    next = std::max<int64_t>(next, int64_t(id) + 1);
  }
}

// The table of tokens, and everything that needs all ids.
Result<std::unique_ptr<Tokenizer>> Assemble(const BpeData& data, BpePipeline pipeline, const DecoderPlan& decoder,
                                            Frame frame, const TokenizerHints& hints) {
  TokenLookup ids;
  ids.reserve(data.vocab.size());
  int64_t size = 0;
  for (const auto& [token, id] : data.vocab) {
    ids[token] = id;
    size = std::max<int64_t>(size, int64_t(id) + 1);
  }
  for (AddedToken& token : pipeline.added) {  // the model's id of a token is the one that counts
    if (const int32_t known = Find(ids, token.content); known >= 0) token.id = known;
  }
  MergeAdded(hints.added, ids, size, pipeline.added);
  for (const AddedToken& token : pipeline.added) size = std::max<int64_t>(size, int64_t(token.id) + 1);
  const int64_t count = int64_t(data.vocab.size() + pipeline.added.size());
  if (size > count + kMaxIdGap) {
    return Corrupt("the vocabulary has " + std::to_string(count) + " tokens and ids up to " + std::to_string(size - 1));
  }

  TokenizerParts parts;
  parts.table = VocabTable(size);
  parts.rule = decoder.Rule();
  for (const auto& [token, id] : data.vocab) decoder.Fill(id, token, parts.table);
  for (const AddedToken& token : pipeline.added) {
    ids[token.content] = token.id;
    if (token.special) {
      parts.table.Set(token.id, TokenText::Kind::kSkip, "");
    } else if (token.normalized) {  // decoded from the form that is found in normalised text (`tokenizers` 0.23)
      CROQUIS_TRY(const std::string content, ApplyNormalizers(pipeline.normalizers, token.content));
      decoder.Fill(token.id, content, parts.table);
    } else {
      decoder.Fill(token.id, token.content, parts.table);
    }
  }
  for (const int32_t id : frame.prefix) {
    if (id >= size) return Corrupt("post_processor: token " + std::to_string(id) + " is not in the vocabulary");
  }
  for (const int32_t id : frame.suffix) {
    if (id >= size) return Corrupt("post_processor: token " + std::to_string(id) + " is not in the vocabulary");
  }
  parts.prefix = std::move(frame.prefix);
  parts.suffix = std::move(frame.suffix);
  ApplyHints(ids, pipeline.added, hints, parts);
  return BpeTokenizer::Make(std::move(parts), std::move(pipeline), data);
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::span<const std::byte> bytes, const TokenizerHints& hints) {
  CROQUIS_TRY(const Json root, ParseJson(bytes, "tokenizer.json"));
  if (!root.is_object()) return Corrupt("tokenizer.json: should be an object");
  CROQUIS_TRY(BpeData data, ReadModel(root));
  BpePipeline pipeline;
  CROQUIS_TRY(pipeline.added, ReadAddedTokens(Member(root, "added_tokens")));
  CROQUIS_TRY(pipeline.normalizers, ParseNormalizers(Member(root, "normalizer")));
  CROQUIS_TRY(PreTokenizers pre, ParsePreTokenizers(Member(root, "pre_tokenizer")));
  pipeline.pre_tokenizers = std::move(pre.steps);
  data.byte_level = pre.byte_level;
  CROQUIS_TRY(const DecoderPlan decoder, ParseDecoder(Member(root, "decoder")));
  CROQUIS_TRY(Frame frame, ParsePostProcessor(Member(root, "post_processor")));
  return Assemble(data, std::move(pipeline), decoder, std::move(frame), hints);
}

Result<std::unique_ptr<Tokenizer>> ParseVocabMerges(std::span<const std::byte> vocab, std::span<const std::byte> merges,
                                                    bool qwen2, const TokenizerHints& hints) {
  BpeData data;
  data.byte_level = true;
  CROQUIS_TRY(const Json root, ParseJson(vocab, "vocab.json"));
  CROQUIS_CHECK_OK(ReadVocab(&root, "vocab.json", data));
  std::string_view rest(reinterpret_cast<const char*>(merges.data()), merges.size());
  while (!rest.empty()) {
    std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || line.starts_with("#version")) continue;
    CROQUIS_CHECK_OK(AddMerge(line, "merges.txt", data));
  }
  BpePipeline pipeline;
  if (qwen2) pipeline.normalizers.emplace_back(NormalForm::kNfc);
  CROQUIS_TRY(PreTokenizerStep split, IsolatedSplit(qwen2 ? kQwen2Pattern : kGpt2Pattern));
  pipeline.pre_tokenizers.push_back(std::move(split));
  DecoderPlan decoder;
  decoder.join = DecoderPlan::Join::kByteLevel;
  return Assemble(data, std::move(pipeline), decoder, {}, hints);
}

}  // namespace croquis::model
