// Method strings: "name:key=value,key=value". The only parser of them in the project.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "croquis/base/result.h"

namespace croquis {

// One parameter of a method. Help, docs, range checks and listings are derived from this record.
struct ParamInfo {
  std::string_view name;
  std::string_view def;           // default, as written in a method string
  int64_t min = 0, max = 0;       // inclusive range of an integer; unused when `choices` is set
  std::string_view choices = {};  // "auto|none|rope": the words allowed; empty for integers
  std::string_view help = {};
  double real_min = 0, real_max = 0;  // inclusive range of a real number; used when real_max > real_min
  bool text = false;                  // any value, as the path of a file
  bool IsReal() const { return real_max > real_min; }
};

struct Spec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> params;

  // The value of a parameter; all need a spec made by Complete, where every parameter is present and valid.
  int64_t Int(std::string_view param) const;
  double Real(std::string_view param) const;
  std::string_view Word(std::string_view param) const;
  void Set(std::string_view param, std::string value);
};

// Syntax only: "eden:bits=4,center=none". Names are [A-Za-z0-9_.-]+; values may have / and + in them, too.
Result<Spec> ParseSpec(std::string_view text);
// Adds defaults in the order of `params` and checks names, ranges and words.
Result<Spec> Complete(const Spec& spec, std::span<const ParamInfo> params);
// The inverse of ParseSpec; of a completed spec it names the full setting.
std::string ToString(const Spec& spec);

}  // namespace croquis
