#include "croquis/model/tokenizer_scored.h"

#include <algorithm>
#include <cmath>

#include "croquis/model/unicode.h"

namespace croquis::model {

Result<std::unique_ptr<Tokenizer>> ScoredTokenizer::Make(TokenizerParts parts, ScoredData data) {
  const size_t n = data.pieces.size();
  if (data.scores.size() != n || data.usable.size() != n || data.unused.size() != n) {
    return Corrupt("tokenizer: " + std::to_string(n) + " pieces, but " + std::to_string(data.scores.size()) +
                   " scores and " + std::to_string(data.usable.size()) + " types");
  }
  for (size_t i = 0; i < n; ++i) {
    if (std::isnan(data.scores[i]))
      return Corrupt("tokenizer: the score of piece " + std::to_string(i) + " is no number");
  }
  return std::unique_ptr<Tokenizer>(new ScoredTokenizer(std::move(parts), std::move(data)));
}

ScoredTokenizer::ScoredTokenizer(TokenizerParts parts, ScoredData data)
    : VocabTokenizer(std::move(parts)), data_(std::move(data)), added_(std::move(data_.added)) {
  ids_.reserve(data_.pieces.size());
  for (size_t i = 0; i < data_.pieces.size(); ++i) {
    if (!data_.usable[i] || data_.pieces[i].empty()) continue;
    ids_.emplace(data_.pieces[i], int32_t(i));  // of equal pieces the first
    longest_ = std::max(longest_, data_.pieces[i].size());
    by_words_ = by_words_ && MarksOnlyLead(data_.pieces[i], data_.space);
  }
}

Status ScoredTokenizer::EncodeText(std::string_view text, bool parse_special, std::vector<int32_t>& out) const {
  std::vector<AddedTokenMatcher::Part> parts;
  added_.Split(text, parse_special, parts);
  BpeWorkspace<float> workspace;
  for (const auto& part : parts) {
    if (part.id >= 0) {
      out.push_back(part.id);
      continue;
    }
    // Text between added tokens always starts a part, so each gets the prefix.
    const std::string_view piece = text.substr(part.begin, part.end - part.begin);
    const std::string escaped = ReplaceAll((data_.dummy_prefix ? " " : "") + std::string(piece), " ", data_.space);
    for (std::string_view rest = escaped; !rest.empty();) {
      const size_t n = by_words_ ? PartBeforeMark(rest, data_.space, 1) : rest.size();
      EncodeWord(rest.substr(0, n), workspace, out);
      rest.remove_prefix(n);
    }
  }
  return {};
}

void ScoredTokenizer::EncodeWord(std::string_view text, BpeWorkspace<float>& workspace,
                                 std::vector<int32_t>& out) const {
  const auto id_of = [&](std::string_view piece) {
    const auto it = ids_.find(piece);
    return it == ids_.end() ? -1 : it->second;
  };
  workspace.symbols.clear();
  for (size_t at = 0; at < text.size();) {
    const size_t length = DecodeUtf8(text.substr(at)).length;
    workspace.Add(id_of(text.substr(at, length)), at, length);
    at += length;
  }
  // Where unused pieces were put together, to take them apart again in the end (sentencepiece, bpe_model.cc).
  std::unordered_map<std::string_view, size_t> parts_of_unused;  // piece -> length of its left part
  MergeSymbols(workspace, [&](const BpeSymbol& a, const BpeSymbol& b, float& priority, int32_t& id) {
    const size_t length = size_t(a.length) + b.length;
    if (length > longest_) return false;
    const std::string_view piece = text.substr(a.begin, length);
    id = id_of(piece);
    if (id < 0) return false;
    priority = -data_.scores[size_t(id)];
    if (data_.unused[size_t(id)]) parts_of_unused[piece] = a.length;
    return true;
  });
  std::vector<std::string_view> waiting;
  for (const BpeSymbol& symbol : workspace.symbols) {
    if (symbol.length == 0) continue;
    waiting.push_back(text.substr(symbol.begin, symbol.length));
    while (!waiting.empty()) {
      const std::string_view piece = waiting.back();
      waiting.pop_back();
      const int32_t id = id_of(piece);
      const auto cut = parts_of_unused.find(piece);
      if (id >= 0 && data_.unused[size_t(id)] && cut != parts_of_unused.end()) {
        waiting.push_back(piece.substr(cut->second));
        waiting.push_back(piece.substr(0, cut->second));
      } else if (id >= 0) {
        out.push_back(id);
      } else {
        for (const char c : piece) {
          const int32_t byte = data_.byte_ids[uint8_t(c)];
          if (byte >= 0 || data_.unk >= 0) out.push_back(byte >= 0 ? byte : data_.unk);
        }
      }
    }
  }
}

}  // namespace croquis::model
