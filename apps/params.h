// How listings of methods (codecs, attn) show parameters.
#pragma once

#include <span>
#include <string>

#include "apps/output.h"
#include "croquis/base/spec.h"

namespace croquis::apps {

// "bits=2..8 (4)", "eps=0..1 (0.05)" for a real number, "precision=auto|f32 (auto)".
std::string ParamText(const ParamInfo& param);
// One line a parameter: its text and its help.
std::string ParamLines(std::span<const ParamInfo> params);
// An array of {name, default, min, max | choices, help}; reals have real bounds.
Json ParamsJson(std::span<const ParamInfo> params);

}  // namespace croquis::apps
