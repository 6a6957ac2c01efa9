// croquis needle: is a fact found again, wherever it stands?
#include <cmath>
#include <iostream>

#include "apps/cli.h"
#include "apps/plot.h"
#include "apps/progress.h"
#include "croquis/eval/needle.h"
#include "croquis/eval/text.h"

namespace croquis::apps {
namespace {

struct NeedleCommand {
  Common common;
  ModelOptions model;
  CacheOptions cache;
  eval::NeedleOptions needle;
  std::string haystack, plot;
};

// 512, 1024, ... up to what the model was made for, at most five.
std::vector<int64_t> DefaultLengths(int64_t max_position) {
  std::vector<int64_t> lengths;
  for (int64_t n = 512; n <= std::min<int64_t>(max_position, 8192); n *= 2) lengths.push_back(n);
  if (lengths.empty()) lengths.push_back(max_position);
  return lengths;
}

std::string DepthText(double depth) { return Printf("%.0f %%", 100 * depth); }

// Depths down, lengths across, for one measure of one cache.
HeatMap MapOf(const NeedleCommand& o, const std::vector<eval::NeedleCell>& cells, size_t cache) {
  HeatMap map;
  map.title = o.cache.kv[cache];
  map.x_label = "tokens";
  map.y_label = "depth of the fact";
  for (int64_t n : o.needle.lengths) map.x_ticks.push_back(Grouped(n));
  for (double d : o.needle.depths) map.y_ticks.push_back(DepthText(d));
  for (double d : o.needle.depths) {
    for (int64_t n : o.needle.lengths) {
      for (const eval::NeedleCell& c : cells) {
        if (c.cache == cache && c.length == n && c.depth == d) map.values.push_back(c.accuracy);
      }
    }
  }
  return map;
}

void PrintGrid(const NeedleCommand& o, const std::vector<eval::NeedleCell>& cells, size_t cache) {
  const HeatMap map = MapOf(o, cells, cache);
  std::vector<Column> columns = {{"depth", "depth"}};
  Json rows = Json::array();
  for (const std::string& x : map.x_ticks) columns.push_back({x, x, Format::kPercent});
  for (size_t i = 0; i < map.y_ticks.size(); i++) {
    Json row;
    row["depth"] = map.y_ticks[i];
    for (size_t j = 0; j < map.x_ticks.size(); j++) row[map.x_ticks[j]] = map.values[i * map.x_ticks.size() + j];
    rows.push_back(row);
  }
  double accuracy = 0, token = 0, log_prob = 0, n = 0;
  for (const eval::NeedleCell& c : cells) {
    if (c.cache != cache) continue;
    accuracy += c.accuracy;
    token += c.token_accuracy;
    log_prob += c.log_prob;
    n++;
  }
  std::cout << map.title << ": facts found by depth and length\n"
            << FormatTable(columns, rows)
            << Printf("all: %.1f %% found, %.1f %% of the answers' tokens most likely, ln p(answer) %.2f\n\n",
                      100 * accuracy / n, 100 * token / n, log_prob / n);
}

Status Run(NeedleCommand o) {
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  if (o.cache.kv.empty()) o.cache.kv = {"f16", "eden:bits=4"};
  if (auto parsed = ParseCaches(o.cache, 0); !parsed) return parsed.error();
  std::string kind;
  if (!o.plot.empty()) {
    CROQUIS_TRY(kind, PlotKind(o.plot));
    CROQUIS_CHECK_OK(CheckWritable(o.plot));
  }
  if (o.haystack.empty()) {
    CROQUIS_TRY(o.haystack, BundledPath("texts/frankenstein.txt"));
  }
  CROQUIS_TRY(const std::string text, eval::ReadText(o.haystack));
  CROQUIS_TRY(const auto executor, Start(o.common));
  CROQUIS_TRY(const auto model, LoadModel(o.model, *executor));
  CROQUIS_CHECK_OK(NeedTokenizer(*model));
  CROQUIS_TRY(o.needle.caches, ParseCaches(o.cache, model->config().head_dim));
  const int64_t most = model->config().max_position;
  if (o.needle.lengths.empty()) o.needle.lengths = DefaultLengths(most);
  for (int64_t n : o.needle.lengths) {
    if (n > most)
      Note(model->config().name + " was made for " + Grouped(most) + " tokens; " + Grouped(n) + " go beyond");
  }
  o.needle.sinks = o.cache.sinks;
  o.needle.ring = o.cache.ring;
  Progress bar("needle", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const std::vector<eval::NeedleCell> cells, eval::RunNeedles(*executor, *model, text, o.needle, progress));
  bar.Finish();

  Json rows = Json::array();
  for (const eval::NeedleCell& c : cells) {
    rows.push_back({{"kv", o.cache.kv[c.cache]},
                    {"depth", c.depth},
                    {"length", c.length},
                    {"accuracy", c.accuracy},
                    {"token_accuracy", c.token_accuracy},
                    {"log_prob", c.log_prob},
                    {"trials", c.trials}});
  }
  if (o.common.json) {
    PrintRows(o.common, "needle", executor->threads(), {}, rows,
              {{"model", model->config().name}, {"sinks", o.needle.sinks}, {"ring", o.needle.ring}});
  } else {
    for (size_t c = 0; c < o.cache.kv.size(); c++) PrintGrid(o, cells, c);
    if (std::all_of(cells.begin(), cells.end(), [](const eval::NeedleCell& c) { return c.accuracy == 0; })) {
      std::cout << "No fact was found with any cache: " << model->config().name
                << " does not retrieve facts. ln p(answer) still tells the caches apart.\n";
    }
  }
  if (!o.plot.empty()) {
    std::vector<HeatMap> maps;
    for (size_t c = 0; c < o.cache.kv.size(); c++) maps.push_back(MapOf(o, cells, c));
    CROQUIS_TRY(const std::string image, Render(maps, kind));
    CROQUIS_CHECK_OK(WriteFileAtomic(o.plot, image));
    if (!o.common.json) std::cout << "plot: " << o.plot << "\n";
  }
  return {};
}

}  // namespace

void AddNeedle(CLI::App& app, Action* action) {
  auto o = std::make_shared<NeedleCommand>();
  o->needle.depths = {0, .25, .5, .75, 1};
  auto* c = app.add_subcommand("needle", "Hide a fact in a long text and ask for it: accuracy over depth and length");
  AddModelOptions(*c, o->model, false);
  c->add_option("--kv", o->cache.kv, "A cache to try; may be given several times (default: f16 and eden:bits=4)")
      ->take_all()
      ->expected(1);
  AddSinksAndRing(*c, o->cache);
  c->add_option("--lengths", o->needle.lengths,
                "Tokens of prompt and answer, comma-separated (default: 512, 1024, ... up to the model's range)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24));
  c->add_option("--depths", o->needle.depths, "Places of the fact, 0 (start) to 1 (end), comma-separated")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c->add_option("--trials", o->needle.trials, "Facts for each depth and length")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  c->add_option("--haystack", o->haystack, "Text to hide the fact in (default: the bundled one)");
  c->add_option("--seed", o->needle.seed, "Seed of the facts")->capture_default_str();
  c->add_option("--chunk", o->needle.chunk, "Tokens of the prompt computed at a time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  c->add_option("--plot", o->plot, "Draw the heat maps into a .svg or .png file");
  AddCommon(*c, o->common);
  c->footer("\nExample:\n  croquis needle MODEL --kv f16 --kv eden:bits=3 --lengths 1024,4096 --plot needle.svg\n\n" +
            ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return Run(*o); }; });
}

}  // namespace croquis::apps
