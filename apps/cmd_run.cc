// croquis run: load, prefill, decode, report.
#include <fstream>
#include <iostream>
#include <iterator>

#include "apps/cli.h"
#include "apps/generate.h"
#include "apps/prefill.h"
#include "apps/progress.h"
#include "apps/run_batch.h"
#include "croquis/base/memory.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

struct RunOptions {
  Common common;
  ModelOptions model;
  CacheOptions cache;
  PrefillOptions prefill;
  GenerateOptions generate;
  std::string kv = "eden:bits=4", prompt, file, batch, save, load;
  int64_t ctx = 0;
  bool quiet = false, no_bos = false;
};

Result<std::string> PromptText(const RunOptions& o) {
  if (!o.prompt.empty() && !o.file.empty()) return InvalidArgument("give the prompt with -p or with -f, not both");
  if (!o.prompt.empty()) return o.prompt;
  if (o.file.empty()) return InvalidArgument("no prompt: give one with -p TEXT or -f FILE (- reads standard input)");
  if (o.file == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  return eval::ReadText(o.file);
}

// Positions this run may use, and an error or a note when that goes beyond what the model was made for.
Result<int64_t> ContextLimit(const RunOptions& o, const model::ModelConfig& config, int64_t needed) {
  const int64_t limit = o.ctx > 0 ? o.ctx : config.max_position;
  if (needed >= limit) {
    return InvalidArgument(
        "the prompt has " + Grouped(needed) + " tokens" + (o.load.empty() ? "" : " with those restored") +
        " and the context holds " + Grouped(limit) + "; shorten it, or raise the context with --ctx " +
        std::to_string(needed + o.generate.max_tokens) +
        (o.ctx > 0 ? "" : " (" + config.name + " was made for " + Grouped(config.max_position) + ")"));
  }
  if (needed > config.max_position) {
    Note(config.name + " was made for " + Grouped(config.max_position) + " tokens; beyond them its text gets worse");
  }
  return limit;
}

Result<std::unique_ptr<kvcache::KvCache>> OpenCache(const RunOptions& o, const kvcache::CacheConfig& config) {
  if (!o.load.empty()) return kvcache::KvCache::Load(o.load, config);
  return kvcache::KvCache::Make(config);
}

// How the prompt is read.
struct Reading {
  std::string method;                         // "exact", "auto:eps=0.05", "chunks"
  std::unique_ptr<attention::Prefill> whole;  // null: in chunks through the cache
  std::string why;                            // in chunks
};

constexpr const char* kChunks = "chunks";

bool AsksForChunks(const RunOptions& o) { return o.prefill.methods == std::vector<std::string>{kChunks}; }

// As asked for by --prefill, otherwise whole where that is possible.
Result<Reading> ChooseReading(const RunOptions& o, const std::vector<attention::PrefillPolicy>& asked,
                              const model::Model& model, const kvcache::KvPolicy& kv, int64_t tokens) {
  Reading reading{kChunks, nullptr, "asked for"};
  if (AsksForChunks(o)) return reading;
  if (!asked.empty()) {
    reading.method = o.prefill.methods[0];
    CROQUIS_TRY(reading.whole, model.MakePrefill(asked[0], o.prefill.seed));
    return reading;
  }
  reading.why = WhyChunks({.kv = &kv,
                           .restored = !o.load.empty(),
                           .tokens = tokens,
                           .chunk = o.generate.chunk,
                           .bytes = model.PrefillBytes(tokens, o.generate.chunk),
                           .available = AvailableMemory()});
  if (!reading.why.empty()) return reading;
  reading.method = "exact";
  CROQUIS_TRY(reading.whole, model.MakePrefill({}, o.prefill.seed));
  return reading;
}

Json Figures(const RunOptions& o, const model::Model& model, const Generated& g, int64_t prompt_tokens,
             const kvcache::Report& report, const Reading& reading) {
  Json row;
  row["kv"] = o.kv;
  row["prefill"] = reading.method;
  row["prefill_chunks_because"] = reading.whole != nullptr ? Json(nullptr) : Json(reading.why);
  if (reading.whole != nullptr) AddPrefillColumns(reading.whole->report(), row);
  row["model"] = model.config().name;
  row["compute"] = model.Compute();
  row["prompt_tokens"] = prompt_tokens;
  row["generated_tokens"] = g.tokens.size();
  row["prompt_tokens_per_s"] = g.PromptRate(prompt_tokens);
  row["decode_tokens_per_s"] = g.DecodeRate();
  AddCacheColumns(report, row);
  row["stop"] = g.stop;
  row["text"] = g.text;
  return row;
}

void PrintFigures(const Json& row, const kvcache::Report& report) {
  const auto number = [&](const char* key, Format format) { return FormatCell(row[key], format); };
  std::cout << "\n\nmodel   " << row["model"].get<std::string>() << ", " << row["compute"].get<std::string>() << "\n"
            << "speed   prompt " << number("prompt_tokens", Format::kInt) << " tokens at "
            << number("prompt_tokens_per_s", Format::kFixed1) << " a second, then "
            << number("generated_tokens", Format::kInt) << " at " << number("decode_tokens_per_s", Format::kFixed1)
            << " a second\n"
            << "cache   " << Grouped(report.tokens) << " tokens in " << HumanBytes(double(report.total()))
            << "; f16 takes " << HumanBytes(double(report.f16_bytes)) << ": "
            << Printf("%.2f", double(report.total()) / double(std::max<int64_t>(report.f16_bytes, 1))) << " of it\n"
            << "bits    " << Printf("%.2f", report.bits_per_number) << " a number, everything counted; keys "
            << Printf("%.3g", report.key_bits) << " and values " << Printf("%.3g", report.value_bits) << " in pages\n";
  for (const std::string& kernel : report.kernels) std::cout << "kernel  " << kernel << "\n";
  if (!report.all_fast)
    std::cout << "warning a method has no fast path on this machine: its pages are read by generic code\n";
}

// --batch: many prompts at once, which leaves no room for options that concern a single one.
Status RunBatchFile(const RunOptions& o) {
  const std::pair<bool, const char*> others[] = {{!o.prompt.empty(), "-p"},
                                                 {!o.file.empty(), "-f"},
                                                 {!o.save.empty(), "--save-cache"},
                                                 {!o.load.empty(), "--load-cache"},
                                                 {!o.prefill.methods.empty(), "--prefill"}};
  for (const auto& [given, name] : others)
    if (given) return InvalidArgument(std::string("--batch and ") + name + " do not go together");
  BatchOptions batch{o.common, o.model, o.cache, o.generate, o.batch, o.ctx, o.quiet, o.no_bos};
  batch.cache.kv = {o.kv};
  return RunBatch(batch);
}

Status Run(const RunOptions& o) {
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  if (o.generate.max_tokens < 1)
    return OutOfRange("-n must be at least 1, got " + std::to_string(o.generate.max_tokens));
  if (o.generate.chunk < 1) return OutOfRange("--chunk must be at least 1, got " + std::to_string(o.generate.chunk));
  if (auto sampler = model::Sampler::Make(o.generate.sampler); !sampler) return sampler.error();
  CacheOptions cache_options = o.cache;
  cache_options.kv = {o.kv};
  if (auto parsed = ParseCaches(cache_options, 0); !parsed) return parsed.error();
  std::vector<attention::PrefillPolicy> prefills;
  if (AsksForChunks(o) && !o.prefill.layers.empty())
    return InvalidArgument("--prefill-layers is for prompts that are read whole; --prefill chunks is not");
  if (!AsksForChunks(o)) {
    CROQUIS_TRY(prefills, ParsePrefills(o.prefill));
  }
  if (!prefills.empty() && !o.load.empty())
    return InvalidArgument(
        "--prefill reads a prompt into an empty cache; a restored one (--load-cache) is continued in "
        "chunks, so leave one of them out");
  if (!o.batch.empty()) return RunBatchFile(o);
  if (!o.save.empty()) CROQUIS_CHECK_OK(CheckWritable(o.save));
  CROQUIS_TRY(const std::string text, PromptText(o));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(*model));
  CROQUIS_TRY(const std::vector<kvcache::KvPolicy> policies, ParseCaches(cache_options, model->config().head_dim));
  // A restored cache has its BOS already.
  CROQUIS_TRY(const std::vector<int32_t> prompt, tokenizer->Encode(text, o.load.empty() && !o.no_bos));
  if (prompt.empty()) return InvalidArgument("the prompt is empty; give some text with -p or -f");

  kvcache::CacheConfig config = model->CacheTemplate();
  config.sinks = o.cache.sinks;
  config.ring = o.cache.ring;
  config.policy = policies[0];
  config.seed = o.cache.seed;
  const auto prompt_tokens = int64_t(prompt.size());
  config.capacity = o.ctx > 0 ? o.ctx : model->config().max_position;
  if (o.load.empty()) {  // what is known to suffice
    CROQUIS_TRY(const int64_t limit, ContextLimit(o, model->config(), prompt_tokens));
    config.capacity = std::min(limit, prompt_tokens + o.generate.max_tokens);
  }
  CROQUIS_TRY(const auto cache, OpenCache(o, config));
  CROQUIS_TRY(const int64_t limit, ContextLimit(o, model->config(), cache->length() + prompt_tokens));
  GenerateOptions generate = o.generate;
  CROQUIS_TRY(const Reading reading, ChooseReading(o, prefills, *model, policies[0], prompt_tokens));
  generate.prefill = reading.whole.get();
  if (const int64_t room = limit - cache->length() - prompt_tokens; generate.max_tokens > room) {
    Note("only " + Grouped(room) + " tokens fit behind the prompt; raise --ctx for more");
    generate.max_tokens = room;
  }
  const bool stream = !o.common.json;
  const auto on_text = [&](const std::string& piece) {
    if (stream) std::cout << piece << std::flush;
  };
  CROQUIS_TRY(const Generated g,
              Generate(*executor, *model, *cache, prompt, generate, on_text, WantProgress() && stream));
  if (!o.save.empty()) {
    // The last token was shown but not yet read: what is saved must hold all of the text.
    if (!g.tokens.empty() && std::string_view(g.stop) != "stop token") {
      CROQUIS_CHECK_OK(model->Forward(*executor, std::span(&g.tokens.back(), 1), *cache, {}, 1));
    }
    CROQUIS_CHECK_OK(cache->Save(o.save));
  }
  const kvcache::Report report = cache->GetReport();
  const Json row = Figures(o, *model, g, prompt_tokens, report, reading);
  if (o.common.json) {
    PrintRows(o.common, "run", executor->threads(), {}, Json::array({row}));
  } else if (o.quiet) {
    std::cout << "\n";
  } else {
    PrintFigures(row, report);
    std::cout << "prefill "
              << (reading.whole != nullptr
                      ? "whole, " + reading.method + ": " + DescribePrefill(reading.whole->report())
                      : "in chunks of " + Grouped(o.generate.chunk) + " through the cache (" + reading.why + ")")
              << "\n";
  }
  if (Interrupted()) return InterruptedError();
  return {};
}

}  // namespace

void AddRun(CLI::App& app, Action* action) {
  auto o = std::make_shared<RunOptions>();
  auto* c = app.add_subcommand("run", "Generate text with a compressed KV cache");
  AddModelOptions(*c, o->model, false);
  c->add_option("-p,--prompt", o->prompt, "Prompt text");
  c->add_option("-f,--file", o->file, "Prompt from a text file (- reads standard input)");
  c->add_option("--batch", o->batch,
                "Many prompts at once, one a line or JSON lines with \"prompt\" (- reads standard input); common "
                "beginnings are found, read once and shared. Sequence i samples with seed + i");
  c->add_option("-n,--tokens", o->generate.max_tokens, "Tokens to generate")->capture_default_str();
  c->add_option("--kv", o->kv, "Method of the cache: NAME:param=value, or k=...,v=...; croquis codecs lists them")
      ->capture_default_str();
  AddSinksAndRing(*c, o->cache);
  AddPrefillOptions(*c, o->prefill, false);
  c->add_option("--ctx", o->ctx, "Most tokens of context (default: what the model was made for)")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 31));
  c->add_option("--chunk", o->generate.chunk, "Tokens of the prompt computed at a time")->capture_default_str();
  c->add_option("--temp", o->generate.sampler.temperature, "Temperature; 0 takes the most likely token")
      ->capture_default_str();
  c->add_option("--top-k", o->generate.sampler.top_k, "Sample among the k most likely tokens; 0: all")
      ->capture_default_str();
  c->add_option("--top-p", o->generate.sampler.top_p, "Sample among the most likely tokens that hold this probability")
      ->capture_default_str();
  c->add_option("--min-p", o->generate.sampler.min_p, "Leave out tokens below this share of the most likely one")
      ->capture_default_str();
  c->add_option("--repetition-penalty", o->generate.sampler.repetition_penalty,
                "Above 1: tokens seen before get less likely")
      ->capture_default_str();
  c->add_option("--seed", o->generate.sampler.seed, "Seed of sampling")->capture_default_str();
  c->add_option("--cache-seed", o->cache.seed, "Seed of the cache's random rotations")->capture_default_str();
  c->add_flag("--ignore-eos,--ignore-stop", o->generate.ignore_stop, "Go on after a stop token");
  c->add_flag("--no-bos", o->no_bos, "Do not put the model's start token in front");
  c->add_option("--save-cache", o->save, "Write the cache to a file at the end");
  c->add_option("--load-cache", o->load, "Start from a saved cache; the prompt continues it");
  c->add_flag("-q,--quiet", o->quiet, "Print the text only");
  AddCommon(*c, o->common);
  c->footer(
      "\nExample:\n  croquis run -p \"It was a dark night\" -n 100 --kv k=eden:bits=4,v=eden:bits=3\n"
      "  croquis run --batch prompts.txt -n 64 --json\n\n" +
      ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return Run(*o); }; });
}

}  // namespace croquis::apps
