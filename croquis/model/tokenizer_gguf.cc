// Tokenizers from GGUF metadata and from llama2.c's tokenizer.bin.
#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>

#include "croquis/model/tokenizer_bpe.h"
#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/tokenizer_json_stages.h"
#include "croquis/model/tokenizer_scored.h"
#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

enum PieceType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// The pre-tokenisation that a name in tokenizer.ggml.pre stands for (the names are given by llama.cpp's converter).
struct PreTokenization {
  std::string_view names;  // separated by spaces
  std::vector<std::string_view> patterns;
  bool ignore_merges = false, add_bos = false, nfc = false;
};

const std::vector<PreTokenization>& PreTokenizations() {
  static const std::vector<PreTokenization> kTable = {
      {"default", {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Pattern, R"(\p{N}+)", "[0-9][0-9][0-9]"}, false, false, false},
      {"gpt-2 gpt2 phi-2 mpt olmo jais roberta-bpe", {kGpt2Pattern}, false, false, false},
      {"starcoder refact command-r smollm codeshell exaone minerva-7b",
       {R"(\p{N})", kGpt2Pattern},
       false,
       false,
       false},
      {"llama3 llama-v3 llama-bpe falcon3", {kLlama3Pattern}, true, true, false},
      {"dbrx smaug-bpe chatglm-bpe glm4", {kLlama3Pattern}, false, false, false},
      {"qwen2 deepseek-r1-qwen", {kQwen2Pattern}, false, false, true},
      {"stablelm2", {kQwen2Pattern}, false, false, false},
      {"tekken", {kTekkenPattern}, true, true, false},
  };
  return kTable;
}

Result<const PreTokenization*> FindPreTokenization(std::string_view name) {
  if (name.empty()) name = "default";
  std::string known;
  for (const PreTokenization& row : PreTokenizations()) {
    for (std::string_view rest = row.names; !rest.empty();) {
      const std::string_view word = rest.substr(0, rest.find(' '));
      if (word == name) return &row;
      rest.remove_prefix(std::min(rest.size(), word.size() + 1));
    }
    known += (known.empty() ? "" : " ") + std::string(row.names);
  }
  return Unsupported("GGUF: tokenizer.ggml.pre '" + std::string(name) + "' is not supported; Croquis knows: " + known);
}

int32_t TypeOf(const GgufTokenizerData& data, size_t i) {
  return data.types.empty() ? int32_t{kNormal} : data.types[i];
}

Status CheckData(const GgufTokenizerData& data) {
  if (data.tokens.empty()) return Corrupt("GGUF: no tokenizer.ggml.tokens");
  if (data.tokens.size() > (size_t{1} << 24)) {
    return Corrupt("GGUF: " + std::to_string(data.tokens.size()) + " tokens; at most 16777216");
  }
  if (!data.types.empty() && data.types.size() != data.tokens.size()) {
    return Corrupt("GGUF: " + std::to_string(data.tokens.size()) + " tokens, but " + std::to_string(data.types.size()) +
                   " token types");
  }
  return {};
}

// Tokens that are looked for in the text as a whole: special ones, and those that a user added.
std::vector<AddedToken> AddedTokens(const GgufTokenizerData& data) {
  std::vector<AddedToken> added;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const int32_t type = TypeOf(data, i);
    if ((type == kControl || type == kUnknown || type == kUserDefined) && IsUtf8(data.tokens[i])) {
      added.push_back({.content = data.tokens[i], .id = int32_t(i), .special = type != kUserDefined});
    }
  }
  return added;
}

void ApplyGgufIds(const GgufTokenizerData& data, std::span<const AddedToken> added, bool add_bos,
                  TokenizerParts& parts) {
  TokenizerHints hints;
  hints.bos_id = data.bos;
  hints.stop_ids = {data.eos, data.eot, data.eom};  // those of -1 are left out
  hints.add_bos = data.add_bos.value_or(add_bos);
  if (data.add_eos.value_or(false) && data.eos >= 0 && data.eos < parts.table.size()) parts.suffix.push_back(data.eos);
  ApplyHints({}, added, hints, parts);
}

Result<std::unique_ptr<Tokenizer>> MakeGgufBpe(const GgufTokenizerData& data) {
  CROQUIS_TRY(const PreTokenization* pre, FindPreTokenization(data.pre));
  BpeData bpe;
  bpe.byte_level = true;
  bpe.ignore_merges = pre->ignore_merges;
  bpe.vocab.reserve(data.tokens.size());
  for (size_t i = 0; i < data.tokens.size(); ++i) bpe.vocab.emplace_back(data.tokens[i], int32_t(i));
  bpe.merges.reserve(data.merges.size());
  for (const std::string& merge : data.merges) {
    const size_t cut = merge.find(' ', 1);  // a token is never empty
    if (cut == std::string::npos) return Corrupt("GGUF: merge '" + ToUtf8(merge.substr(0, 80)) + "' has no space");
    bpe.merges.emplace_back(merge.substr(0, cut), merge.substr(cut + 1));
  }
  BpePipeline pipeline;
  pipeline.added = AddedTokens(data);
  if (pre->nfc) pipeline.normalizers.emplace_back(NormalForm::kNfc);
  for (const std::string_view pattern : pre->patterns) {
    CROQUIS_TRY(PreTokenizerStep step, IsolatedSplit(pattern));
    pipeline.pre_tokenizers.push_back(std::move(step));
  }
  TokenizerParts parts;
  parts.table = VocabTable(int64_t(data.tokens.size()));
  parts.rule.bad_bytes = TextRule::BadBytes::kPerSequence;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const int32_t type = TypeOf(data, i);
    if (type == kControl || type == kUnknown) continue;
    // Tokens that a user added are plain text; the others are in the byte alphabet.
    const std::string bytes = type == kUserDefined ? data.tokens[i] : BytesOfByteLevel(data.tokens[i]);
    parts.table.Set(int32_t(i), TokenText::Kind::kText, bytes);
  }
  ApplyGgufIds(data, pipeline.added, pre->add_bos, parts);
  return BpeTokenizer::Make(std::move(parts), std::move(pipeline), bpe);
}

Result<std::unique_ptr<Tokenizer>> MakeGgufScored(const GgufTokenizerData& data) {
  if (data.scores.size() != data.tokens.size()) {
    return Corrupt("GGUF: " + std::to_string(data.tokens.size()) + " tokens, but " +
                   std::to_string(data.scores.size()) + " scores");
  }
  ScoredData scored;
  scored.pieces = data.tokens;
  scored.scores = data.scores;
  scored.byte_ids.fill(-1);
  scored.unk = data.unk >= 0 && size_t(data.unk) < data.tokens.size() ? data.unk : -1;
  scored.space = kSpaceMark;
  scored.dummy_prefix = data.add_space_prefix.value_or(true);
  scored.added = AddedTokens(data);
  TokenizerParts parts;
  parts.table = VocabTable(int64_t(data.tokens.size()));
  parts.rule.bad_bytes = TextRule::BadBytes::kPerByte;
  for (size_t i = 0; i < data.tokens.size(); ++i) {
    const int32_t type = TypeOf(data, i);
    const int byte = type == kByte ? ByteOfByteToken(data.tokens[i]) : -1;
    if (byte >= 0) {
      scored.byte_ids[size_t(byte)] = int32_t(i);
      parts.table.Set(int32_t(i), TokenText::Kind::kByte, std::string(1, char(byte)));
    } else if (type != kControl && type != kUnknown) {
      parts.table.SetPiece(int32_t(i), ReplaceAll(ToUtf8(data.tokens[i]), kSpaceMark, " "), scored.dummy_prefix);
    }
    scored.usable.push_back(type == kNormal || type == kUserDefined || type == kUnused);
    scored.unused.push_back(type == kUnused);
  }
  const std::vector<AddedToken> added = scored.added;
  ApplyGgufIds(data, added, true, parts);
  return ScoredTokenizer::Make(std::move(parts), std::move(scored));
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> MakeGgufTokenizer(const GgufTokenizerData& data) {
  CROQUIS_CHECK_OK(CheckData(data));
  if (data.model == "gpt2") return MakeGgufBpe(data);
  if (data.model == "llama") return MakeGgufScored(data);
  return Unsupported("GGUF: tokenizer.ggml.model '" + data.model + "' is not supported; Croquis reads llama and gpt2");
}

Result<std::unique_ptr<Tokenizer>> MakeLlama2cTokenizer(std::span<const std::byte> bytes, int64_t vocab_size) {
  const auto fail = [](const std::string& what) { return Corrupt("llama2.c tokenizer: " + what); };
  const auto word = [&](size_t at) {
    uint32_t v = 0;
    for (size_t i = 0; i < 4; ++i) v |= uint32_t(bytes[at + i]) << (8 * i);
    return v;
  };
  // Each piece takes 8 bytes at least.
  if (vocab_size <= 0 || bytes.size() < 4 || uint64_t(vocab_size) > (bytes.size() - 4) / 8) {
    return fail(std::to_string(bytes.size()) + " bytes cannot hold " + std::to_string(vocab_size) + " pieces");
  }
  ScoredData scored;
  scored.byte_ids.fill(-1);
  scored.space = " ";
  TokenizerParts parts;
  parts.table = VocabTable(vocab_size);
  parts.rule.bad_bytes = TextRule::BadBytes::kPerByte;
  size_t at = 4;  // after the length of the longest piece, which is not needed
  for (int32_t i = 0; i < vocab_size; ++i) {
    if (bytes.size() - at < 8) return fail("ends inside piece " + std::to_string(i));
    const float score = std::bit_cast<float>(word(at));
    const size_t length = word(at + 4);
    at += 8;
    if (length > bytes.size() - at) return fail("ends inside piece " + std::to_string(i));
    const std::string piece(reinterpret_cast<const char*>(bytes.data()) + at, length);
    at += length;
    // 0 is unknown, 1 and 2 begin and end a text, 3 to 258 are the bytes: llama2.c finds them by position.
    const int byte = i < 3 ? -1 : ByteOfByteToken(piece);
    if (byte >= 0) {
      scored.byte_ids[size_t(byte)] = i;
      parts.table.Set(i, TokenText::Kind::kByte, std::string(1, char(byte)));
    } else if (i >= 3) {
      parts.table.SetPiece(i, ToUtf8(piece), true);
    }
    scored.pieces.push_back(piece);
    scored.scores.push_back(score);
    scored.usable.push_back(i >= 3 && byte < 0);
    scored.unused.push_back(false);
  }
  if (at != bytes.size()) {
    return fail(std::to_string(bytes.size() - at) + " bytes follow " + std::to_string(vocab_size) +
                " pieces: is the vocabulary of the model another one?");
  }
  if (vocab_size < 3) return fail("fewer than 3 pieces");
  scored.added = {{.content = "<s>", .id = 1, .special = true}, {.content = "</s>", .id = 2, .special = true}};
  parts.bos = 1;
  parts.prefix = {1};
  parts.stops = {1, 2};  // its generator stops at either
  return ScoredTokenizer::Make(std::move(parts), std::move(scored));
}

}  // namespace croquis::model
