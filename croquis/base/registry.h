// Looking a method up in a registry: records with a `name`, listed in the order of listings.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "croquis/base/result.h"

namespace croquis {

// The record of that name, or an error that lists those there are: "no codec 'x'; there are a, b". `what`: "codec".
template <class Info>
Result<const Info*> FindNamed(std::span<const Info* const> all, std::string_view name, std::string_view what) {
  std::string known;
  for (const Info* info : all) {
    if (info->name == name) return info;
    known += (known.empty() ? "" : ", ") + std::string(info->name);
  }
  return NotFound("no " + std::string(what) + " '" + std::string(name) + "'; there are " + known);
}

}  // namespace croquis
