// The tokenizer of a Hugging Face folder, and what the files beside it say.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/tokenizer_json_util.h"

namespace croquis::model {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxFile = int64_t{1} << 28;  // the largest published tokenizer.json has 35 MB

std::span<const std::byte> Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

Result<std::string> ReadFile(const fs::path& path) {
  std::error_code code;
  const uintmax_t size = fs::file_size(path, code);
  if (code) return IoError(path.string() + ": " + code.message());
  if (size > uintmax_t(kMaxFile)) {
    return Corrupt(path.string() + ": " + std::to_string(size) + " bytes are no tokenizer; at most " +
                   std::to_string(kMaxFile));
  }
  std::string text(size_t(size), '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), std::streamsize(size))) return IoError(path.string() + ": cannot be read");
  return text;
}

// A file that need not be there; null then.
Result<Json> ReadOptionalJson(const fs::path& path) {
  if (!Exists(path)) return Json();
  CROQUIS_TRY(const std::string text, ReadFile(path));
  return ParseJson(Bytes(text), path.filename().string());
}

// "<s>" or {"content": "<s>"}; empty if neither.
std::string TokenName(const Json* value) {
  if (value == nullptr) return "";
  if (value->is_string()) return value->get<std::string>();
  const Json* content = Member(*value, "content");
  return content != nullptr && content->is_string() ? content->get<std::string>() : "";
}

void AddIds(const Json* value, std::vector<int32_t>& out) {
  if (value == nullptr) return;
  if (TokenId(*value) >= 0) out.push_back(TokenId(*value));
  if (!value->is_array()) return;
  for (const Json& id : *value) {
    if (TokenId(id) >= 0) out.push_back(TokenId(id));
  }
}

Status AddTokensOfConfig(const Json& config, std::vector<AddedToken>& out) {
  const Json* list = Member(config, "added_tokens_decoder");
  if (list == nullptr || !list->is_object()) return {};
  const std::string where = "tokenizer_config.json: added_tokens_decoder";
  for (const auto& [key, item] : list->items()) {
    AddedToken token;
    token.content = TokenName(&item);
    const bool digits = !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || token.content.empty())
      return Corrupt(where + ": '" + key.substr(0, 80) + "' is no token with an id");
    token.id = std::stoi(key);
    CROQUIS_CHECK_OK(ReadFlags(item, where, &token));
    out.push_back(std::move(token));
  }
  // By id, so that tokens without one get theirs after these.
  std::sort(out.begin(), out.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return {};
}

struct FolderHints {
  TokenizerHints hints;
  std::string tokenizer_class;
  bool has_config = false;
};

Result<FolderHints> ReadHints(const fs::path& folder) {
  FolderHints out;
  TokenizerHints& hints = out.hints;
  CROQUIS_TRY(const Json config, ReadOptionalJson(folder / "tokenizer_config.json"));
  CROQUIS_TRY(const Json special, ReadOptionalJson(folder / "special_tokens_map.json"));
  CROQUIS_TRY(const Json generation, ReadOptionalJson(folder / "generation_config.json"));
  CROQUIS_TRY(const Json model, ReadOptionalJson(folder / "config.json"));
  out.has_config = config.is_object();
  CROQUIS_TRY(out.tokenizer_class, StringMember(config, "tokenizer_class", "", "tokenizer_config.json"));
  for (const char* key : {"add_bos_token", "add_eos_token"}) {
    const Json* value = Member(config, key);
    if (value != nullptr && value->is_boolean()) (key[4] == 'b' ? hints.add_bos : hints.add_eos) = value->get<bool>();
  }
  CROQUIS_TRY(hints.prefix_every_part, BoolMember(config, "legacy", false, "tokenizer_config.json"));
  for (const Json* source : {&config, &special}) {
    if (hints.bos.empty()) hints.bos = TokenName(Member(*source, "bos_token"));
    if (hints.eos.empty()) hints.eos = TokenName(Member(*source, "eos_token"));
  }
  // generation_config.json is the later word; config.json counts where it is absent.
  AddIds(Member(generation, "eos_token_id"), hints.stop_ids);
  if (hints.stop_ids.empty()) AddIds(Member(model, "eos_token_id"), hints.stop_ids);
  if (const Json* bos = Member(model, "bos_token_id"); bos != nullptr) hints.bos_id = TokenId(*bos);
  CROQUIS_CHECK_OK(AddTokensOfConfig(config, hints.added));
  return out;
}

Result<std::unique_ptr<Tokenizer>> FromVocabMerges(const fs::path& folder, FolderHints found) {
  CROQUIS_TRY(const std::string vocab, ReadFile(folder / "vocab.json"));
  CROQUIS_TRY(const std::string merges, ReadFile(folder / "merges.txt"));
  const bool qwen2 = found.tokenizer_class.starts_with("Qwen2Tokenizer");
  TokenizerHints& hints = found.hints;
  // Both classes know one special token without being told.
  if (hints.eos.empty()) hints.eos = "<|endoftext|>";
  if (hints.bos.empty() && !qwen2) hints.bos = "<|endoftext|>";
  for (const std::string& name : {hints.bos, hints.eos}) {
    if (!name.empty()) hints.added.push_back({.content = name, .special = true});
  }
  return ParseVocabMerges(Bytes(vocab), Bytes(merges), qwen2, hints);
}

Error InFolder(const fs::path& path, const Error& error) { return {error.code, path.string() + ": " + error.message}; }

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromFolder(const std::string& folder) {
  const fs::path path(folder);
  auto load = [&]() -> Result<std::unique_ptr<Tokenizer>> {
    CROQUIS_TRY(FolderHints found, ReadHints(path));
    if (Exists(path / "tokenizer.json")) {
      CROQUIS_TRY(const std::string text, ReadFile(path / "tokenizer.json"));
      return ParseTokenizerJson(Bytes(text), found.hints);
    }
    if (Exists(path / "tokenizer.model")) {
      CROQUIS_TRY(const std::string text, ReadFile(path / "tokenizer.model"));
      return ParseSentencePiece(Bytes(text), found.hints);
    }
    if (Exists(path / "vocab.json") && Exists(path / "merges.txt")) return FromVocabMerges(path, std::move(found));
    return NotFound("no tokenizer here: wanted tokenizer.json, tokenizer.model, or vocab.json and merges.txt");
  };
  auto result = load();
  if (!result) return InFolder(path, result.error());
  return result;
}

}  // namespace croquis::model
