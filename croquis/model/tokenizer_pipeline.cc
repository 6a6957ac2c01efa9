#include "croquis/model/tokenizer_pipeline.h"

#include <algorithm>

#include "croquis/model/tokenizer_base.h"

namespace croquis::model {
namespace {

using Ranges = std::vector<std::pair<size_t, size_t>>;

Result<std::string> ReplaceMatches(const ReplaceStep& step, std::string_view text) {
  Ranges matches;
  CROQUIS_CHECK_OK(step.pattern.FindAll(text, matches));
  std::string out;
  out.reserve(text.size() + matches.size() * step.content.size());
  size_t done = 0;
  for (const auto& [begin, end] : matches) {
    out += text.substr(done, begin - done);
    out += step.content;
    done = end;
  }
  out += text.substr(done);
  return out;
}

std::string_view Strip(const StripStep& step, std::string_view text) {
  while (step.left && !text.empty() && IsWhiteSpace(DecodeUtf8(text).rune)) text.remove_prefix(DecodeUtf8(text).length);
  while (step.right && !text.empty() && IsWhiteSpace(LastCharacter(text).rune)) {
    text.remove_suffix(LastCharacter(text).length);
  }
  return text;
}

struct Piece {
  size_t begin, end;
  bool match;
};

// Matches and what lies between them, in order, joined as the behaviour says.
void SplitWord(std::string_view text, const Ranges& matches, SplitBehavior behavior, bool invert,
               std::vector<Piece>& out) {
  out.clear();
  std::vector<Piece>& pieces = out;
  size_t done = 0;
  for (const auto& [begin, end] : matches) {
    if (begin > done) pieces.push_back({done, begin, invert});
    pieces.push_back({begin, end, !invert});
    done = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), invert});
  if (behavior == SplitBehavior::kIsolated) return;
  if (behavior == SplitBehavior::kRemoved) {
    std::erase_if(pieces, [](const Piece& p) { return p.match; });
    return;
  }
  // The others join a piece with the one before it; kMergedWithNext does so from the right, so that of several matches
  // in a row the last one is joined.
  const bool backwards = behavior == SplitBehavior::kMergedWithNext;
  std::vector<Piece> joined;
  bool previous_match = false;
  const size_t n = pieces.size();
  for (size_t i = 0; i < n; ++i) {
    const Piece& p = pieces[backwards ? n - 1 - i : i];
    const bool join = !joined.empty() &&
                      (behavior == SplitBehavior::kContiguous ? p.match == previous_match : p.match && !previous_match);
    if (!join) {
      joined.push_back(p);
    } else if (backwards) {
      joined.back().begin = p.begin;
    } else {
      joined.back().end = p.end;
    }
    previous_match = p.match;
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  pieces = std::move(joined);
}

Status Apply(const SplitStep& step, WordList& list) {
  std::vector<Word> out;
  out.reserve(list.words.size() * 2);
  Ranges matches;
  std::vector<Piece> pieces;
  for (const Word& word : list.words) {
    matches.clear();
    CROQUIS_CHECK_OK(step.pattern.FindAll(word.text, matches));
    SplitWord(word.text, matches, step.behavior, step.invert, pieces);
    for (const Piece& p : pieces)
      out.push_back({word.text.substr(p.begin, p.end - p.begin), word.at_start && p.begin == 0});
  }
  list.words = std::move(out);
  return {};
}

Status Apply(const PrefixSpaceStep&, WordList& list) {
  for (Word& word : list.words) {
    if (word.text.starts_with(' ')) continue;
    word.text = list.storage.emplace_back(" " + std::string(word.text));
  }
  return {};
}

Status Apply(const MetaspaceStep& step, WordList& list) {
  std::vector<Word> out;
  for (const Word& word : list.words) {
    std::string text = ReplaceAll(word.text, " ", step.replacement);
    const bool wanted = step.prepend == MetaspaceStep::Prepend::kAlways ||
                        (step.prepend == MetaspaceStep::Prepend::kFirst && word.at_start);
    if (wanted && !text.starts_with(step.replacement)) text.insert(0, step.replacement);
    std::string_view rest = list.storage.emplace_back(std::move(text));
    bool at_start = word.at_start;
    while (step.split) {
      const size_t cut = rest.find(step.replacement, 1);  // 1: a word may start with the mark
      if (cut == std::string_view::npos) break;
      out.push_back({rest.substr(0, cut), at_start});
      rest.remove_prefix(cut);
      at_start = false;
    }
    if (!rest.empty()) out.push_back({rest, at_start});
  }
  list.words = std::move(out);
  return {};
}

}  // namespace

Result<std::string> ApplyNormalizers(const std::vector<NormalizerStep>& steps, std::string_view text) {
  std::string now(text);
  for (const NormalizerStep& step : steps) {
    if (const auto* form = std::get_if<NormalForm>(&step)) {
      CROQUIS_TRY(now, Normalize(now, *form));
    } else if (const auto* prepend = std::get_if<PrependStep>(&step)) {
      if (!now.empty()) now.insert(0, prepend->text);
    } else if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
      CROQUIS_TRY(now, ReplaceMatches(*replace, now));
    } else if (const auto* strip = std::get_if<StripStep>(&step)) {
      now = std::string(Strip(*strip, now));
    }
  }
  return now;
}

Status ApplyPreTokenizers(const std::vector<PreTokenizerStep>& steps, WordList& list) {
  std::erase_if(list.words, [](const Word& word) { return word.text.empty(); });
  for (const PreTokenizerStep& step : steps) {
    CROQUIS_CHECK_OK(std::visit([&](const auto& s) { return Apply(s, list); }, step));
  }
  return {};
}

}  // namespace croquis::model
