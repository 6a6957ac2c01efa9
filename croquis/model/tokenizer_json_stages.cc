#include "croquis/model/tokenizer_json_stages.h"

#include <algorithm>

#include "croquis/model/tokenizer_bpe.h"
#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

constexpr char kFile[] = "tokenizer.json";

std::string Where(const char* stage) { return std::string(kFile) + ": " + stage; }

Error NotSupported(const char* stage, const std::string& what) {
  return Unsupported(Where(stage) + " " + what + " is not supported");
}

// The members of a Sequence, or the stage itself.
Result<std::vector<const Json*>> Flatten(const Json* stage, const char* list, const char* name) {
  std::vector<const Json*> out;
  if (stage == nullptr) return out;
  std::vector<const Json*> waiting = {stage};
  while (!waiting.empty()) {
    const Json* now = waiting.back();
    waiting.pop_back();
    if (TypeName(*now) != "Sequence") {
      out.push_back(now);
      continue;
    }
    const Json* members = Member(*now, list);
    if (members == nullptr || !members->is_array())
      return Corrupt(Where(name) + " Sequence without its '" + list + "'");
    for (auto it = members->rbegin(); it != members->rend(); ++it) waiting.push_back(&*it);
  }
  return out;
}

// {"String": ".."} or {"Regex": ".."}.
Result<Regex> ParsePattern(const Json& stage, const char* name) {
  const Json* pattern = Member(stage, "pattern");
  if (pattern != nullptr) {
    if (const Json* text = Member(*pattern, "String"); text != nullptr && text->is_string()) {
      return Regex::Literal(text->get_ref<const std::string&>());
    }
    if (const Json* regex = Member(*pattern, "Regex"); regex != nullptr && regex->is_string()) {
      return Regex::Make(regex->get_ref<const std::string&>());
    }
  }
  return Corrupt(Where(name) + " " + TypeName(stage) + ": 'pattern' should hold a String or a Regex");
}

Result<SplitBehavior> ParseBehavior(const Json& stage, const char* name, const std::string& otherwise) {
  CROQUIS_TRY(const std::string word, StringMember(stage, "behavior", otherwise, Where(name)));
  constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {
      {"Isolated", SplitBehavior::kIsolated},
      {"Removed", SplitBehavior::kRemoved},
      {"Contiguous", SplitBehavior::kContiguous},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext}};
  for (const auto& [text, behavior] : kNames) {
    if (word == text) return behavior;
  }
  return NotSupported(name, "behavior '" + word + "'");
}

Result<NormalizerStep> ParseNormalizer(const Json& stage) {
  constexpr char kName[] = "normalizer";
  const std::string type = TypeName(stage);
  if (type == "NFC") return NormalizerStep(NormalForm::kNfc);
  if (type == "NFD") return NormalizerStep(NormalForm::kNfd);
  if (type == "NFKC") return NormalizerStep(NormalForm::kNfkc);
  if (type == "NFKD") return NormalizerStep(NormalForm::kNfkd);
  if (type == "Prepend") {
    CROQUIS_TRY(std::string text, StringMember(stage, "prepend", "", Where(kName)));
    return NormalizerStep(PrependStep{std::move(text)});
  }
  if (type == "Replace") {
    CROQUIS_TRY(Regex pattern, ParsePattern(stage, kName));
    CROQUIS_TRY(std::string content, StringMember(stage, "content", "", Where(kName)));
    return NormalizerStep(ReplaceStep{std::move(pattern), std::move(content)});
  }
  if (type == "Strip") {
    CROQUIS_TRY(const bool left, BoolMember(stage, "strip_left", true, Where(kName)));
    CROQUIS_TRY(const bool right, BoolMember(stage, "strip_right", true, Where(kName)));
    return NormalizerStep(StripStep{left, right});
  }
  return NotSupported(kName, "'" + type + "'");
}

Result<PreTokenizerStep> MakeSplit(std::string_view pattern, SplitBehavior behavior, bool invert = false) {
  CROQUIS_TRY(Regex regex, Regex::Make(pattern));
  return PreTokenizerStep(SplitStep{std::move(regex), behavior, invert});
}

Result<PreTokenizerStep> ParseMetaspace(const Json& stage) {
  const std::string where = Where("pre_tokenizer");
  MetaspaceStep step;
  CROQUIS_TRY(step.replacement, StringMember(stage, "replacement", std::string(kSpaceMark), where));
  if (step.replacement.empty() || DecodeUtf8(step.replacement).length != step.replacement.size()) {
    return Corrupt(where + " Metaspace: 'replacement' should be one character");
  }
  CROQUIS_TRY(const bool add_prefix_space, BoolMember(stage, "add_prefix_space", true, where));
  CROQUIS_TRY(const std::string scheme,
              StringMember(stage, "prepend_scheme", add_prefix_space ? "always" : "never", where));
  if (scheme == "first") {
    step.prepend = MetaspaceStep::Prepend::kFirst;
  } else if (scheme == "never") {
    step.prepend = MetaspaceStep::Prepend::kNever;
  } else if (scheme != "always") {
    return NotSupported("pre_tokenizer", "Metaspace prepend_scheme '" + scheme + "'");
  }
  CROQUIS_TRY(step.split, BoolMember(stage, "split", true, where));
  return PreTokenizerStep(std::move(step));
}

Status AddByteLevel(const Json& stage, PreTokenizers& out) {
  const std::string where = Where("pre_tokenizer ByteLevel");
  CROQUIS_TRY(const bool prefix, BoolMember(stage, "add_prefix_space", true, where));
  CROQUIS_TRY(const bool use_regex, BoolMember(stage, "use_regex", true, where));
  if (prefix) out.steps.push_back(PrefixSpaceStep{});
  if (use_regex) {
    CROQUIS_TRY(PreTokenizerStep step, IsolatedSplit(kGpt2Pattern));
    out.steps.push_back(std::move(step));
  }
  out.byte_level = true;
  return {};
}

Result<PreTokenizerStep> ParsePreTokenizer(const Json& stage) {
  constexpr char kName[] = "pre_tokenizer";
  const std::string type = TypeName(stage);
  if (type == "Metaspace") return ParseMetaspace(stage);
  if (type == "Split") {
    CROQUIS_TRY(Regex pattern, ParsePattern(stage, kName));
    CROQUIS_TRY(const SplitBehavior behavior, ParseBehavior(stage, kName, "Isolated"));
    CROQUIS_TRY(const bool invert, BoolMember(stage, "invert", false, Where(kName)));
    return PreTokenizerStep(SplitStep{std::move(pattern), behavior, invert});
  }
  if (type == "Digits") {
    CROQUIS_TRY(const bool individual, BoolMember(stage, "individual_digits", false, Where(kName)));
    return MakeSplit(R"(\p{N})", individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "Punctuation") {
    CROQUIS_TRY(const SplitBehavior behavior, ParseBehavior(stage, kName, "Isolated"));
    return MakeSplit(R"([!-/:-@\[-`{-~\p{P}])", behavior);
  }
  if (type == "Whitespace")
    return MakeSplit(R"(\w+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\s]+)", SplitBehavior::kRemoved, true);
  if (type == "WhitespaceSplit") return MakeSplit(R"(\s)", SplitBehavior::kRemoved);
  if (type == "CharDelimiterSplit") {
    CROQUIS_TRY(const std::string delimiter, StringMember(stage, "delimiter", "", Where(kName)));
    CROQUIS_TRY(Regex pattern, Regex::Literal(delimiter));
    return PreTokenizerStep(SplitStep{std::move(pattern), SplitBehavior::kRemoved, false});
  }
  return NotSupported(kName, "'" + type + "'");
}

Status AddDecoder(const Json& stage, bool& fused, DecoderPlan& plan) {
  constexpr char kName[] = "decoder";
  const std::string type = TypeName(stage);
  if (type == "Fuse") {
    fused = true;
  } else if (type == "Replace" && !fused && !plan.byte_fallback) {
    const Json* pattern = Member(stage, "pattern");
    const Json* from = pattern == nullptr ? nullptr : Member(*pattern, "String");
    if (from == nullptr || !from->is_string()) return NotSupported(kName, "Replace of anything but a String");
    CROQUIS_TRY(std::string to, StringMember(stage, "content", "", Where(kName)));
    plan.replaces.emplace_back(from->get<std::string>(), std::move(to));
  } else if (type == "ByteFallback" && !fused) {
    plan.byte_fallback = true;
  } else if (type == "Strip") {
    CROQUIS_TRY(const std::string content, StringMember(stage, "content", " ", Where(kName)));
    const Json *start = Member(stage, "start"), *stop = Member(stage, "stop");
    const int32_t n = start == nullptr ? 0 : TokenId(*start);
    if (content != " " || n < 0 || (stop != nullptr && TokenId(*stop) != 0)) {
      return NotSupported(kName, "Strip of anything but spaces at the start");
    }
    (fused ? plan.strip_spaces : plan.strip_token_spaces) += n;
  } else {
    return NotSupported(kName, "'" + type + "' at this place of a Sequence");
  }
  return {};
}

// {"SpecialToken": {"id": "<s>"}} resolved through the template's "special_tokens".
Status AddTemplateToken(const Json& token, const Json* special_tokens, std::vector<int32_t>& out) {
  const std::string where = Where("post_processor TemplateProcessing");
  CROQUIS_TRY(const std::string name, StringMember(token, "id", "", where));
  const Json* special = special_tokens == nullptr ? nullptr : Member(*special_tokens, name.c_str());
  const Json* ids = special == nullptr ? nullptr : Member(*special, "ids");
  if (ids == nullptr || !ids->is_array()) return Corrupt(where + ": no ids for the special token '" + name + "'");
  for (const Json& id : *ids) out.push_back(TokenId(id));
  if (std::find(out.begin(), out.end(), -1) != out.end()) {
    return Corrupt(where + ": an id of '" + name + "' is no token id");
  }
  return {};
}

Status AddTemplate(const Json& stage, Frame& frame) {
  const std::string where = Where("post_processor TemplateProcessing");
  const Json* single = Member(stage, "single");
  if (single == nullptr || !single->is_array()) return Corrupt(where + ": 'single' should be a list");
  bool text_seen = false;
  for (const Json& part : *single) {
    if (Member(part, "Sequence") != nullptr) {
      if (text_seen) return Unsupported(where + " that repeats the text is not supported");
      text_seen = true;
    } else if (const Json* token = Member(part, "SpecialToken"); token != nullptr) {
      CROQUIS_CHECK_OK(
          AddTemplateToken(*token, Member(stage, "special_tokens"), text_seen ? frame.suffix : frame.prefix));
    } else {
      return Corrupt(where + ": a part that is neither Sequence nor SpecialToken");
    }
  }
  return {};
}

// ["</s>", 2] of BertProcessing and RobertaProcessing.
Status AddPair(const Json& stage, const char* key, std::vector<int32_t>& out) {
  const Json* pair = Member(stage, key);
  const int32_t id = pair != nullptr && pair->is_array() && pair->size() == 2 ? TokenId((*pair)[1]) : -1;
  if (id < 0) return Corrupt(Where("post_processor") + ": '" + key + "' should be a token and its id");
  out.push_back(id);
  return {};
}

}  // namespace

Result<std::vector<NormalizerStep>> ParseNormalizers(const Json* normalizer) {
  CROQUIS_TRY(const auto stages, Flatten(normalizer, "normalizers", "normalizer"));
  std::vector<NormalizerStep> steps;
  for (const Json* stage : stages) {
    CROQUIS_TRY(NormalizerStep step, ParseNormalizer(*stage));
    steps.push_back(std::move(step));
  }
  return steps;
}

Result<PreTokenizers> ParsePreTokenizers(const Json* pre_tokenizer) {
  CROQUIS_TRY(const auto stages, Flatten(pre_tokenizer, "pretokenizers", "pre_tokenizer"));
  PreTokenizers out;
  for (const Json* stage : stages) {
    if (out.byte_level) return NotSupported("pre_tokenizer", "'" + TypeName(*stage) + "' after ByteLevel");
    if (TypeName(*stage) == "ByteLevel") {
      CROQUIS_CHECK_OK(AddByteLevel(*stage, out));
    } else {
      CROQUIS_TRY(PreTokenizerStep step, ParsePreTokenizer(*stage));
      out.steps.push_back(std::move(step));
    }
  }
  return out;
}

TextRule DecoderPlan::Rule() const {
  using BadBytes = TextRule::BadBytes;
  return {join == Join::kByteLevel ? BadBytes::kPerSequence : BadBytes::kWholeRun, strip_spaces, false};
}

void DecoderPlan::Fill(int32_t id, const std::string& token, VocabTable& table) const {
  using Kind = TokenText::Kind;
  if (join == Join::kByteLevel) {
    table.Set(id, Kind::kText, BytesOfByteLevel(token));
  } else if (join == Join::kMetaspace) {
    table.Set(id, Kind::kText, ReplaceAll(token, mark, " "));
    if (drop_first_marks && token.find(mark) != std::string::npos) table.SetFirst(id, ReplaceAll(token, mark, ""));
  } else if (join == Join::kSpaces) {
    table.Set(id, Kind::kText, " " + token);
    table.SetFirst(id, token);
  } else {
    std::string text = token;
    for (const auto& [from, to] : replaces) text = ReplaceAll(text, from, to);
    const int byte = byte_fallback ? ByteOfByteToken(text) : -1;
    if (byte >= 0) {
      table.Set(id, Kind::kByte, std::string(1, char(byte)));
      return;
    }
    size_t strip = 0;
    while (int64_t(strip) < strip_token_spaces && strip < text.size() && text[strip] == ' ') ++strip;
    table.Set(id, Kind::kText, std::string_view(text).substr(strip));
  }
}

Result<DecoderPlan> ParseDecoder(const Json* decoder) {
  CROQUIS_TRY(const auto stages, Flatten(decoder, "decoders", "decoder"));
  DecoderPlan plan;
  if (stages.empty()) return plan;
  const std::string first = TypeName(*stages[0]);
  bool rest_is_fuse = true;
  for (size_t i = 1; i < stages.size(); ++i) rest_is_fuse = rest_is_fuse && TypeName(*stages[i]) == "Fuse";
  if (first == "ByteLevel" && rest_is_fuse) {
    plan.join = DecoderPlan::Join::kByteLevel;
  } else if (first == "Metaspace" && rest_is_fuse) {
    plan.join = DecoderPlan::Join::kMetaspace;
    CROQUIS_TRY(const PreTokenizerStep step, ParseMetaspace(*stages[0]));
    const auto& metaspace = std::get<MetaspaceStep>(step);
    plan.mark = metaspace.replacement;
    plan.drop_first_marks = metaspace.prepend != MetaspaceStep::Prepend::kNever;
  } else {
    plan.join = DecoderPlan::Join::kPlain;
    bool fused = false;
    for (const Json* stage : stages) CROQUIS_CHECK_OK(AddDecoder(*stage, fused, plan));
  }
  return plan;
}

Result<Frame> ParsePostProcessor(const Json* post_processor) {
  CROQUIS_TRY(const auto stages, Flatten(post_processor, "processors", "post_processor"));
  Frame frame;
  for (const Json* stage : stages) {
    const std::string type = TypeName(*stage);
    if (type == "TemplateProcessing") {
      CROQUIS_CHECK_OK(AddTemplate(*stage, frame));
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      CROQUIS_CHECK_OK(AddPair(*stage, "cls", frame.prefix));
      CROQUIS_CHECK_OK(AddPair(*stage, "sep", frame.suffix));
    } else if (type != "ByteLevel") {  // ByteLevel moves offsets, which are not kept here
      return NotSupported("post_processor", "'" + type + "'");
    }
  }
  return frame;
}

}  // namespace croquis::model
