#include "apps/params.h"

namespace croquis::apps {

std::string ParamText(const ParamInfo& p) {
  std::string range(p.text ? "PATH" : p.choices);
  if (range.empty())
    range =
        p.IsReal() ? Printf("%g..%g", p.real_min, p.real_max) : std::to_string(p.min) + ".." + std::to_string(p.max);
  return std::string(p.name) + "=" + range + " (" + std::string(p.def) + ")";
}

std::string ParamLines(std::span<const ParamInfo> params) {
  std::string text;
  for (const ParamInfo& p : params) text += "    " + ParamText(p) + "  " + std::string(p.help) + "\n";
  return text;
}

Json ParamsJson(std::span<const ParamInfo> params) {
  Json all = Json::array();
  for (const ParamInfo& p : params) {
    Json one = {{"name", p.name}, {"default", p.def}};
    if (p.text) {
      one["text"] = true;
    } else if (!p.choices.empty()) {
      one["choices"] = p.choices;
    } else if (p.IsReal()) {
      one["min"] = p.real_min;
      one["max"] = p.real_max;
    } else {
      one["min"] = p.min;
      one["max"] = p.max;
    }
    one["help"] = p.help;
    all.push_back(one);
  }
  return all;
}

}  // namespace croquis::apps
