#include "croquis/model/gguf_tokenizer.h"

#include <limits>

#include "croquis/model/tokenizer_formats.h"

namespace croquis::model {
namespace {

constexpr char kPrefix[] = "tokenizer.ggml.";

Error WrongKind(const std::string& key, const char* wanted) { return Corrupt("GGUF: " + key + " is not " + wanted); }

}  // namespace

Result<std::unique_ptr<Tokenizer>> TokenizerFromGguf(const GgufFile& file) {
  const auto key = [](const char* name) { return std::string(kPrefix) + name; };
  const auto text = [&](const char* name) { return std::string(file.String(key(name)).value_or("")); };
  GgufTokenizerData data;
  data.model = text("model");
  data.pre = text("pre");
  if (data.model.empty() || data.model == "none" || data.model == "no_vocab") return std::unique_ptr<Tokenizer>();

  const auto strings = [&](const char* name, std::vector<std::string>& to) -> Status {
    if (file.Find(key(name)) == nullptr) return {};
    const auto list = file.Strings(key(name));
    if (!list) return WrongKind(key(name), "a list of strings");
    to.assign(list->begin(), list->end());
    return {};
  };
  CROQUIS_CHECK_OK(strings("tokens", data.tokens));
  CROQUIS_CHECK_OK(strings("merges", data.merges));
  if (file.Find(key("scores")) != nullptr) {
    const auto scores = file.Reals(key("scores"));
    if (!scores) return WrongKind(key("scores"), "a list of numbers");
    for (const double s : *scores) data.scores.push_back(float(s));
  }
  if (file.Find(key("token_type")) != nullptr) {
    const auto types = file.Ints(key("token_type"));
    if (!types) return WrongKind(key("token_type"), "a list of integers");
    for (const int64_t t : *types) data.types.push_back(t >= 0 && t <= 1000 ? int32_t(t) : 0);
  }
  const std::pair<const char*, int32_t*> ids[] = {{"bos_token_id", &data.bos},
                                                  {"eos_token_id", &data.eos},
                                                  {"eot_token_id", &data.eot},
                                                  {"eom_token_id", &data.eom},
                                                  {"unknown_token_id", &data.unk}};
  for (const auto& [name, to] : ids) {
    const auto id = file.Int(key(name));
    if (!id) continue;
    // Some converters write -1, or it as an unsigned number, for "none".
    if (*id < -1 || (*id > std::numeric_limits<int32_t>::max() && *id != std::numeric_limits<uint32_t>::max()))
      return Corrupt("GGUF: " + key(name) + " is " + std::to_string(*id));
    *to = int32_t(*id);
  }
  data.add_bos = file.Bool(key("add_bos_token"));
  data.add_eos = file.Bool(key("add_eos_token"));
  data.add_space_prefix = file.Bool(key("add_space_prefix"));
  return MakeGgufTokenizer(data);
}

}  // namespace croquis::model
