// Reads "k=...,v=..." and its overrides by layer and head.
#include <optional>

#include "croquis/codecs/codec.h"
#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/policies/policy.h"

namespace croquis::kvcache {
namespace {

constexpr const char* kForms = "wanted METHOD, k=METHOD or v=METHOD, as in eden:bits=4 or k=eden:bits=4,v=eden:bits=3";

struct Sides {
  std::optional<std::string> key, value;
  std::string evict;  // with an eviction policy key and value are f16
};

// Splits at the commas; an item that begins with k= or v= starts a method, the others are parameters of the one before.
Result<Sides> ParseSides(std::string_view text) {
  Sides sides;
  if (FindPolicy(text) != nullptr) {
    const auto spec = ResolvePolicy(text);
    if (!spec) return Error{spec.error().code, "cache policy " + Quoted(text) + ": " + spec.error().message};
    sides.key = sides.value = "f16";
    sides.evict = text;
    return sides;
  }
  if (!text.starts_with("k=") && !text.starts_with("v=")) {
    sides.key = sides.value = std::string(text);
  } else {
    std::optional<std::string>* current = nullptr;
    for (std::string_view rest = text;;) {
      const size_t comma = rest.find(',');
      std::string_view item = rest.substr(0, comma);
      if (item.starts_with("k=") || item.starts_with("v=")) {
        current = item[0] == 'k' ? &sides.key : &sides.value;
        if (*current) return InvalidArgument(std::string(1, item[0]) + "= is given twice in " + Quoted(text));
        *current = std::string(item.substr(2));
      } else {
        **current += ',';
        **current += item;
      }
      if (comma == rest.npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  for (const auto& side : {sides.key, sides.value}) {
    if (!side) continue;
    const auto spec = codecs::ResolveSpec(*side);
    if (spec) continue;
    const bool policy = FindPolicy(*side) != nullptr;
    return Error{spec.error().code,
                 "cache methods " + Quoted(text) + ": " +
                     (policy ? "an eviction policy is for keys and values together: write it without k= and v="
                             : spec.error().message + "; and the eviction policies window, h2o, subgen")};
  }
  return sides;
}

Result<KvPolicy::Override> ParseOverride(std::string_view text, const KvPair& base) {
  CROQUIS_TRY(const auto where, ParseLayerHeads(text, "0-1=f16 or 3/0=k=int8,v=eden:bits=4"));
  KvPolicy::Override o{where.first, base};
  CROQUIS_TRY(const Sides sides, ParseSides(where.second));
  if (sides.key) o.pair.key = *sides.key;
  if (sides.value) o.pair.value = *sides.value;
  o.pair.evict = sides.evict;
  return o;
}

}  // namespace

KvPair KvPolicy::At(int64_t layer, int64_t head) const {
  for (auto o = overrides.rbegin(); o != overrides.rend(); ++o)
    if (o->at.Contains(layer, head)) return o->pair;
  return base;
}

Result<KvPolicy> ParseKvPolicy(std::string_view kv, std::span<const std::string> layers) {
  KvPolicy policy;
  CROQUIS_TRY(const Sides sides, ParseSides(kv));
  if (!sides.key || !sides.value)
    return InvalidArgument("cache methods " + Quoted(kv) + ": " + (sides.key ? "v=" : "k=") + " is missing; " + kForms);
  policy.base = {*sides.key, *sides.value, sides.evict};
  policy.text = kv;
  for (const std::string& layer : layers) {
    CROQUIS_TRY(KvPolicy::Override o, ParseOverride(layer, policy.base));
    policy.overrides.push_back(std::move(o));
    policy.text += " " + layer;
  }
  return policy;
}

}  // namespace croquis::kvcache
