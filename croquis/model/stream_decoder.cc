#include <utility>

#include "croquis/model/tokenizer.h"
#include "croquis/model/unicode.h"

namespace croquis::model {
namespace {

using BadBytes = TextRule::BadBytes;
using Kind = Utf8Step::Kind;

// Moves the characters that are complete from the front of `pending` to the result. With `all`, nothing is left behind.
std::string TakeCharacters(std::string& pending, BadBytes rule, bool all) {
  if (rule == BadBytes::kWholeRun) {
    if (!all) return {};
    std::string run = std::exchange(pending, {});
    if (IsUtf8(run)) return run;
    std::string out;
    for (size_t i = 0; i < run.size(); ++i) out += kReplacementCharacter;
    return out;
  }
  std::string out;
  std::string_view rest = pending;
  while (!rest.empty()) {
    const Utf8Step step = DecodeUtf8(rest);
    if (step.kind == Kind::kIncomplete && !all) break;
    // Without the lead byte no part of a broken character can start another, so each of its bytes is bad by itself.
    const size_t marks = rule == BadBytes::kPerByte ? step.length : 1;
    if (step.kind == Kind::kCharacter) {
      out += rest.substr(0, step.length);
    } else {
      for (size_t i = 0; i < marks; ++i) out += kReplacementCharacter;
    }
    rest.remove_prefix(step.length);
  }
  pending.erase(0, pending.size() - rest.size());
  return out;
}

}  // namespace

std::string StreamDecoder::Push(int32_t id) {
  const TokenText token = tokenizer_->Text(id, first_);
  if (token.kind == TokenText::Kind::kSkip) return {};
  const TextRule text_rule = tokenizer_->Rule();
  const BadBytes rule = text_rule.bad_bytes;
  first_ = first_ && text_rule.first_lasts && token.bytes.empty();
  if (token.kind == TokenText::Kind::kByte || rule == BadBytes::kPerSequence) {
    pending_ += token.bytes;
    return Strip(TakeCharacters(pending_, rule, false));
  }
  // Text ends a run of byte tokens.
  std::string out = TakeCharacters(pending_, rule, true);
  out += token.bytes;
  return Strip(std::move(out));
}

std::string StreamDecoder::Flush() { return Strip(TakeCharacters(pending_, tokenizer_->Rule().bad_bytes, true)); }

std::string StreamDecoder::Strip(std::string text) {
  if (strip_ == 0 || text.empty()) return text;
  size_t n = 0;
  while (n < text.size() && strip_ > 0 && text[n] == ' ') ++n, --strip_;
  if (n < text.size()) strip_ = 0;
  text.erase(0, n);
  return text;
}

}  // namespace croquis::model
