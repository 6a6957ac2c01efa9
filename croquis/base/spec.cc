#include "croquis/base/spec.h"

#include <algorithm>
#include <charconv>

#include "croquis/base/check.h"
#include "croquis/base/layer_heads.h"

namespace croquis {
namespace {

bool WordChar(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
}
bool IsWord(std::string_view s) { return !s.empty() && std::all_of(s.begin(), s.end(), WordChar); }
bool IsValue(std::string_view s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) { return WordChar(c) || c == '/' || c == '+'; });
}

bool InChoices(std::string_view choices, std::string_view word) {
  while (true) {
    const size_t bar = choices.find('|');
    if (choices.substr(0, bar) == word) return true;
    if (bar == choices.npos) return false;
    choices.remove_prefix(bar + 1);
  }
}

bool ParseInt(std::string_view s, int64_t& v) {
  const auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), v);
  return ec == std::errc() && end == s.data() + s.size();
}

bool ParseReal(std::string_view s, double& v) {
  const auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), v);
  return ec == std::errc() && end == s.data() + s.size();
}

// "0.05", without trailing zeros.
std::string Short(double v) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, v).ptr};
}

Status CheckValue(const std::string& method, const ParamInfo& p, std::string_view value) {
  const std::string what = method + ": " + std::string(p.name) + " is ", got = ", got '" + std::string(value) + "'";
  if (p.text) return {};
  if (!p.choices.empty()) {
    if (!InChoices(p.choices, value)) return InvalidArgument(what + "one of " + std::string(p.choices) + got);
  } else if (p.IsReal()) {
    double v = 0;
    if (!ParseReal(value, v) || !(v >= p.real_min && v <= p.real_max))
      return OutOfRange(what + "a number from " + Short(p.real_min) + " to " + Short(p.real_max) + got);
  } else {
    int64_t v = 0;
    if (!ParseInt(value, v) || v < p.min || v > p.max)
      return OutOfRange(what + "a whole number from " + std::to_string(p.min) + " to " + std::to_string(p.max) + got);
  }
  return {};
}

}  // namespace

std::string_view Spec::Word(std::string_view param) const {
  for (const auto& [k, v] : params)
    if (k == param) return v;
  CROQUIS_DCHECK(false);
  return {};
}

int64_t Spec::Int(std::string_view param) const {
  int64_t v = 0;
  ParseInt(Word(param), v);
  return v;
}

double Spec::Real(std::string_view param) const {
  double v = 0;
  ParseReal(Word(param), v);
  return v;
}

void Spec::Set(std::string_view param, std::string value) {
  for (auto& [k, v] : params)
    if (k == param) {
      v = std::move(value);
      return;
    }
  params.emplace_back(std::string(param), std::move(value));
}

Result<Spec> ParseSpec(std::string_view text) {
  Spec spec;
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  if (!IsWord(name)) return InvalidArgument("a method string is name:key=value,key=value; got " + Quoted(text));
  spec.name = name;
  if (colon == text.npos) return spec;
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const size_t comma = rest.find(',');
    const std::string_view item = rest.substr(0, comma);
    const size_t eq = item.find('=');
    if (eq == item.npos || !IsWord(item.substr(0, eq)) || !IsValue(item.substr(eq + 1)))
      return InvalidArgument(spec.name + ": wanted key=value, got " + Quoted(item) + " in " + Quoted(text));
    const std::string_view key = item.substr(0, eq);
    for (const auto& [k, v] : spec.params)
      if (k == key) return InvalidArgument(spec.name + ": " + k + " is given twice in " + Quoted(text));
    spec.params.emplace_back(std::string(key), std::string(item.substr(eq + 1)));
    if (comma == rest.npos) return spec;
    rest.remove_prefix(comma + 1);
  }
}

Result<Spec> Complete(const Spec& spec, std::span<const ParamInfo> params) {
  Spec full{spec.name, {}};
  for (const ParamInfo& p : params) full.params.emplace_back(std::string(p.name), std::string(p.def));
  for (const auto& [key, value] : spec.params) {
    const auto it = std::find_if(params.begin(), params.end(),
                                 [name = std::string_view(key)](const ParamInfo& p) { return p.name == name; });
    if (it == params.end()) {
      std::string have;
      for (const ParamInfo& p : params) have += (have.empty() ? "" : ", ") + std::string(p.name);
      return InvalidArgument(spec.name + " has no parameter '" + key + "'; it has " + (have.empty() ? "none" : have));
    }
    CROQUIS_CHECK_OK(CheckValue(spec.name, *it, value));
    full.Set(key, value);
  }
  return full;
}

std::string ToString(const Spec& spec) {
  std::string out = spec.name;
  char sep = ':';
  for (const auto& [k, v] : spec.params) {
    out += sep + k + "=" + v;
    sep = ',';
  }
  return out;
}

}  // namespace croquis
