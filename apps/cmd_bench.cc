// croquis bench attention | encode | decode (and batch, in its own file): time, bytes and error from the same run.
#include <chrono>
#include <iostream>

#include "apps/cli.h"
#include "apps/generate.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "croquis/eval/attention_bench.h"
#include "croquis/eval/decode_bench.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

struct AttentionCommand {
  Common common;
  CacheOptions cache;
  eval::AttentionBenchOptions bench;
  std::string layers = "auto";
};

const std::vector<std::string>& BenchCaches() {
  static const std::vector<std::string> caches = {"f16", "eden:bits=4", "eden:bits=3", "eden:bits=2", "int8", "q8_0"};
  return caches;
}

Json RowOf(const eval::AttentionRow& r) {
  Json row;
  row["kv"] = r.kv;
  row["keys"] = r.keys;
  row["bits_per_number"] = r.bits_per_number;
  row["bits_total"] = r.bits_total;
  row["bytes"] = r.bytes;
  row["ms"] = r.ms;
  row["ms_best"] = r.ms_best;
  row["gb_per_s"] = r.gb_per_s;
  row["share_of_read"] = r.share_of_read;
  row["ratio_to_f16"] = r.ratio_to_f16;
  row["rel_error"] = r.rel_error;
  row["total_error"] = r.total_error;
  if (r.center_cost > 0) row["center_cost"] = r.center_cost;
  row["centered_pairs"] = r.centered_pairs;
  row["kernel"] = r.kernel;
  row["fast_path"] = r.fast;
  return row;
}

Result<int64_t> LayerCount(const std::string& text) {
  if (text == "auto") return int64_t(0);
  int64_t n = 0;
  for (char c : text) {
    if (c < '0' || c > '9' || n > 100000) return InvalidArgument("--layers " + text + ": wanted a number or auto");
    n = n * 10 + (c - '0');
  }
  if (n < 1) return InvalidArgument("--layers " + text + ": wanted at least 1, or auto");
  return n;
}

// Why f16 reads little more in a round than the last cache holds, and what to do about it.
std::string CachedNote(const eval::AttentionBench& bench, int64_t last_cache) {
  const char* why = "";
  switch (bench.limit) {
    case eval::LayerLimit::kAsked:
      why = "asked for; --layers auto takes as many as go beyond them";
      break;
    case eval::LayerLimit::kMemory:
      why = "all that memory allows; fewer caches or a smaller --n leave room for more";
      break;
    case eval::LayerLimit::kMost:
      why = "the most that --layers auto takes; a larger --n or --layers N go beyond them";
      break;
    case eval::LayerLimit::kNone:
      break;  // reaches twice the last cache: never noted
  }
  return Printf("f16 reads %.1f MB a round, and the processor's last cache of %.1f MB may serve much of it: ",
                double(bench.f16_bytes) / 1e6, double(last_cache) / 1e6) +
         std::to_string(bench.layers) + (bench.layers == 1 ? " layer" : " layers") + " (" + why + ")";
}

Status RunAttention(AttentionCommand o) {
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  CROQUIS_TRY(o.bench.layers, LayerCount(o.layers));
  if (o.cache.kv.empty()) o.cache.kv = BenchCaches();
  CROQUIS_TRY(o.bench.caches, ParseCaches(o.cache, o.bench.head_dim));
  o.bench.sinks = o.cache.sinks;
  o.bench.ring = o.cache.ring;
  o.bench.last_cache = std::max(CacheBytes(3), CacheBytes(2));
  CROQUIS_TRY(const auto executor, Start(o.common));
  Progress bar("bench", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const eval::AttentionBench bench, eval::BenchAttention(*executor, o.bench, progress));
  bar.Finish();
  Json rows = Json::array();
  for (const eval::AttentionRow& r : bench.rows) rows.push_back(RowOf(r));
  static const std::vector<Column> columns = {{"kv", "cache"},
                                              {"keys", "keys"},
                                              {"bits_per_number", "bits", Format::kFixed3},
                                              {"bytes", "bytes", Format::kBytes},
                                              {"ms", "ms", Format::kFixed3},
                                              {"ms_best", "best", Format::kFixed3},
                                              {"gb_per_s", "GB/s", Format::kFixed2},
                                              {"share_of_read", "of read", Format::kPercent},
                                              {"ratio_to_f16", "times f16", Format::kFixed2},
                                              {"rel_error", "kernel error", Format::kScientific},
                                              {"total_error", "total error", Format::kScientific},
                                              {"center_cost", "time/none", Format::kFixed2}};
  PrintRows(o.common, "bench attention", executor->threads(), columns, rows,
            {{"n", o.bench.n},
             {"heads", o.bench.heads},
             {"kv_heads", o.bench.kv_heads},
             {"head_dim", o.bench.head_dim},
             {"layers", bench.layers},
             {"reps", o.bench.reps},
             {"sinks", o.bench.sinks},
             {"ring", o.bench.ring},
             {"read_gb_per_s", bench.read_gb_per_s},
             {"beyond_caches", bench.beyond_caches}});
  if (!bench.beyond_caches) Note(CachedNote(bench, o.bench.last_cache));
  if (!o.common.json) {
    std::cout
        << Printf(
               "\none token attending to %s, %lld heads on %lld of %lld numbers, %d threads, %lld layers in turn; "
               "plain reading: %.1f GB/s\n",
               Grouped(o.bench.n).c_str(), static_cast<long long>(o.bench.heads),
               static_cast<long long>(o.bench.kv_heads), static_cast<long long>(o.bench.head_dim), executor->threads(),
               static_cast<long long>(bench.layers), bench.read_gb_per_s)
        << "kernel error: against f64 attention over the stored values; total error: over the values before encoding\n";
    for (const eval::AttentionRow& r : bench.rows)
      std::cout << (r.fast ? "kernel  " : "no fast path  ") << r.kernel << "\n";
  }
  return {};
}

struct EncodeCommand {
  Common common;
  std::vector<std::string> kv;
  int64_t head_dim = 128, reps = 30;
};

Status RunEncode(EncodeCommand o) {
  if (o.kv.empty()) o.kv = {"f16", "eden:bits=4", "eden:bits=3", "eden:bits=2", "int8", "q8_0", "q4_0"};
  CROQUIS_TRY(const auto executor, Start(o.common));
  for (const std::string& kv : o.kv) {
    if (auto spec = codecs::ResolveSpec(kv); !spec) return InvalidArgument("--kv " + kv + ": " + spec.error().message);
  }
  Progress bar("encode", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const std::vector<eval::EncodeRow> result, eval::BenchEncode(o.kv, o.head_dim, o.reps, 1, progress));
  bar.Finish();
  Json rows = Json::array();
  for (const eval::EncodeRow& r : result) {
    rows.push_back({{"codec", r.codec},
                    {"kv", r.codec},
                    {"role", r.role},
                    {"bits_per_number", r.bits_per_number},
                    {"ns", r.ns},
                    {"ns_best", r.ns_best},
                    {"ms", r.ns * 1e-6},
                    {"gb_per_s", r.gb_per_s},
                    {"kernel", r.kernel}});
  }
  static const std::vector<Column> columns = {{"codec", "codec"},
                                              {"role", "role"},
                                              {"bits_per_number", "bits", Format::kFixed3},
                                              {"ns", "ns a vector", Format::kFixed1},
                                              {"ns_best", "best", Format::kFixed1},
                                              {"gb_per_s", "GB/s of f32", Format::kFixed2}};
  PrintRows(o.common, "bench encode", 1, columns, rows, {{"head_dim", o.head_dim}, {"reps", o.reps}});
  return {};
}

struct DecodeCommand {
  Common common;
  ModelOptions model;
  CacheOptions cache;
  eval::DecodeBenchOptions bench;
  std::string text;
};

Status RunDecode(DecodeCommand o) {
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  if (o.cache.kv.empty()) o.cache.kv = {"f16", "eden:bits=4", "eden:bits=3", "eden:bits=2", "q8_0"};
  if (o.text.empty()) {
    CROQUIS_TRY(o.text, BundledPath("texts/frankenstein.txt"));
  }
  CROQUIS_TRY(const std::string text, eval::ReadText(o.text));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(*model));
  CROQUIS_TRY(o.bench.caches, ParseCaches(o.cache, model->config().head_dim));
  CROQUIS_TRY(const std::vector<int32_t> tokens, tokenizer->Encode(text));
  o.bench.sinks = o.cache.sinks;
  o.bench.ring = o.cache.ring;
  if (o.bench.n > model->config().max_position)
    Note(model->config().name + " was made for " + Grouped(model->config().max_position) +
         " tokens; this measures speed only");
  Progress bar("decode", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const std::vector<eval::DecodeRow> result,
              eval::BenchDecode(*executor, *model, tokens, o.bench, progress));
  bar.Finish();
  Json rows = Json::array();
  for (const eval::DecodeRow& r : result) {
    Json row;
    row["kv"] = r.kv;
    row["prompt_tokens_per_s"] = r.prompt_tokens_per_s;
    row["decode_tokens_per_s"] = 1e3 / r.ms;
    row["ms"] = r.ms;
    row["ms_best"] = r.ms_best;
    row["ratio_to_f16"] = r.ratio_to_f16;
    row["bytes"] = r.report.total();
    AddCacheColumns(r.report, row);
    rows.push_back(row);
  }
  static const std::vector<Column> columns = {{"kv", "cache"},
                                              {"bits_per_number", "bits", Format::kFixed3},
                                              {"cache_bytes", "cache", Format::kBytes},
                                              {"prompt_tokens_per_s", "prompt tok/s", Format::kFixed1},
                                              {"decode_tokens_per_s", "decode tok/s", Format::kFixed1},
                                              {"ms", "ms a token", Format::kFixed3},
                                              {"ms_best", "best", Format::kFixed3},
                                              {"ratio_to_f16", "times f16", Format::kFixed2}};
  PrintRows(
      o.common, "bench decode", executor->threads(), columns, rows,
      {{"model", model->config().name}, {"compute", model->Compute()}, {"n", o.bench.n}, {"steps", o.bench.steps}});
  return {};
}

void AddBenchKv(CLI::App& c, std::vector<std::string>& kv, const char* defaults) {
  c.add_option("--kv", kv, std::string("A cache; may be given several times (default: ") + defaults + ")")
      ->take_all()
      ->expected(1);
}

}  // namespace

void AddBench(CLI::App& app, Action* action) {
  auto* bench = app.add_subcommand("bench", "Measure attention, encoding or whole decode steps");
  bench->require_subcommand(1);
  bench->footer("\nExample:\n  croquis bench attention --n 32768 --heads 32 --kv-heads 8 --head-dim 128\n\n" +
                ExitCodeHelp());

  auto a = std::make_shared<AttentionCommand>();
  auto* c = bench->add_subcommand("attention",
                                  "One token attending to n cached ones: time, bytes, GB/s, error, ratio to f16");
  c->add_option("--n", a->bench.n, "Cached tokens")
      ->check(CLI::Range(int64_t(1), int64_t(1) << 28))
      ->capture_default_str();
  c->add_option("--heads", a->bench.heads, "Query heads")->check(CLI::Range(1, 4096))->capture_default_str();
  c->add_option("--kv-heads", a->bench.kv_heads, "Key and value heads")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c->add_option("--head-dim", a->bench.head_dim, "Numbers of a vector")
      ->check(CLI::Range(8, 256))
      ->capture_default_str();
  c->add_option("--layers", a->layers,
                "Layers visited in turn; auto: enough for f16 to exceed twice the last cache and 600 MB")
      ->capture_default_str();
  AddBenchKv(*c, a->cache.kv, "eden at 4, 3 and 2 bits, int8, q8_0; f16 is always there");
  AddSinksAndRing(*c, a->cache);
  c->add_option("--reps", a->bench.reps, "Rounds; each visits every cache once")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  c->add_option("--center-pairs", a->bench.center_pairs,
                "Two more rows with keys that have a common part in this many frequency pairs, without and with "
                "centring; 0: none")
      ->check(CLI::Range(0, 128))
      ->capture_default_str();
  c->add_option("--logit-std", a->bench.logit_std, "Spread of the logits")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  c->add_option("--seed", a->bench.seed, "Seed of the data")->capture_default_str();
  AddCommon(*c, a->common);
  c->footer("\nExample:\n  croquis bench attention --n 8192 --kv eden:bits=4 --kv q4_0 --threads 2\n\n" +
            ExitCodeHelp());
  c->callback([a, action] { *action = [a] { return RunAttention(*a); }; });

  auto e = std::make_shared<EncodeCommand>();
  c = bench->add_subcommand("encode", "Encoding a vector: nanoseconds on one core");
  AddBenchKv(*c, e->kv, "f16, eden at 4, 3 and 2 bits, int8, q8_0, q4_0");
  c->add_option("--head-dim", e->head_dim, "Numbers of a vector")->check(CLI::Range(8, 256))->capture_default_str();
  c->add_option("--reps", e->reps, "Rounds of 2,048 vectors")->check(CLI::Range(1, 100000))->capture_default_str();
  AddCommon(*c, e->common);
  c->footer("\nExample:\n  croquis bench encode --kv eden:bits=3 --head-dim 128\n\n" + ExitCodeHelp());
  c->callback([e, action] { *action = [e] { return RunEncode(*e); }; });

  auto d = std::make_shared<DecodeCommand>();
  c = bench->add_subcommand("decode", "Whole decode steps of a model over a long context, several caches in turn");
  AddModelOptions(*c, d->model, false);
  AddBenchKv(*c, d->cache.kv, "f16, eden at 4, 3 and 2 bits, q8_0; f16 is always there");
  c->add_option("--n", d->bench.n, "Tokens of context")->check(CLI::Range(1, 1 << 24))->capture_default_str();
  c->add_option("--steps", d->bench.steps, "Decode steps of every cache")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  c->add_option("--chunk", d->bench.chunk, "Tokens of the prompt computed at a time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  c->add_option("--text", d->text, "Text of the context, repeated when too short (default: the bundled one)");
  AddSinksAndRing(*c, d->cache);
  AddCommon(*c, d->common);
  c->footer("\nExample:\n  croquis bench decode --n 32768 --kv eden:bits=4\n\n" + ExitCodeHelp());
  c->callback([d, action] { *action = [d] { return RunDecode(*d); }; });
  AddBenchBatch(*bench, action);
  AddBenchPrefill(*bench, action);
}

}  // namespace croquis::apps
