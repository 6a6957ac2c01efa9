// croquis bench prefill: dense attention methods against exact attention, over lengths.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "apps/cli.h"
#include "apps/plot.h"
#include "apps/progress.h"
#include "croquis/eval/prefill_bench.h"

namespace croquis::apps {
namespace {

struct PrefillCommand {
  Common common;
  eval::PrefillBenchOptions bench;
  std::string precision = "f32", data = "gaussian", plot;
  int64_t kv_heads = 0;  // 0: as heads
};

Json RowOf(const eval::PrefillRow& r) {
  Json row = {{"n", r.n}, {"method", r.method}};
  if (!r.refused.empty()) {
    row["error"] = r.refused;
    return row;
  }
  row["ms"] = r.ms;
  row["ms_best"] = r.ms_best;
  row["ratio_to_exact"] = r.speedup;
  row["ratio_low"] = r.speedup_low;
  row["ratio_high"] = r.speedup_high;
  row["pairs_share"] = r.pairs_share;
  row["error_mean"] = r.error_mean;
  row["error_p90"] = r.error_p90;
  row["error_max"] = r.error_max;
  row["lse_error"] = r.lse_error;
  row["error_rows"] = r.error_rows;
  row["est_error"] = r.est_error < 0 ? Json(nullptr) : Json(r.est_error);
  row["fallback_share"] = r.fallback_share;
  row["kernel"] = r.kernel;
  return row;
}

Json CurveJson(const eval::PrefillCurve& c) {
  Json curve = {{"method", c.method}};
  curve["exponent"] = c.exponent ? Json(*c.exponent) : Json(nullptr);
  curve["crossover"] = c.crossover ? Json(*c.crossover) : Json(nullptr);
  curve["faster_at_first"] = c.at_first;
  return curve;
}

std::string CrossoverText(const eval::PrefillCurve& c, const std::vector<int64_t>& lengths) {
  if (!c.crossover) return "none up to " + Grouped(*std::max_element(lengths.begin(), lengths.end()));
  return (c.at_first ? "at most " : "") + Grouped(std::llround(*c.crossover));
}

// Time and error against length, one above the other.
std::vector<Chart> Charts(const eval::PrefillBench& bench, const std::string& what) {
  Chart time, error;
  time.title = "time of " + what;
  error.title = "error of " + what;
  time.y_label = "milliseconds";
  error.y_label = "mean error of a row";
  for (Chart* chart : {&time, &error}) {
    chart->x_label = "length";
    chart->log_x = chart->log_y = true;
  }
  for (const eval::PrefillCurve& c : bench.curves) {
    Series t{c.method, {}}, e{c.method, {}};
    for (const eval::PrefillRow& r : bench.rows) {
      if (r.method != c.method || !r.refused.empty()) continue;
      t.points.push_back({double(r.n), r.ms, ""});
      e.points.push_back({double(r.n), r.error_mean, ""});
    }
    time.series.push_back(t);
    error.series.push_back(e);
  }
  return {time, error};
}

const std::vector<Column>& Columns() {
  static const std::vector<Column> columns = {{"n", "length", Format::kInt},
                                              {"method", "method"},
                                              {"ms", "ms", Format::kFixed2},
                                              {"ratio_to_exact", "times exact", Format::kFixed2},
                                              {"ratio_low", "from", Format::kFixed2},
                                              {"ratio_high", "to", Format::kFixed2},
                                              {"pairs_share", "pairs", Format::kPercent},
                                              {"error_mean", "error", Format::kScientific},
                                              {"error_p90", "90 %", Format::kScientific},
                                              {"error_max", "largest", Format::kScientific},
                                              {"est_error", "est. error", Format::kScientific},
                                              {"lse_error", "lse", Format::kScientific},
                                              {"fallback_share", "rows redone", Format::kPercent},
                                              {"kernel", "kernel"},
                                              {"error", "refused"}};
  return columns;
}

void PrintCurves(const eval::PrefillBench& bench, const PrefillCommand& o, int threads) {
  Json rows = Json::array();
  for (const eval::PrefillCurve& c : bench.curves) {
    Json row = CurveJson(c);
    const bool exact = &c == bench.curves.data();
    row["crossover"] = exact ? Json(nullptr) : Json(CrossoverText(c, o.bench.lengths));
    rows.push_back(row);
  }
  std::cout << "\n"
            << FormatTable({{"method", "method"},
                            {"exponent", "time ~ n^", Format::kFixed2},
                            {"crossover", "faster than exact from n*"}},
                           rows)
            << Printf("\n%lld heads on %lld of %lld numbers, ", static_cast<long long>(o.bench.heads),
                      static_cast<long long>(o.bench.kv_heads), static_cast<long long>(o.bench.head_dim))
            << (o.bench.causal ? "causal" : "no mask") << ", " << o.precision << ", " << o.data << " data, " << threads
            << " threads, " << o.bench.repeats << " rounds\n"
            << "times exact: median over rounds of exact's time over its own, with the least and the most\n"
            << "error: |o - o'| / |o'| over sampled rows, o' in double; est. error: the method's own estimate\n";
}

Status RunPrefill(PrefillCommand o) {
  o.bench.kv_heads = o.kv_heads > 0 ? o.kv_heads : o.bench.heads;
  o.bench.precision = o.precision == "bf16" ? simd::RowType::kBf16 : simd::RowType::kF32;
  CROQUIS_TRY(o.bench.data, eval::ParseAttentionData(o.data));
  if (o.bench.methods.empty()) o.bench.methods = eval::DefaultPrefillMethods(o.bench.causal);
  std::string kind;
  if (!o.plot.empty()) {
    CROQUIS_TRY(kind, PlotKind(o.plot));
    CROQUIS_CHECK_OK(CheckWritable(o.plot));
  }
  CROQUIS_TRY(const auto executor, Start(o.common));
  Progress bar("prefill", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const eval::PrefillBench bench, eval::BenchPrefill(*executor, o.bench, progress));
  bar.Finish();
  Json rows = Json::array(), curves = Json::array();
  for (const eval::PrefillRow& r : bench.rows) rows.push_back(RowOf(r));
  for (const eval::PrefillCurve& c : bench.curves) curves.push_back(CurveJson(c));
  PrintRows(o.common, "bench prefill", executor->threads(), Columns(), rows,
            {{"heads", o.bench.heads},
             {"kv_heads", o.bench.kv_heads},
             {"head_dim", o.bench.head_dim},
             {"causal", o.bench.causal},
             {"precision", o.precision},
             {"data", o.data},
             {"repeats", o.bench.repeats},
             {"seed", o.bench.seed},
             {"curves", curves}});
  if (!o.common.json) PrintCurves(bench, o, executor->threads());
  if (o.plot.empty()) return {};
  const std::string what =
      std::string(o.bench.causal ? "causal" : "full") + " attention, " + o.precision + ", " + o.data + " data";
  CROQUIS_TRY(const std::string image, Render(Charts(bench, what), kind));
  CROQUIS_CHECK_OK(WriteFileAtomic(o.plot, image));
  if (!o.common.json) std::cout << "plot: " << o.plot << "\n";
  return {};
}

}  // namespace

void AddBenchPrefill(CLI::App& bench, Action* action) {
  auto o = std::make_shared<PrefillCommand>();
  auto* c = bench.add_subcommand("prefill", "Attention methods against exact attention over lengths: time, error, n*");
  c->add_option("--lengths", o->bench.lengths, "Queries and keys, a list")->delimiter(',')->capture_default_str();
  c->add_option("--method", o->bench.methods,
                "A method, as hyper:block=128; may be given several times (default: every approximation of softmax "
                "attention that takes the mask, croquis attn --list); exact is always there")
      ->take_all()
      ->expected(1);
  c->add_option("--heads", o->bench.heads, "Query heads")->check(CLI::Range(1, 4096))->capture_default_str();
  c->add_option("--kv-heads", o->kv_heads, "Key and value heads (default: --heads)")->check(CLI::Range(1, 4096));
  c->add_option("--head-dim", o->bench.head_dim, "Numbers of a vector")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  c->add_flag("--causal,!--no-causal", o->bench.causal, "With a causal mask (the default), or without");
  c->add_option("--precision", o->precision, "Tensors and products in f32 or bf16; exact too")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  c->add_option("--data", o->data, "gaussian, planted (one heavy key a query), clusters or sinks")
      ->check(CLI::IsMember({"gaussian", "planted", "clusters", "sinks"}))
      ->capture_default_str();
  c->add_option("--repeats", o->bench.repeats, "Rounds; each visits every method once")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  c->add_option("--error-rows", o->bench.error_rows, "Rows of each head whose error is measured")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--seed", o->bench.seed, "Seed of the data and of random methods")->capture_default_str();
  c->add_option("--plot", o->plot, "Draw time and error against length into a .svg or .png file");
  AddCommon(*c, o->common);
  c->footer(
      "\nExample:\n  croquis bench prefill --lengths 4096,16384,65536 --method hyper --data clusters --plot "
      "prefill.svg\n\n" +
      ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return RunPrefill(*o); }; });
}

}  // namespace croquis::apps
