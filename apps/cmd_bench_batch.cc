// croquis bench batch: many sequences with a common beginning, with and without sharing it.
#include <iostream>

#include "apps/cli.h"
#include "apps/progress.h"
#include "croquis/eval/batch_bench.h"

namespace croquis::apps {
namespace {

struct BatchCommand {
  Common common;
  CacheOptions cache;
  eval::BatchBenchOptions bench;
};

Json RowOf(const eval::BatchRow& r, int64_t sequences) {
  Json row;
  row["kv"] = r.kv;
  row["shared_ms"] = r.shared_ms;
  row["alone_ms"] = r.alone_ms;
  row["branches_ms"] = r.branches_ms;
  row["speedup"] = r.speedup;
  row["speedup_to_branches"] = r.speedup_to_branches;
  row["shared_tokens_per_s"] = 1e3 * double(sequences) / r.shared_ms;
  row["alone_tokens_per_s"] = 1e3 * double(sequences) / r.alone_ms;
  row["error"] = r.error;
  row["shared_bytes"] = r.shared_bytes;
  row["alone_bytes"] = r.alone_bytes;
  row["fast_path"] = r.fast;
  row["kernel"] = r.kernel;
  return row;
}

const std::vector<Column>& Columns() {
  static const std::vector<Column> columns = {{"kv", "cache"},
                                              {"shared_ms", "shared ms", Format::kFixed3},
                                              {"alone_ms", "alone ms", Format::kFixed3},
                                              {"speedup", "times", Format::kFixed2},
                                              {"branches_ms", "one by one ms", Format::kFixed3},
                                              {"speedup_to_branches", "times", Format::kFixed2},
                                              {"shared_tokens_per_s", "shared tok/s", Format::kFixed1},
                                              {"alone_tokens_per_s", "alone tok/s", Format::kFixed1},
                                              {"error", "error", Format::kScientific},
                                              {"shared_bytes", "shared", Format::kBytes},
                                              {"alone_bytes", "alone", Format::kBytes}};
  return columns;
}

Status RunBatch(BatchCommand o) {
  CROQUIS_CHECK_OK(CheckSinksAndRing(o.cache));
  if (o.cache.kv.empty()) o.cache.kv = {"f32", "f16", "eden:bits=4"};
  CROQUIS_TRY(o.bench.caches, ParseCaches(o.cache, o.bench.head_dim));
  o.bench.sinks = o.cache.sinks;
  o.bench.ring = o.cache.ring;
  CROQUIS_TRY(const auto executor, Start(o.common));
  Progress bar("bench", WantProgress() && !o.common.json);
  const auto progress = [&](int64_t done, int64_t total) {
    bar.Update(done, total);
    return !Interrupted();
  };
  CROQUIS_TRY(const std::vector<eval::BatchRow> result, eval::BenchBatchAttention(*executor, o.bench, progress));
  bar.Finish();
  Json rows = Json::array();
  for (const eval::BatchRow& r : result) rows.push_back(RowOf(r, o.bench.sequences));
  PrintRows(o.common, "bench batch", executor->threads(), Columns(), rows,
            {{"sequences", o.bench.sequences},
             {"prefix", o.bench.prefix},
             {"own", o.bench.own},
             {"heads", o.bench.heads},
             {"kv_heads", o.bench.kv_heads},
             {"head_dim", o.bench.head_dim},
             {"reps", o.bench.reps},
             {"sinks", o.bench.sinks},
             {"ring", o.bench.ring}});
  if (!o.common.json) {
    std::cout
        << Printf(
               "\none token of attention (one layer) for each of %lld sequences with %s tokens in common and %lld of "
               "their "
               "own;\n%lld heads on %lld of %lld numbers, %d threads\n",
               static_cast<long long>(o.bench.sequences), Grouped(o.bench.prefix).c_str(),
               static_cast<long long>(o.bench.own), static_cast<long long>(o.bench.heads),
               static_cast<long long>(o.bench.kv_heads), static_cast<long long>(o.bench.head_dim), executor->threads())
        << "shared: common pages read once for all; alone: each sequence has a cache of its own; one by one: common "
           "pages\nin memory, read once a sequence. error: of shared against alone, the largest over sequences\n";
    for (const eval::BatchRow& r : result) std::cout << (r.fast ? "kernel  " : "no fast path  ") << r.kernel << "\n";
  }
  return {};
}

}  // namespace

void AddBenchBatch(CLI::App& bench, Action* action) {
  auto o = std::make_shared<BatchCommand>();
  auto* c = bench.add_subcommand("batch", "Many sequences with a common beginning: with sharing against without");
  c->add_option("--sequences", o->bench.sequences, "Sequences that decode together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c->add_option("--prefix", o->bench.prefix, "Tokens that they share")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 28))
      ->capture_default_str();
  c->add_option("--own", o->bench.own, "Tokens that each has behind them")
      ->check(CLI::Range(int64_t(0), int64_t(1) << 28))
      ->capture_default_str();
  c->add_option("--heads", o->bench.heads, "Query heads")->check(CLI::Range(1, 4096))->capture_default_str();
  c->add_option("--kv-heads", o->bench.kv_heads, "Key and value heads")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c->add_option("--head-dim", o->bench.head_dim, "Numbers of a vector")
      ->check(CLI::Range(8, 256))
      ->capture_default_str();
  c->add_option("--kv", o->cache.kv, "A cache; may be given several times (default: f32, f16, eden at 4 bits)")
      ->take_all()
      ->expected(1);
  AddSinksAndRing(*c, o->cache);
  c->add_option("--reps", o->bench.reps, "Rounds; each visits every way once")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  c->add_option("--seed", o->bench.seed, "Seed of the data")->capture_default_str();
  AddCommon(*c, o->common);
  c->footer("\nExample:\n  croquis bench batch --sequences 32 --prefix 4096 --kv f32\n\n" + ExitCodeHelp());
  c->callback([o, action] { *action = [o] { return RunBatch(*o); }; });
}

}  // namespace croquis::apps
