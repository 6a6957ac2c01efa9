// croquis demo: why one wants this, in one screen.
#include <chrono>
#include <cmath>
#include <iostream>

#include "apps/cli.h"
#include "apps/generate.h"
#include "apps/progress.h"
#include "croquis/base/memory.h"
#include "croquis/eval/compare.h"
#include "croquis/eval/decode_bench.h"
#include "croquis/eval/metrics.h"
#include "croquis/eval/needle.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

struct DemoOptions {
  Common common;
  ModelOptions model;
  std::string text;
  int64_t context = 16384, tokens = 48, compared = 128;
  std::vector<std::string> kv = {"f16", "k=eden:bits=4,v=eden:bits=3", "eden:bits=2"};
};

struct Lane {
  std::string kv;
  std::unique_ptr<kvcache::KvCache> cache;
  kvcache::Report report;  // of the context alone
  double prompt_tokens_per_s = 0, ms = 0;
  Generated generated;
  eval::DivergenceSummary divergence;
};

// Lines of at most `width` characters, continued under `indent`; line breaks of the text become spaces.
std::string Wrap(const std::string& text, size_t width, const std::string& indent) {
  std::string out, line, word;
  size_t chars = 0, word_chars = 0;
  const auto flush = [&] {
    if (word.empty()) return;
    if (chars > 0 && chars + 1 + word_chars > width) {
      out += indent + line + "\n";
      line.clear();
      chars = 0;
    }
    line += (chars > 0 ? " " : "") + word;
    chars += (chars > 0 ? 1 : 0) + word_chars;
    word.clear();
    word_chars = 0;
  };
  for (char c : text) {
    if (c == ' ' || c == '\n' || c == '\t' || c == '\r') {
      flush();
    } else {
      word += c;
      word_chars += (uint8_t(c) & 0xC0) != 0x80 ? 1 : 0;
    }
  }
  flush();
  if (!line.empty()) out += indent + line + "\n";
  return out;
}

// How many tokens two generations share from the start.
int64_t SharedTokens(const Generated& a, const Generated& b) {
  const auto [x, y] = std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end());
  return x - a.tokens.begin();
}

// The context, all but its last token, through a fresh cache.
Status Prefill(Executor& executor, model::Model& model, std::span<const int32_t> context,
               const kvcache::KvPolicy& policy, const DemoOptions& o, bool progress, Lane& lane) {
  kvcache::CacheConfig config = model.CacheTemplate();
  config.policy = policy;
  config.capacity = int64_t(context.size()) + o.compared + o.tokens + 1;
  CROQUIS_TRY(lane.cache, kvcache::KvCache::Make(config));
  Progress bar("reading with " + policy.text, progress);
  const auto on_chunk = [](void* to, int64_t done, int64_t total) {
    static_cast<Progress*>(to)->Update(done, total);
    return !Interrupted();
  };
  const auto start = std::chrono::steady_clock::now();
  const Status status =
      model.Forward(executor, context.first(context.size() - 1), *lane.cache, {}, 256, on_chunk, &bar);
  if (Interrupted()) return InterruptedError();
  CROQUIS_CHECK_OK(status);
  lane.prompt_tokens_per_s =
      double(context.size() - 1) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  lane.report = lane.cache->GetReport();
  return {};
}

Json RowOf(const Lane& lane, const Lane& reference) {
  Json row;
  row["kv"] = lane.kv;
  AddCacheColumns(lane.report, row);
  row["share"] = double(lane.report.total()) / double(reference.report.total());
  row["prompt_tokens_per_s"] = lane.prompt_tokens_per_s;
  row["decode_tokens_per_s"] = 1e3 / lane.ms;
  row["ratio_to_f16"] = reference.ms / lane.ms;
  row["kl_mean"] = lane.divergence.kl_mean;
  row["same_top"] = lane.divergence.same_top;
  row["same_tokens"] = SharedTokens(lane.generated, reference.generated);
  row["text"] = lane.generated.text;
  return row;
}

void Print(const DemoOptions& o, const model::Model& model, const std::string& prompt_end,
           const std::vector<Lane>& lanes, const Json& rows) {
  std::cout
      << "A language model (" << model.config().name << ") has read " << Grouped(o.context)
      << " tokens of a book and writes on. For every token it has\n"
         "read it keeps keys and values, the KV cache: at long context that is what fills memory, and what each new\n"
         "token has to read. Croquis keeps it in a few bits a number and computes on the codes.\n"
      << (o.context > model.config().max_position
              ? "(The model is tiny and was trained on " + Grouped(model.config().max_position) +
                    " tokens: look at the differences, not at the prose.)\n\n"
              : "\n")
      << "The text so far ends:\n"
      << Wrap(prompt_end, 96, "    ") << "\nand goes on, with the cache in\n";
  for (const Lane& lane : lanes) {
    const int64_t same = SharedTokens(lane.generated, lanes[0].generated);
    std::cout << lane.kv
              << (&lane == &lanes[0]
                      ? ""
                      : Printf(" (the first %lld of %lld tokens are the same)", static_cast<long long>(same),
                               static_cast<long long>(lane.generated.tokens.size())))
              << ":\n"
              << Wrap(lane.generated.text, 96, "    ");
  }
  static const std::vector<Column> columns = {{"kv", "cache"},
                                              {"bits_per_number", "bits", Format::kFixed2},
                                              {"cache_bytes", "memory", Format::kBytes},
                                              {"share", "of f16", Format::kPercent},
                                              {"decode_tokens_per_s", "tokens/s", Format::kFixed1},
                                              {"ratio_to_f16", "times f16", Format::kFixed2},
                                              {"kl_mean", "divergence", Format::kScientific},
                                              {"same_top", "same choice", Format::kPercent}};
  std::cout
      << "\n"
      << FormatTable(columns, rows)
      << "\nmemory: of the cache, everything counted. divergence: KL in nats from the f16 cache's predictions over "
         "the\n"
         "book's next "
      << o.compared << " tokens; same choice: how often the most likely token is the same.\n";
}

void PrintNext() {
  std::cout << "\nNext: croquis run -p \"...\" --kv eden:bits=3    croquis eval    croquis bench attention    croquis "
               "codecs\n";
}

// Facts hidden in the text and asked for: what of them the bundled model finds with each cache.
Status FindFacts(const DemoOptions& o, const std::string& text, Executor& executor) {
  CROQUIS_TRY(const auto model, LoadModel(o.model, executor));
  CacheOptions caches;
  caches.kv = {"f16", "k=eden:bits=4,v=eden:bits=3", "eden:bits=2", "turboquant:bits=1"};
  eval::NeedleOptions needle;
  CROQUIS_TRY(needle.caches, ParseCaches(caches, model->config().head_dim));
  needle.lengths = {std::min<int64_t>(o.context, model->config().max_position)};
  needle.depths = {0, .25, .5, .75, 1};
  Progress bar("facts", WantProgress());
  CROQUIS_TRY(const std::vector<eval::NeedleCell> cells,
              eval::RunNeedles(executor, *model, text, needle, [&](int64_t done, int64_t total) {
                bar.Update(done, total);
                return !Interrupted();
              }));
  bar.Finish();
  std::vector<double> found(caches.kv.size());
  for (const eval::NeedleCell& c : cells) found[c.cache] += c.accuracy * double(c.trials);
  const int64_t facts = needle.trials * int64_t(needle.depths.size());
  std::cout << "\n"
            << facts << " facts hidden in " << Grouped(needle.lengths[0])
            << " tokens of the book (\"The secret number of ...\"), one at a time; found by " << model->config().name
            << ":\n";
  for (size_t i = 0; i < found.size(); i++)
    std::cout << Printf("    %-28s %3.0f of %lld\n", caches.kv[i].c_str(), found[i], static_cast<long long>(facts));
  return {};
}

Status Run(const DemoOptions& o) {
  CacheOptions cache_options;
  cache_options.kv = o.kv;
  std::string path = o.text;
  if (path.empty()) {
    CROQUIS_TRY(path, BundledPath("texts/frankenstein.txt"));
  }
  CROQUIS_TRY(const std::string text, eval::ReadText(path));
  CROQUIS_TRY(const auto executor, Start(o.common));
  // Of the bundled models the older one reads on past its 2,048 tokens: it uses less of its context.
  ModelOptions reader = o.model;
  const bool bundled = TakesBundled(o.model);
  if (bundled) {
    CROQUIS_TRY(reader.path, BundledPath("croquis-4m"));
  }
  CROQUIS_TRY(const auto model, LoadModel(reader, *executor));
  CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(*model));
  CROQUIS_TRY(const std::vector<kvcache::KvPolicy> policies, ParseCaches(cache_options, model->config().head_dim));
  CROQUIS_TRY(const std::vector<int32_t> tokens, tokenizer->Encode(text));
  if (int64_t(tokens.size()) < o.context + o.compared) {
    return InvalidArgument("the text has " + Grouped(int64_t(tokens.size())) + " tokens; wanted " +
                           Grouped(o.context + o.compared) + ": take a longer text or a smaller --context");
  }
  const std::span<const int32_t> all(tokens), context = all.first(size_t(o.context));
  const std::span<const int32_t> next =
      all.subspan(size_t(o.context) - 1, size_t(o.compared));  // the last one starts it
  const bool progress = WantProgress() && !o.common.json;

  std::vector<Lane> lanes(policies.size());
  for (size_t i = 0; i < lanes.size(); i++) {
    Lane& lane = lanes[i];
    lane.kv = policies[i].text;
    CROQUIS_CHECK_OK(Prefill(*executor, *model, context, policies[i], o, progress, lane));
    const auto branch = lane.cache->Branch();
    GenerateOptions generate;
    generate.max_tokens = o.tokens;
    generate.sampler.repetition_penalty = 1.4;  // a small model's most likely words run in circles
    generate.penalise_prompt = false;
    CROQUIS_TRY(lane.generated, Generate(*executor, *model, *branch, context.last(1), generate, {}, false));
  }
  std::vector<std::unique_ptr<kvcache::KvCache>> timed;
  std::vector<kvcache::KvCache*> timed_caches;
  timed_caches.reserve(lanes.size());
  for (Lane& lane : lanes) {
    timed_caches.push_back(timed.emplace_back(lane.cache->Branch()).get());
  }
  const auto go_on = [](int64_t, int64_t) { return !Interrupted(); };
  CROQUIS_TRY(auto times, eval::TimeSteps(*executor, *model, timed_caches, next, go_on));
  timed.clear();
  for (size_t i = 0; i < lanes.size(); i++) lanes[i].ms = eval::Median(times[i]);
  for (size_t i = 0; i < lanes.size(); i++) {
    if (Interrupted()) return InterruptedError();
    const auto reference = lanes[0].cache->Branch(), test = lanes[i].cache->Branch();
    CROQUIS_TRY(lanes[i].divergence, eval::CompareContinuation(*executor, *model, *reference, *test, next));
  }
  Json rows = Json::array();
  for (const Lane& lane : lanes) rows.push_back(RowOf(lane, lanes[0]));
  if (o.common.json) {
    PrintRows(o.common, "demo", executor->threads(), {}, rows,
              {{"context", o.context}, {"model", model->config().name}});
    return {};
  }
  const int64_t tail = std::min<int64_t>(48, o.context);
  Print(o, *model, "... " + tokenizer->Decode(context.last(size_t(tail))), lanes, rows);
  if (bundled && o.context >= 512) CROQUIS_CHECK_OK(FindFacts(o, text, *executor));
  PrintNext();
  return {};
}

}  // namespace

void AddDemo(CLI::App& app, Action* action) {
  auto o = std::make_shared<DemoOptions>();
  auto* c = app.add_subcommand("demo", "The idea in one screen: a long text read with three caches");
  AddModelOptions(*c, o->model, false);
  c->add_option("--text", o->text, "Text to read (default: the bundled one)");
  c->add_option("--context", o->context, "Tokens read")->check(CLI::Range(2, 1 << 24))->capture_default_str();
  c->add_option("-n,--tokens", o->tokens, "Tokens written")->check(CLI::Range(1, 10000))->capture_default_str();
  AddCommon(*c, o->common);
  c->footer("\nExample:\n  croquis demo --context 4096\n\n" + ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return Run(*o); }; });
}

}  // namespace croquis::apps
