#include "croquis/model/model.h"

#include <filesystem>

#include "croquis/model/config.h"
#include "croquis/model/gguf.h"
#include "croquis/model/gguf_tokenizer.h"
#include "croquis/model/llama2c.h"
#include "croquis/model/mapped_file.h"
#include "croquis/model/tokenizer_formats.h"
#include "croquis/model/transformer.h"
#include "croquis/model/weights.h"

namespace croquis::model {
namespace {

namespace fs = std::filesystem;

Error Named(const std::string& path, Error error) {
  if (!error.message.starts_with(path)) error.message = path + ": " + error.message;
  return error;
}

struct Parts {
  ModelConfig config;
  WeightSet weights;
  std::unique_ptr<Tokenizer> tokenizer;
};

// A tokenizer given by path: a folder, SentencePiece's .model, a tokenizer.json, or llama2.c's .bin.
Result<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& path, int64_t vocab) {
  std::error_code error;
  if (fs::is_directory(path, error)) return Tokenizer::FromFolder(path);
  CROQUIS_TRY(const auto file, MappedFile::Open(path));
  const auto extension = fs::path(path).extension();
  if (extension == ".json") return ParseTokenizerJson(file->bytes());
  if (extension == ".model") return ParseSentencePiece(file->bytes());
  if (extension == ".bin") return MakeLlama2cTokenizer(file->bytes(), vocab);
  return Unsupported(
      "a tokenizer of this kind is not read; wanted a folder, tokenizer.json, tokenizer.model, or llama2.c's "
      "tokenizer .bin");
}

bool HasTokenizer(const fs::path& folder) {
  std::error_code error;
  for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json"})
    if (fs::exists(folder / name, error)) return true;
  return false;
}

Result<Parts> OpenFolder(const std::string& path) {
  Parts parts;
  CROQUIS_TRY(const std::string text, ReadTextFile((fs::path(path) / "config.json").string()));
  CROQUIS_TRY(parts.config, ParseHfConfig(text));
  CROQUIS_TRY(parts.weights, WeightSet::FromFolder(path));
  if (HasTokenizer(path)) {
    CROQUIS_TRY(parts.tokenizer, Tokenizer::FromFolder(path));
  }
  return parts;
}

Result<Parts> OpenGguf(const std::shared_ptr<const MappedFile>& file) {
  Parts parts;
  CROQUIS_TRY(const GgufFile gguf, ParseGguf(file->bytes()));
  CROQUIS_TRY(parts.config, ConfigFromGguf(gguf));
  CROQUIS_TRY(parts.weights, WeightSet::FromGguf(gguf, file));
  CROQUIS_TRY(parts.tokenizer, TokenizerFromGguf(gguf));
  return parts;
}

Result<Parts> OpenLlama2c(const std::shared_ptr<const MappedFile>& file) {
  Parts parts;
  CROQUIS_TRY(Llama2cFile parsed, ParseLlama2c(file->bytes()));
  parts.config = parsed.config;
  CROQUIS_CHECK_OK(CheckConfig(parts.config));
  CROQUIS_TRY(parts.weights, WeightSet::FromLlama2c(parsed, file));
  return parts;
}

Result<Parts> Open(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return OpenFolder(path);
  CROQUIS_TRY(const auto file, MappedFile::Open(path));
  const auto extension = fs::path(path).extension();
  if (extension == ".gguf") return OpenGguf(file);
  if (extension == ".bin") return OpenLlama2c(file);
  return Unsupported(
      "a model of this kind is not read; wanted a Hugging Face folder, a .gguf file, or llama2.c's .bin");
}

}  // namespace

Result<std::unique_ptr<Model>> Model::Load(const std::string& path, Executor& executor, const LoadOptions& options) {
  auto parts = Open(path);
  if (!parts) return Named(path, parts.error());
  const fs::path clean = fs::path(path).lexically_normal();
  parts->config.name = (clean.has_filename() ? clean : clean.parent_path()).filename().string();
  if (!options.tokenizer.empty()) {
    auto tokenizer = OpenTokenizer(options.tokenizer, parts->config.vocab);
    if (!tokenizer) return Named(options.tokenizer, tokenizer.error());
    parts->tokenizer = *std::move(tokenizer);
  }
  auto weights = LoadTransformer(parts->weights, parts->config, executor, options.dtype);
  if (!weights) return Named(path, weights.error());
  return MakeTransformer(std::move(parts->config), *std::move(weights), std::move(parts->weights),
                         std::move(parts->tokenizer));
}

}  // namespace croquis::model
