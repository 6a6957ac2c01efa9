// Which layers and heads of a model an override is for: "0-1", "3", "3/0", "0-3/1-2".
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

#include "croquis/base/result.h"

namespace croquis {

struct LayerHeads {
  int64_t layer_begin = 0, layer_end = 0;  // half-open
  int64_t head_begin = 0, head_end = -1;   // half-open; all heads when head_end < 0

  bool Contains(int64_t layer, int64_t head) const {
    return layer_begin <= layer && layer < layer_end && (head_end < 0 || (head_begin <= head && head < head_end));
  }
  // An error when it names layers or heads beyond those there are. `what`: "cache", `heads_are`: "kv heads".
  Status Check(std::string_view what, int64_t layers, int64_t heads, std::string_view heads_are) const;
};

// "LAYERS=rest" or "LAYERS/HEADS=rest": where, and the rest. `example` ends the error's message.
Result<std::pair<LayerHeads, std::string_view>> ParseLayerHeads(std::string_view text, std::string_view example);

// What users and files gave, for a message: quoted, at most 80 characters of it, unprintable ones replaced.
std::string Quoted(std::string_view text);

}  // namespace croquis
