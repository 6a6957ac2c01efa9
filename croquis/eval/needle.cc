#include "croquis/eval/needle.h"

#include <algorithm>
#include <cmath>

#include "croquis/base/rng.h"
#include "croquis/eval/metrics.h"

namespace croquis::eval {
namespace {

constexpr int64_t kDigits = 5, kAnswerRoom = 16, kSlack = 48;

// Words that name the secrets: common nouns in any vocabulary.
constexpr const char* kNames[] = {"garden", "river",  "castle",   "mirror", "winter",  "bridge", "forest",  "harbour",
                                  "candle", "letter", "mountain", "silver", "village", "window", "journey", "orchard"};

// The place between two sentences nearest to `at`; the ends count.
size_t SentenceBreak(const std::string& text, size_t at) {
  const auto is_break = [&](size_t i) { return i == 0 || i >= text.size() || (text[i] == ' ' && text[i - 1] == '.'); };
  for (size_t off = 0; off <= text.size(); off++) {
    if (at + off <= text.size() && is_break(at + off)) return at + off;
    if (off <= at && is_break(at - off)) return at - off;
  }
  return at;
}

std::string Repeat(const std::string& text, size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += (out.empty() ? "" : " ") + text;
  size_t end = bytes;
  while (end > 0 && (uint8_t(out[std::min(end, out.size() - 1)]) & 0xC0) == 0x80) end--;
  out.resize(end);
  return out;
}

struct Fact {
  std::string sentence, question, answer, digits;
};

Fact MakeFact(uint64_t seed, int64_t trial) {
  const Stream s = Stream{seed, Purpose("eval.needle")}.Sub(uint64_t(trial));
  Fact f;
  const std::string name = kNames[s.U32(0) % std::size(kNames)];
  for (int64_t i = 0; i < kDigits; i++) f.digits += char('0' + s.U32(uint64_t(i) + 1) % 10);
  f.sentence = " The secret number of " + name + " is " + f.digits + ".";
  f.question = " What is the secret number of " + name + "? The secret number of " + name + " is";
  f.answer = " " + f.digits + ".";
  return f;
}

// Prompt and answer through one cache: the answer's likelihood with its true tokens, then the greedy answer.
struct Outcome {
  bool exact = false;
  int64_t top = 0;
  double log_prob = 0;
};

Result<Outcome> Ask(Executor& executor, model::Model& model, const NeedlePrompt& prompt,
                    const kvcache::KvPolicy& policy, const NeedleOptions& o) {
  kvcache::CacheConfig config = model.CacheTemplate();
  config.capacity = int64_t(prompt.tokens.size()) + kAnswerRoom + int64_t(prompt.answer.size());
  config.sinks = o.sinks;
  config.ring = o.ring;
  config.policy = policy;
  config.seed = o.seed;
  CROQUIS_TRY(auto cache, kvcache::KvCache::Make(config));
  Matrix<float> logits(1, model.config().vocab);
  CROQUIS_CHECK_OK(model.Forward(executor, prompt.tokens, *cache, logits.View(), o.chunk));
  const auto branch = cache->Branch();
  const int32_t first = ArgMax(logits.View()[0]);

  Outcome out;
  ReferenceRow row;
  for (size_t i = 0; i < prompt.answer.size(); i++) {
    row.Set(logits.View()[0]);
    out.log_prob -= row.Nll(prompt.answer[i]);
    out.top += ArgMax(logits.View()[0]) == prompt.answer[i] ? 1 : 0;
    if (i + 1 == prompt.answer.size()) break;
    CROQUIS_CHECK_OK(model.Forward(executor, std::span(&prompt.answer[i], 1), *cache, logits.View(), 1));
  }
  std::vector<int32_t> greedy = {first};
  while (int64_t(greedy.size()) < std::min<int64_t>(kAnswerRoom, int64_t(prompt.answer.size()) + 3)) {
    CROQUIS_CHECK_OK(model.Forward(executor, std::span(&greedy.back(), 1), *branch, logits.View(), 1));
    greedy.push_back(ArgMax(logits.View()[0]));
  }
  out.exact = FirstDigits(model.tokenizer()->Decode(greedy)) == prompt.digits;
  return out;
}

}  // namespace

std::string FirstDigits(const std::string& text) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  const auto begin = std::find_if(text.begin(), text.end(), digit);
  return std::string(begin, std::find_if_not(begin, text.end(), digit));
}

Result<NeedlePrompt> MakeNeedle(const model::Tokenizer& tokenizer, const std::string& haystack, double depth,
                                int64_t length, uint64_t seed, int64_t trial) {
  if (haystack.empty()) return InvalidArgument("the haystack is empty; wanted text");
  if (!(depth >= 0 && depth <= 1)) return OutOfRange("a depth lies between 0 and 1, got " + std::to_string(depth));
  const Fact fact = MakeFact(seed, trial);
  // The text is built as text and tokenised whole, as a user's would be; its size is found by a few proportional steps.
  double bytes_per_token = 3.5;
  int64_t room = length - kAnswerRoom;
  size_t bytes =
      size_t(std::max(0.0, double(room) * bytes_per_token - double(fact.sentence.size() + fact.question.size())));
  NeedlePrompt best;
  for (int step = 0; step < 12; step++) {
    const std::string hay = Repeat(haystack, bytes);
    const size_t at = SentenceBreak(hay, size_t(depth * double(hay.size())));
    const std::string text = hay.substr(0, at) + fact.sentence + hay.substr(at) + fact.question;
    CROQUIS_TRY(std::vector<int32_t> ids, tokenizer.Encode(text));
    const auto n = int64_t(ids.size());
    if (n <= room && n > int64_t(best.tokens.size())) {
      CROQUIS_TRY(std::vector<int32_t> full, tokenizer.Encode(text + fact.answer));
      // A tokenizer may join the last of the prompt with the first of the answer: the answer starts where they part.
      const auto part = std::mismatch(ids.begin(), ids.end(), full.begin(), full.end());
      best.tokens.assign(ids.begin(), part.first);
      best.answer.assign(part.second, full.end());
      best.digits = fact.digits;
    }
    if (n <= room && n >= room - kSlack / 2) break;
    if (n > room && bytes == 0) break;
    bytes_per_token = double(text.size()) / double(n);
    const int64_t missing = room - kSlack / 4 - n;
    const double want = double(bytes) + double(missing) * bytes_per_token;
    bytes = size_t(std::max(0.0, want));
  }
  if (best.tokens.empty()) {
    return OutOfRange("a length of " + std::to_string(length) +
                      " tokens has no room for the fact and its question; take at least 128");
  }
  if (int64_t(best.answer.size()) > kAnswerRoom) {
    return Unsupported("the tokenizer needs " + std::to_string(best.answer.size()) +
                       " tokens for five digits; at most " + std::to_string(kAnswerRoom) + " are supported");
  }
  return best;
}

Result<std::vector<NeedleCell>> RunNeedles(Executor& executor, model::Model& model, const std::string& haystack,
                                           const NeedleOptions& o, const ProgressFn& progress) {
  if (model.tokenizer() == nullptr) return Unsupported("the model carries no tokenizer; name one with --tokenizer");
  if (o.caches.empty() || o.lengths.empty() || o.depths.empty()) {
    return InvalidArgument("wanted at least one cache, one length and one depth");
  }
  if (o.trials < 1) return OutOfRange("wanted at least 1 trial, got " + std::to_string(o.trials));
  const auto prompts = int64_t(o.lengths.size() * o.depths.size()) * o.trials;
  const int64_t total = prompts * int64_t(o.caches.size());
  int64_t done = 0;
  std::vector<NeedleCell> cells;
  for (const int64_t length : o.lengths) {
    for (const double depth : o.depths) {
      std::vector<NeedleCell> row(o.caches.size());
      for (int64_t trial = 0; trial < o.trials; trial++) {
        CROQUIS_TRY(const NeedlePrompt prompt, MakeNeedle(*model.tokenizer(), haystack, depth, length, o.seed, trial));
        for (size_t c = 0; c < o.caches.size(); c++) {
          CROQUIS_TRY(const Outcome outcome, Ask(executor, model, prompt, o.caches[c], o));
          row[c].accuracy += outcome.exact ? 1 : 0;
          row[c].token_accuracy += double(outcome.top) / double(prompt.answer.size());
          row[c].log_prob += outcome.log_prob;
          if (progress && !progress(++done, total)) return Internal("interrupted");
        }
      }
      for (size_t c = 0; c < row.size(); c++) {
        NeedleCell& cell = row[c];
        cell.cache = c;
        cell.depth = depth;
        cell.length = length;
        cell.trials = o.trials;
        cell.accuracy /= double(o.trials);
        cell.token_accuracy /= double(o.trials);
        cell.log_prob /= double(o.trials);
        cells.push_back(cell);
      }
    }
  }
  return cells;
}

}  // namespace croquis::eval
