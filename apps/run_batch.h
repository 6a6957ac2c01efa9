// croquis run --batch: many prompts generate together, and what they have in common is read and kept once.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "apps/cli.h"
#include "apps/generate.h"

namespace croquis::apps {

struct BatchOptions {
  Common common;
  ModelOptions model;
  CacheOptions cache;  // one --kv
  GenerateOptions generate;
  std::string file;  // "-" reads standard input
  int64_t ctx = 0;
  bool quiet = false, no_bos = false;
};

// The prompts of a batch file: one a line, or, when the first line that is not blank begins with '{', one JSON object
// a line with the prompt as a string under "prompt" (its other members are not used). Blank lines are left out.
// Errors: lines that are not such objects, with their number; no prompts.
Result<std::vector<std::string>> ParsePrompts(std::string_view text, const std::string& name);

Status RunBatch(const BatchOptions& options);

}  // namespace croquis::apps
