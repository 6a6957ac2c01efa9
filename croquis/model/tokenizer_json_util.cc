#include "croquis/model/tokenizer_json_util.h"

#include <limits>

namespace croquis::model {
namespace {

constexpr int kMaxDepth = 64;

bool TooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace

Result<Json> ParseJson(std::span<const std::byte> bytes, const std::string& what) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (TooDeep(text)) return Corrupt(what + ": JSON nested deeper than " + std::to_string(kMaxDepth));
  try {
    return Json::parse(text);
  } catch (const Json::exception& e) {
    return Corrupt(what + ": not valid JSON: " + e.what());
  }
}

const Json* Member(const Json& value, const char* key) {
  if (!value.is_object()) return nullptr;
  const auto it = value.find(key);
  return it == value.end() || it->is_null() ? nullptr : &*it;
}

Result<bool> BoolMember(const Json& value, const char* key, bool otherwise, const std::string& where) {
  const Json* member = Member(value, key);
  if (member == nullptr) return otherwise;
  if (!member->is_boolean())
    return Corrupt(where + ": '" + key + "' should be true or false, is " + member->type_name());
  return member->get<bool>();
}

Status ReadFlags(const Json& item, const std::string& where, AddedToken* token) {
  CROQUIS_TRY(token->special, BoolMember(item, "special", false, where));
  CROQUIS_TRY(token->single_word, BoolMember(item, "single_word", false, where));
  CROQUIS_TRY(token->lstrip, BoolMember(item, "lstrip", false, where));
  CROQUIS_TRY(token->rstrip, BoolMember(item, "rstrip", false, where));
  CROQUIS_TRY(token->normalized, BoolMember(item, "normalized", !token->special, where));
  return {};
}

Result<std::string> StringMember(const Json& value, const char* key, const std::string& otherwise,
                                 const std::string& where) {
  const Json* member = Member(value, key);
  if (member == nullptr) return otherwise;
  if (!member->is_string()) return Corrupt(where + ": '" + key + "' should be a string, is " + member->type_name());
  return member->get_ref<const std::string&>();
}

int32_t TokenId(const Json& value) {
  if (!value.is_number_integer()) return -1;
  if (value.is_number_unsigned()) {
    const uint64_t id = value.get<uint64_t>();
    return id > uint64_t(std::numeric_limits<int32_t>::max()) ? -1 : int32_t(id);
  }
  const int64_t id = value.get<int64_t>();
  return id < 0 || id > std::numeric_limits<int32_t>::max() ? -1 : int32_t(id);
}

std::string TypeName(const Json& value) {
  const Json* type = Member(value, "type");
  return type != nullptr && type->is_string() ? type->get<std::string>() : "(none)";
}

}  // namespace croquis::model
