// Reading JSON that may be hostile: errors instead of exceptions, and a bound on nesting.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

#include "croquis/base/result.h"
#include "croquis/model/tokenizer_base.h"

namespace croquis::model {

using Json = nlohmann::json;

// `what` names the file in errors. Errors: not JSON, not UTF-8, nested deeper than 64.
Result<Json> ParseJson(std::span<const std::byte> bytes, const std::string& what);

// A member of an object; null when `value` is no object, has no such member, or it is JSON's null.
const Json* Member(const Json& value, const char* key);
// Members of a given type. Errors name `where`, the key and the type wanted; an absent member is `otherwise`.
Result<bool> BoolMember(const Json& value, const char* key, bool otherwise, const std::string& where);
Result<std::string> StringMember(const Json& value, const char* key, const std::string& otherwise,
                                 const std::string& where);
// The five flags of an added token, in either file's form; absent ones take their defaults. Errors: as BoolMember.
Status ReadFlags(const Json& item, const std::string& where, AddedToken* token);
// A token id: an integer in [0, 2^31); -1 for anything else.
int32_t TokenId(const Json& value);
// The "type" of a stage, "(none)" when it has none.
std::string TypeName(const Json& value);

}  // namespace croquis::model
