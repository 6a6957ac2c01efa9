// croquis eval: what a compressed cache does to a model's predictions.
#include <iostream>
#include <map>

#include "apps/cli.h"
#include "apps/plot.h"
#include "apps/prefill.h"
#include "apps/progress.h"
#include "croquis/codecs/codec.h"
#include "croquis/eval/compare.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

struct EvalOptions {
  Common common;
  ModelOptions model;
  CacheOptions cache;
  PrefillOptions prefill;
  eval::CompareOptions compare;
  std::string text, plot, reference = "f16", mode = "both";
};

// "eden", "eden, hadamard=1", "q": a method without its number of bits, so that a curve joins its settings.
std::string Family(const kvcache::KvPolicy& policy) {
  const std::string& method = policy.base.evict.empty() ? policy.base.key : policy.base.evict;
  const auto spec = ParseSpec(method);
  if (!spec) return method;
  std::string name = spec->name;
  if (const size_t digit = name.find_first_of("0123456789");
      digit != std::string::npos && digit > 0 && name[0] == 'q') {
    name = "ggml";
  }
  for (const auto& [key, value] : spec->params) {
    if (key != "bits" && key != "memory" && key != "slots") name.append(", ").append(key).append("=").append(value);
  }
  return name;
}

Chart QualityChart(const EvalOptions& o, const std::vector<kvcache::KvPolicy>& policies, const Json& rows) {
  Chart chart;
  chart.title = "Divergence from the " + o.reference + " cache, " + Grouped(o.compare.ctx) + "-token windows";
  chart.x_label = "stored bits a number";
  chart.y_label = "mean KL divergence (nats)";
  chart.log_y = true;
  const char* measure = o.mode == "decode" ? "kl_mean_decode" : "kl_mean";
  std::map<std::string, size_t> series;
  size_t policy = 0;
  for (const Json& row : rows) {
    if (row.contains("reference")) continue;
    const std::string family = Family(policies[policy++]);
    const auto [at, fresh] = series.try_emplace(family, chart.series.size());
    if (fresh) chart.series.push_back({family, {}});
    chart.series[at->second].points.push_back(
        {row["bits_per_number"].get<double>(), row[measure].get<double>(), row["kv"].get<std::string>()});
  }
  for (Series& s : chart.series) {
    std::sort(s.points.begin(), s.points.end(), [](const Point& a, const Point& b) { return a.x < b.x; });
  }
  return chart;
}

Json Row(const std::string& kv, const EvalOptions& o, const eval::CacheScore& score) {
  Json row;
  row["kv"] = kv;
  row["bits_per_number"] = (score.report.key_bits + score.report.value_bits) / 2;
  row["key_bits"] = score.report.key_bits;
  row["value_bits"] = score.report.value_bits;
  row["bits_total"] = score.report.bits_per_number;
  row["cache_bytes"] = score.report.total();
  row["cache_bytes_f16"] = score.report.f16_bytes;
  const auto add = [&](const eval::DivergenceSummary& s, const std::string& suffix) {
    row["ppl" + suffix] = s.ppl;
    row["kl_mean" + suffix] = s.kl_mean;
    row["kl_median" + suffix] = s.kl_median;
    row["kl_p99" + suffix] = s.kl_p99;
    row["kl_p999" + suffix] = s.kl_p999;
    row["same_top" + suffix] = s.same_top;
    row["positions" + suffix] = s.positions;
  };
  if (o.compare.chunked) add(score.chunked, "");
  if (o.compare.decode) add(score.decode, "_decode");
  row["seconds"] = score.seconds;
  row["centered_heads"] = score.report.centered_heads;
  row["kernels"] = score.report.kernels;
  row["fast_path"] = score.report.all_fast;
  return row;
}

const std::vector<Column>& Columns() {
  static const std::vector<Column> columns = {{"kv", "cache"},
                                              {"bits_per_number", "bits", Format::kFixed2},
                                              {"ppl", "ppl", Format::kFixed3},
                                              {"kl_mean", "KL mean", Format::kScientific},
                                              {"kl_median", "median", Format::kScientific},
                                              {"kl_p99", "99 %", Format::kScientific},
                                              {"kl_p999", "99.9 %", Format::kScientific},
                                              {"same_top", "same top", Format::kPercent},
                                              {"kl_mean_decode", "KL decode", Format::kScientific},
                                              {"same_top_decode", "same top", Format::kPercent},
                                              {"ppl_decode", "ppl", Format::kFixed3}};
  return columns;
}

Status Run(EvalOptions o) {
  if (!o.prefill.methods.empty()) {
    if (!o.cache.kv.empty() || !o.cache.layers.empty())
      return InvalidArgument("--prefill compares ways to read a prompt and --kv caches; give one of them");
    if (!o.plot.empty()) return InvalidArgument("--plot draws caches; there is none for --prefill");
    return EvalPrefill({o.common, o.model, o.prefill, o.text, o.compare.ctx, o.compare.windows});
  }
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  if (o.cache.kv.empty()) o.cache.kv = {"eden:bits=4", "eden:bits=3", "eden:bits=2", "q4_0", "q8_0"};
  if (auto parsed = ParseCaches(o.cache, 0); !parsed) return parsed.error();
  std::string kind;
  if (!o.plot.empty()) {
    CROQUIS_TRY(kind, PlotKind(o.plot));
    CROQUIS_CHECK_OK(CheckWritable(o.plot));
  }
  CROQUIS_TRY(std::string text, eval::ReadText(o.text));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(*model));
  const model::ModelConfig& config = model->config();
  if (o.compare.ctx == 0) o.compare.ctx = std::min<int64_t>(1024, config.max_position);
  if (o.compare.ctx > config.max_position) {
    Note(config.name + " was made for " + Grouped(config.max_position) + " tokens; windows of " +
         Grouped(o.compare.ctx) + " go beyond");
  }
  CROQUIS_TRY(o.compare.caches, ParseCaches(o.cache, config.head_dim));
  CROQUIS_TRY(o.compare.reference, kvcache::ParseKvPolicy(o.reference));
  o.compare.sinks = o.cache.sinks;
  o.compare.ring = o.cache.ring;
  o.compare.seed = o.cache.seed;
  o.compare.chunked = o.mode != "decode";
  o.compare.decode = o.mode != "chunked";
  CROQUIS_TRY(const std::vector<int32_t> tokens, tokenizer->Encode(text, false));

  Progress bar("eval", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const eval::CompareResult result, eval::CompareCaches(*executor, *model, tokens, o.compare, progress));
  bar.Finish();

  Json rows = Json::array();
  bool listed = false;
  for (size_t i = 0; i < result.caches.size(); i++) {
    listed = listed || o.compare.caches[i].text == o.reference;
    rows.push_back(Row(o.compare.caches[i].text, o, result.caches[i]));
    if (result.caches[i].report.key_pages == 0) {
      Note(o.compare.caches[i].text +
           ": all tokens of a window fit in the sinks and the ring, so nothing was encoded; take a longer --ctx or a "
           "smaller --ring");
    }
  }
  if (!listed) {  // the reference, compared with itself
    Json row = Row(o.reference, o, result.reference);
    row["reference"] = true;
    rows.insert(rows.begin(), row);
  }
  Json extra;
  extra["model"] = config.name;
  extra["compute"] = model->Compute();
  extra["text"] = o.text;
  extra["ctx"] = o.compare.ctx;
  extra["windows"] = result.windows;
  extra["windows_available"] = result.windows_available;
  extra["chunk"] = o.compare.chunk;
  extra["sinks"] = o.compare.sinks;
  extra["ring"] = o.compare.ring;
  extra["reference"] = o.reference;
  PrintRows(o.common, "eval", executor->threads(), Columns(), rows, extra);
  if (!o.common.json) {
    std::cout << "\n"
              << config.name << ", " << model->Compute() << "; " << result.windows << " of " << result.windows_available
              << " windows of " << Grouped(o.compare.ctx) << " tokens; first " << o.compare.sinks << " and last "
              << o.compare.ring << " tokens exact.\nKL in nats against the " << o.reference << " cache: read "
              << o.compare.chunk << " tokens at a time, and (decode) one at a time. Bits are those stored in pages.\n";
    for (const eval::CacheScore& s : result.caches) {
      if (s.report.all_fast) continue;
      for (const std::string& kernel : s.report.kernels) std::cout << "no fast path here: " << kernel << "\n";
    }
  }
  if (!o.plot.empty()) {
    CROQUIS_TRY(const std::string image, Render(QualityChart(o, o.compare.caches, rows), kind));
    CROQUIS_CHECK_OK(WriteFileAtomic(o.plot, image));
    if (!o.common.json) std::cout << "plot: " << o.plot << "\n";
  }
  return {};
}

}  // namespace

void AddEval(CLI::App& app, Action* action) {
  auto o = std::make_shared<EvalOptions>();
  o->compare.ctx = 0;
  o->model.dtype = "f32";  // bf16 products add a noise of about 7e-6 nats, more than an 8-bit cache does
  auto* c = app.add_subcommand("eval", "Compare caches: perplexity and divergence from an uncompressed one");
  AddModelOptions(*c, o->model, true);
  c->add_option("TEXT", o->text, "A text file, or a folder of *.txt files")->required();
  c->add_option("--kv", o->cache.kv, "A cache to compare; may be given several times (default: eden and ggml methods)")
      ->take_all()
      ->expected(1);
  AddSinksAndRing(*c, o->cache);
  AddPrefillOptions(*c, o->prefill, true);
  c->add_option("--ctx", o->compare.ctx, "Tokens of a window (default: 1024, or what the model was made for)")
      ->check(CLI::Range(int64_t(2), int64_t(1) << 24));
  c->add_option("--windows", o->compare.windows, "Windows, spread evenly over the text; 0: all")->capture_default_str();
  c->add_option("--chunk", o->compare.chunk, "Tokens read at a time in the first measurement")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  c->add_option("--mode", o->mode, "chunked (as a prompt is read), decode (token by token) or both")
      ->check(CLI::IsMember({"chunked", "decode", "both"}))
      ->capture_default_str();
  c->add_option("--reference", o->reference, "The cache to compare with")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->capture_default_str();
  c->add_option("--cache-seed", o->cache.seed, "Seed of the caches' random rotations")->capture_default_str();
  c->add_option("--plot", o->plot, "Draw divergence against bits into a .svg or .png file");
  AddCommon(*c, o->common);
  c->footer(
      "\nExample:\n  croquis eval models/croquis-7m text.txt --kv eden:bits=4 --kv q4_0:hadamard=1 --ctx 1024 --plot "
      "quality.svg\n  croquis eval models/croquis-7m text.txt --prefill auto:eps=0.05 --prefill "
      "hyper:variant=paper\n\n" +
      ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return Run(*o); }; });
}

}  // namespace croquis::apps
