// Regular expressions as tokenizer files write them (Oniguruma's and Rust's syntax), run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::model {

class Regex {
 public:
  // Errors: syntax that PCRE2 refuses, and constructs that the two libraries read differently (nested classes, class
  // intersections, \h, \R, ...), named.
  static Result<Regex> Make(std::string_view pattern);
  // A regex that matches `text` and nothing else.
  static Result<Regex> Literal(std::string_view text);

  // Appends [begin, end) of each match in well-formed UTF-8, left to right, not overlapping; empty matches are left
  // out. Errors: PCRE2's limits on backtracking.
  Status FindAll(std::string_view text, std::vector<std::pair<size_t, size_t>>& out) const;
  const std::string& pattern() const { return pattern_; }

 private:
  struct Code;  // pcre2_code
  struct Free {
    void operator()(Code* code) const;
  };
  static Result<Regex> Compile(std::string_view pattern, const std::string& translated);
  Regex(std::string pattern, Code* code) : pattern_(std::move(pattern)), code_(code) {}
  std::string pattern_;
  std::unique_ptr<Code, Free> code_;
};

// The pattern in PCRE2's syntax with the same meaning. PCRE2's own \s takes U+180E, which is no white space since
// Unicode 6.3, and its \w (before 10.43) leaves out marks and connectors: both are spelled out by properties.
Result<std::string> TranslateRegex(std::string_view pattern);

}  // namespace croquis::model
