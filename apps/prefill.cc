#include "apps/prefill.h"

#include <iostream>

#include "apps/progress.h"
#include "croquis/base/memory.h"
#include "croquis/eval/compare_prefill.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

Json Row(const std::string& method, const eval::PrefillScore& score, int64_t tokens) {
  Json row;
  row["prefill"] = method;
  const eval::DivergenceSummary& d = score.divergence;
  row["ppl"] = d.ppl;
  row["kl_mean"] = d.kl_mean;
  row["kl_median"] = d.kl_median;
  row["kl_p99"] = d.kl_p99;
  row["kl_p999"] = d.kl_p999;
  row["same_top"] = d.same_top;
  row["positions"] = d.positions;
  AddPrefillColumns(score.report, row);
  row["seconds"] = score.seconds;
  row["tokens_per_s"] = double(tokens) / score.seconds;
  return row;
}

const std::vector<Column>& Columns() {
  static const std::vector<Column> columns = {{"prefill", "prefill"},
                                              {"ppl", "ppl", Format::kFixed3},
                                              {"ppl_change", "against exact", Format::kText},
                                              {"kl_mean", "KL mean", Format::kScientific},
                                              {"kl_p99", "99 %", Format::kScientific},
                                              {"same_top", "same top", Format::kPercent},
                                              {"pairs_share", "pairs", Format::kPercent},
                                              {"est_error", "est. error", Format::kScientific},
                                              {"fallback_share", "rows redone", Format::kPercent},
                                              {"tokens_per_s", "tokens/s", Format::kInt}};
  return columns;
}

}  // namespace

void AddPrefillOptions(CLI::App& command, PrefillOptions& options, bool several) {
  auto* method = command.add_option(
      "--prefill", options.methods,
      several
          ? "Compare ways to compute attention while a prompt is read, instead of caches: exact, auto:eps=0.05, "
            "hyper:...; may be given several times (croquis attn --list)"
          : "Read the prompt whole, attention computed by this method: exact, auto:eps=0.05, hyper:... (croquis attn "
            "--list), or in chunks, through the cache: chunks; default: exact where its activations fit in half of the "
            "free memory and the cache does not evict");
  if (several)
    method->take_all()->expected(1);
  else
    method->expected(1);
  command
      .add_option("--prefill-layers", options.layers,
                  "Other prefill methods for some layers or heads: 0-1=exact, 3/0-2=hyper")
      ->needs(method);
  command.add_option("--prefill-seed", options.seed, "Seed of the prefill methods")->capture_default_str();
}

Result<std::vector<attention::PrefillPolicy>> ParsePrefills(const PrefillOptions& options) {
  std::vector<attention::PrefillPolicy> policies;
  for (const std::string& method : options.methods) {
    auto policy = attention::ParsePrefillPolicy(method, options.layers);
    if (!policy) {
      const Error& e = policy.error();  // a method that does not exist is a wrong option, not a missing file
      return Error{e.code == Code::kNotFound ? Code::kInvalidArgument : e.code,
                   "--prefill " + method + ": " + e.message};
    }
    policies.push_back(*std::move(policy));
  }
  return policies;
}

std::string WhyChunks(const ReadingFacts& f) {
  if (f.restored) return "the prompt continues a restored cache";
  if (f.tokens <= f.chunk) return "a chunk holds the prompt";
  bool evicts = !f.kv->base.evict.empty();
  for (const auto& o : f.kv->overrides) evicts = evicts || !o.pair.evict.empty();
  if (evicts) return "the cache evicts tokens while it reads";
  if (f.bytes > f.available / 2)
    return "whole it takes " + HumanBytes(double(f.bytes)) + " of memory, more than half of the " +
           HumanBytes(double(f.available)) + " there are";
  return "";
}

void AddPrefillColumns(const attention::PrefillReport& r, Json& row) {
  row["pairs"] = r.pairs;
  row["pairs_exact"] = r.exact_pairs;
  row["pairs_share"] = r.exact_pairs > 0 ? r.pairs / r.exact_pairs : 0;
  if (r.est_error >= 0)
    row["est_error"] = r.est_error;
  else
    row["est_error"] = nullptr;
  row["fallback_share"] = r.rows > 0 ? double(r.fallback_rows) / double(r.rows) : 0;
  row["heads"] = r.heads;
  row["windowed_layers"] = r.windowed;
  row["prefill_kernel"] = r.kernel;
}

std::string DescribePrefill(const attention::PrefillReport& r) {
  std::string text = Printf("%.1f %% of the pairs", r.exact_pairs > 0 ? 100 * r.pairs / r.exact_pairs : 0.0);
  if (r.est_error >= 0) text += Printf(", estimated error %.2g", r.est_error);
  text += "; heads:";
  for (const auto& [method, heads] : r.heads) text += " " + method + " " + Grouped(heads);
  if (r.fallback_rows > 0)
    text += Printf("; %.1f %% of the rows computed again exactly", 100 * double(r.fallback_rows) / double(r.rows));
  if (r.windowed) text += "; layers with a sliding window are exact unless the method takes one";
  return text;
}

Status EvalPrefill(const PrefillEvalOptions& o) {
  eval::PrefillCompareOptions compare;
  CROQUIS_TRY(compare.methods, ParsePrefills(o.prefill));
  CROQUIS_TRY(const std::string text, eval::ReadText(o.text));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_TRY(const model::Tokenizer* tokenizer, NeedTokenizer(*model));
  const model::ModelConfig& config = model->config();
  compare.ctx = o.ctx > 0 ? o.ctx : config.max_position;
  compare.windows = o.windows;
  compare.seed = o.prefill.seed;
  if (compare.ctx > config.max_position)
    Note(config.name + " was made for " + Grouped(config.max_position) + " tokens; windows of " + Grouped(compare.ctx) +
         " go beyond");
  CROQUIS_TRY(const std::vector<int32_t> tokens, tokenizer->Encode(text, false));
  Progress bar("eval", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const eval::PrefillCompareResult result,
              eval::ComparePrefill(*executor, *model, tokens, compare, progress));
  bar.Finish();

  const int64_t read = result.windows * compare.ctx;
  Json rows = Json::array({Row("exact", result.reference, read)});
  rows[0]["reference"] = true;
  for (size_t i = 0; i < result.methods.size(); ++i) {
    Json row = Row(compare.methods[i].text, result.methods[i], read);
    const double change = result.methods[i].divergence.ppl / result.reference.divergence.ppl - 1;
    row["ppl_ratio"] = change + 1;
    row["ppl_change"] = Printf("%+.2f %%", 100 * change);
    rows.push_back(row);
  }
  Json extra;
  extra["model"] = config.name;
  extra["compute"] = model->Compute();
  extra["text"] = o.text;
  extra["ctx"] = compare.ctx;
  extra["windows"] = result.windows;
  extra["windows_available"] = result.windows_available;
  PrintRows(o.common, "eval", executor->threads(), Columns(), rows, extra);
  if (o.common.json) return {};
  std::cout << "\n"
            << config.name << ", " << model->Compute() << "; " << result.windows << " of " << result.windows_available
            << " windows of " << Grouped(compare.ctx)
            << " tokens, each read whole.\nKL in nats against exact attention; pairs: of those that exact attention "
               "evaluates.\n";
  for (size_t i = 0; i < result.methods.size(); ++i)
    std::cout << compare.methods[i].text << ": " << DescribePrefill(result.methods[i].report) << "\n";
  return {};
}

}  // namespace croquis::apps
