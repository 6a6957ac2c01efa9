// Reads "k=...,v=..." and its overrides by layer and head.
#include <charconv>
#include <optional>

#include "croquis/codecs/codec.h"
#include "croquis/kvcache/cache.h"

namespace croquis::kvcache {
namespace {

constexpr const char* kForms = "wanted METHOD, k=METHOD or v=METHOD, as in eden:bits=4 or k=eden:bits=4,v=eden:bits=3";

std::string Quote(std::string_view s) {
  std::string out = "'";
  for (char c : s.substr(0, 80)) out += (c >= 32 && c < 127) ? c : '?';
  return out + (s.size() > 80 ? "...'" : "'");
}

struct Sides {
  std::optional<std::string> key, value;
};

// Splits at the commas; an item that begins with k= or v= starts a method, the others are parameters of the one before.
Result<Sides> ParseSides(std::string_view text) {
  Sides sides;
  if (!text.starts_with("k=") && !text.starts_with("v=")) {
    sides.key = sides.value = std::string(text);
  } else {
    std::optional<std::string>* current = nullptr;
    for (std::string_view rest = text;;) {
      const size_t comma = rest.find(',');
      std::string_view item = rest.substr(0, comma);
      if (item.starts_with("k=") || item.starts_with("v=")) {
        current = item[0] == 'k' ? &sides.key : &sides.value;
        if (*current) return InvalidArgument(std::string(1, item[0]) + "= is given twice in " + Quote(text));
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
    if (!spec) return Error{spec.error().code, "cache methods " + Quote(text) + ": " + spec.error().message};
  }
  return sides;
}

// "3" or "0-3" into a half-open range.
bool ParseRange(std::string_view s, int64_t& begin, int64_t& end) {
  const char* const last = s.data() + s.size();
  auto [p, ec] = std::from_chars(s.data(), last, begin);
  if (ec != std::errc() || begin < 0 || begin >= INT32_MAX) return false;
  end = begin;
  if (p != last) {
    if (*p != '-') return false;
    auto [q, ec2] = std::from_chars(p + 1, last, end);
    if (ec2 != std::errc() || q != last || end < begin || end >= INT32_MAX) return false;
  }
  ++end;
  return true;
}

Result<KvPolicy::Override> ParseOverride(std::string_view text, const KvPair& base) {
  const size_t eq = text.find('=');
  const std::string_view where = text.substr(0, eq);
  const size_t slash = where.find('/');
  KvPolicy::Override o{0, 0, 0, -1, base};
  const bool ok = eq != text.npos && ParseRange(where.substr(0, slash), o.layer_begin, o.layer_end) &&
                  (slash == where.npos || ParseRange(where.substr(slash + 1), o.head_begin, o.head_end));
  if (!ok)
    return InvalidArgument(
        "layer override " + Quote(text) +
        ": wanted LAYERS=METHODS or LAYERS/HEADS=METHODS, as in 0-1=f16 or 3/0=k=int8,v=eden:bits=4");
  CROQUIS_TRY(const Sides sides, ParseSides(text.substr(eq + 1)));
  if (sides.key) o.pair.key = *sides.key;
  if (sides.value) o.pair.value = *sides.value;
  return o;
}

}  // namespace

KvPair KvPolicy::At(int64_t layer, int64_t head) const {
  for (auto o = overrides.rbegin(); o != overrides.rend(); ++o) {
    const bool in_heads = o->head_end < 0 || (o->head_begin <= head && head < o->head_end);
    if (o->layer_begin <= layer && layer < o->layer_end && in_heads) return o->pair;
  }
  return base;
}

Result<KvPolicy> ParseKvPolicy(std::string_view kv, std::span<const std::string> layers) {
  KvPolicy policy;
  CROQUIS_TRY(const Sides sides, ParseSides(kv));
  if (!sides.key || !sides.value)
    return InvalidArgument("cache methods " + Quote(kv) + ": " + (sides.key ? "v=" : "k=") + " is missing; " + kForms);
  policy.base = {*sides.key, *sides.value};
  policy.text = kv;
  for (const std::string& layer : layers) {
    CROQUIS_TRY(KvPolicy::Override o, ParseOverride(layer, policy.base));
    policy.overrides.push_back(std::move(o));
    policy.text += " " + layer;
  }
  return policy;
}

}  // namespace croquis::kvcache
