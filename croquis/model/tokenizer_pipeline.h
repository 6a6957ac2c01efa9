// The stages of a tokenizer.json before its model: normalisers change text, pre-tokenisers cut it into words.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "croquis/base/result.h"
#include "croquis/model/tokenizer_regex.h"
#include "croquis/model/unicode.h"

namespace croquis::model {

struct PrependStep {
  std::string text;  // put before text that is not empty
};
struct ReplaceStep {
  Regex pattern;
  std::string content;
};
struct StripStep {
  bool left = true, right = true;
};
using NormalizerStep = std::variant<NormalForm, PrependStep, ReplaceStep, StripStep>;

// Applies the steps in turn to well-formed UTF-8.
Result<std::string> ApplyNormalizers(const std::vector<NormalizerStep>& steps, std::string_view text);

// What becomes of the matches of a pattern (`tokenizers`' SplitDelimiterBehavior).
enum class SplitBehavior : uint8_t { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };
struct SplitStep {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what does not match counts as the match
};
struct PrefixSpaceStep {};  // a space before every word that does not start with one
struct MetaspaceStep {
  enum class Prepend : uint8_t { kAlways, kFirst, kNever } prepend = Prepend::kAlways;
  std::string replacement{kSpaceMark};
  bool split = true;  // before every replacement character
};
using PreTokenizerStep = std::variant<SplitStep, PrefixSpaceStep, MetaspaceStep>;

struct Word {
  std::string_view text;
  bool at_start = false;  // nothing of the original text stands before it
};
// Words and the storage of those that differ from the text they were cut from.
struct WordList {
  std::vector<Word> words;
  std::deque<std::string> storage;
};

// Applies the steps in turn to list.words; no word stays empty.
Status ApplyPreTokenizers(const std::vector<PreTokenizerStep>& steps, WordList& list);

}  // namespace croquis::model
