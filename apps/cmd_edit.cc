// croquis edit: changes a text that is cached in place, and says what that saves and costs against reading it again.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <iostream>
#include <iterator>

#include "apps/cli.h"
#include "apps/progress.h"
#include "croquis/eval/metrics.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

using Clock = std::chrono::steady_clock;
using kvcache::KvCache;

double Seconds(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct EditCommand {
  Common common;
  ModelOptions model;
  CacheOptions cache;
  std::string file, kv = "eden:bits=4";
  std::vector<std::string> edits;
  int64_t tokens = 64, ctx = 0, chunk = 256;
};

struct Edit {
  bool insert = false;
  int64_t begin = 0, end = 0;  // deleted positions; begin alone: where the text is inserted
  std::string text;
};

Result<Edit> ParseEdit(const std::string& s) {
  const Error bad =
      InvalidArgument("--edit " + s + ": wanted insert:AT:TEXT or delete:FROM:TO (tokens FROM to TO - 1)");
  Edit e;
  const size_t colon = s.find(':');
  const std::string what = s.substr(0, colon);
  if (colon == s.npos || (what != "insert" && what != "delete")) return bad;
  e.insert = what == "insert";
  const char *at = s.data() + colon + 1, *const last = s.data() + s.size();
  auto [p, ec] = std::from_chars(at, last, e.begin);
  if (ec != std::errc() || p == last || *p != ':' || e.begin < 0) return bad;
  ++p;
  if (e.insert) {
    e.text.assign(p, last);
    if (e.text.empty()) return bad;
    return e;
  }
  auto [q, ec2] = std::from_chars(p, last, e.end);
  if (ec2 != std::errc() || q != last || e.end < e.begin) return bad;
  return e;
}

struct Applied {
  double seconds = 0;
  int64_t inserted = 0, deleted = 0;
};

// Edits the cache and the tokens alike.
Result<Applied> Apply(const std::vector<Edit>& edits, const model::Tokenizer& tokenizer, Executor& executor,
                      model::Model& model, KvCache& cache, std::vector<int32_t>& tokens, int64_t chunk) {
  Applied out;
  const auto start = Clock::now();
  for (const Edit& e : edits) {
    const auto n = int64_t(tokens.size());
    if (e.insert ? e.begin > n : e.end > n)
      return OutOfRange("the edit at token " + std::to_string(e.insert ? e.begin : e.end) + " is beyond the " +
                        std::to_string(n) + " tokens of the text");
    if (e.insert) {
      CROQUIS_TRY(const std::vector<int32_t> ids, tokenizer.Encode(e.text, false));
      CROQUIS_CHECK_OK(cache.InsertAt(e.begin));
      CROQUIS_CHECK_OK(model.Forward(executor, ids, cache, {}, chunk));
      CROQUIS_CHECK_OK(cache.InsertAt(cache.tokens()));
      tokens.insert(tokens.begin() + e.begin, ids.begin(), ids.end());
      out.inserted += int64_t(ids.size());
    } else {
      CROQUIS_CHECK_OK(cache.Delete(e.begin, e.end));
      tokens.erase(tokens.begin() + e.begin, tokens.begin() + e.end);
      out.deleted += e.end - e.begin;
    }
  }
  out.seconds = Seconds(start);
  return out;
}

// Divergence from `reference` of the other caches along the text that it goes on with, token by token.
Result<std::vector<eval::DivergenceSummary>> Compare(Executor& executor, model::Model& model, KvCache& reference,
                                                     Matrix<float>& logits, std::span<KvCache* const> others,
                                                     int64_t steps) {
  std::vector<eval::DivergenceCollector> collectors(others.size());
  Matrix<float> test(1, model.config().vocab);
  for (int64_t step = 0; step < steps; ++step) {
    const int32_t id = eval::ArgMax(logits.View()[0]);
    CROQUIS_CHECK_OK(model.Forward(executor, std::span(&id, 1), reference, logits.View(), 1));
    eval::ReferenceRow row;
    row.Set(logits.View()[0]);
    for (size_t i = 0; i < others.size(); ++i) {
      CROQUIS_CHECK_OK(model.Forward(executor, std::span(&id, 1), *others[i], test.View(), 1));
      collectors[i].Add(row.Compare(test.View()[0], -1), false);
    }
    if (Interrupted()) return InterruptedError();
  }
  std::vector<eval::DivergenceSummary> out;
  out.reserve(collectors.size());
  for (const auto& c : collectors) out.push_back(c.Summary());
  return out;
}

constexpr int64_t kShown = 16;  // tokens of what each text goes on with

// What a cache goes on with by itself, the most likely token each time. Its last token, `last`, is fed once more on a
// branch: that gives what follows it.
Result<std::string> GoesOn(Executor& executor, model::Model& model, const model::Tokenizer& tokenizer,
                           const KvCache& cache, int32_t last, int64_t steps) {
  const auto branch = cache.Branch();
  CROQUIS_CHECK_OK(branch->Delete(branch->tokens() - 1, branch->tokens()));
  Matrix<float> logits(1, model.config().vocab);
  std::vector<int32_t> ids = {last};
  for (int64_t step = 0; step < steps; ++step) {
    CROQUIS_CHECK_OK(model.Forward(executor, std::span(&ids.back(), 1), *branch, logits.View(), 1));
    ids.push_back(eval::ArgMax(logits.View()[0]));
    if (Interrupted()) return InterruptedError();
  }
  return tokenizer.Decode(std::span(ids).subspan(1));
}

std::string OneLine(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

Status Run(const EditCommand& o) {
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  if (o.edits.empty()) return InvalidArgument("no edits: give --edit insert:AT:TEXT or --edit delete:FROM:TO");
  if (o.tokens < 1 || o.chunk < 1) return OutOfRange("-n and --chunk must be at least 1");
  std::vector<Edit> edits;
  for (const std::string& s : o.edits) {
    CROQUIS_TRY(Edit e, ParseEdit(s));
    edits.push_back(std::move(e));
  }
  std::string text;
  if (o.file == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    CROQUIS_TRY(text, eval::ReadText(o.file));
  }
  CacheOptions cache_options = o.cache;
  cache_options.kv = {o.kv};
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(*model));
  CROQUIS_TRY(const std::vector<kvcache::KvPolicy> policies, ParseCaches(cache_options, model->config().head_dim));
  CROQUIS_TRY(std::vector<int32_t> tokens, tokenizer->Encode(text));
  const int64_t limit = o.ctx > 0 ? o.ctx : model->config().max_position;
  int64_t room = int64_t(tokens.size()) + o.tokens;
  for (const Edit& e : edits) room += int64_t(e.text.size()) + 1;  // a token has a byte at least
  if (int64_t(tokens.size()) + o.tokens > limit) {
    Note("the text is cut to the " + Grouped(limit - o.tokens) + " tokens that leave room; raise --ctx for more");
    tokens.resize(size_t(std::max<int64_t>(1, limit - o.tokens)));
  }
  kvcache::CacheConfig config = model->CacheTemplate();
  config.sinks = o.cache.sinks, config.ring = o.cache.ring, config.seed = o.cache.seed;
  config.policy = policies[0];
  config.capacity = room;
  CROQUIS_TRY(const auto edited, KvCache::Make(config));
  const auto before = int64_t(tokens.size());
  CROQUIS_CHECK_OK(model->Forward(*executor, tokens, *edited, {}, o.chunk));
  const auto stale = edited->Branch();
  const int32_t stale_last = tokens.back();
  CROQUIS_TRY(const Applied applied, Apply(edits, *tokenizer, *executor, *model, *edited, tokens, o.chunk));
  if (tokens.empty()) return InvalidArgument("the edits leave nothing of the text");

  CROQUIS_TRY(const auto again, KvCache::Make(config));
  Matrix<float> logits(1, model->config().vocab);
  const auto start = Clock::now();
  CROQUIS_CHECK_OK(model->Forward(*executor, tokens, *again, logits.View(), o.chunk));
  const double recomputed = Seconds(start);
  const std::pair<const KvCache*, int32_t> lanes[] = {
      {edited.get(), tokens.back()}, {stale.get(), stale_last}, {again.get(), tokens.back()}};
  std::vector<std::string> goes_on;
  for (const auto& [cache, last] : lanes) {
    CROQUIS_TRY(goes_on.emplace_back(),
                GoesOn(*executor, *model, *tokenizer, *cache, last, std::min(o.tokens, kShown)));
  }
  KvCache* const others[] = {edited.get(), stale.get()};
  CROQUIS_TRY(const auto divergence, Compare(*executor, *model, *again, logits, others, o.tokens));

  Json rows = Json::array();
  const char* const names[] = {"edited in place", "not edited"};
  for (size_t i = 0; i < 2; ++i) {
    Json row;
    row["text"] = names[i];
    row["tokens"] = i == 0 ? int64_t(tokens.size()) : before;
    row["computed"] = i == 0 ? applied.inserted : 0;
    row["ms"] = i == 0 ? 1e3 * applied.seconds : 0;
    row["times"] = i == 0 ? Json(recomputed / applied.seconds) : Json();
    row["kl"] = divergence[i].kl_mean;
    row["same_top"] = divergence[i].same_top;
    rows.push_back(row);
  }
  rows.push_back({{"text", "read again"},
                  {"tokens", tokens.size()},
                  {"computed", tokens.size()},
                  {"ms", 1e3 * recomputed},
                  {"times", 1.0},
                  {"kl", 0.0},
                  {"same_top", 1.0}});
  for (size_t i = 0; i < 3; ++i) rows[i]["goes_on"] = goes_on[i];
  static const std::vector<Column> columns = {{"text", "text"},
                                              {"tokens", "tokens", Format::kInt},
                                              {"computed", "computed", Format::kInt},
                                              {"ms", "ms", Format::kFixed2},
                                              {"times", "times faster", Format::kFixed1},
                                              {"kl", "divergence", Format::kScientific},
                                              {"same_top", "same choice", Format::kPercent}};
  PrintRows(o.common, "edit", executor->threads(), columns, rows,
            {{"kv", o.kv},
             {"model", model->config().name},
             {"inserted", applied.inserted},
             {"deleted", applied.deleted},
             {"continuation", o.tokens}});
  if (!o.common.json)
    std::cout << "\n"
              << Grouped(applied.inserted) << " tokens inserted, " << Grouped(applied.deleted)
              << " deleted; divergence: mean KL in nats a token from the text read again, over the "
              << Grouped(o.tokens) << " tokens that it goes on with\n\nthe text goes on, of its own:\n";
  for (size_t i = 0; i < 3 && !o.common.json; ++i)
    std::cout << Printf("%-17s", rows[i]["text"].get<std::string>().c_str()) << OneLine(goes_on[i]) << "\n";
  return {};
}

}  // namespace

void AddEdit(CLI::App& app, Action* action) {
  auto o = std::make_shared<EditCommand>();
  auto* c = app.add_subcommand("edit", "Insert and delete tokens of a cached text without reading it again");
  AddModelOptions(*c, o->model, false);
  c->add_option("-f,--file", o->file, "The text (- reads standard input)")->required();
  c->add_option(
       "--edit", o->edits,
       "insert:AT:TEXT before token AT, or delete:FROM:TO; several are applied in order, positions as they are "
       "then. The model's start token is token 0")
      ->take_all()
      ->expected(1);
  c->add_option("-n,--tokens", o->tokens, "Tokens over which the divergence is measured")->capture_default_str();
  c->add_option("--kv", o->kv, "Method of the cache")->capture_default_str();
  AddSinksAndRing(*c, o->cache);
  c->add_option("--ctx", o->ctx, "Most tokens of context (default: what the model was made for)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 31));
  c->add_option("--chunk", o->chunk, "Tokens computed at a time")->capture_default_str();
  AddCommon(*c, o->common);
  c->footer(
      "\nExamples:\n  croquis edit -f book.txt --edit \"insert:100: an old\" --edit delete:300:310\n"
      "  (head -c 4000 book.txt; printf \" What is the secret number of river? The secret number of river is\") |\n"
      "      croquis edit -f - -n 8 --edit \"insert:300: The secret number of river is 48213.\"\n\n" +
      ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return Run(*o); }; });
}

}  // namespace croquis::apps
