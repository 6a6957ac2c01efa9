// What all commands share: options, exit codes, errors, the bundled model.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/output.h"
#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"

namespace croquis::apps {

// Exit codes, as documented in docs/cli.md and `croquis --help`.
enum ExitCode : int {
  kExitOk = 0,
  kExitInternal = 1,     // a bug in Croquis
  kExitUsage = 2,        // an option or value that makes no sense
  kExitFile = 3,         // a file or model that is missing, unreadable, damaged, or cannot be written
  kExitUnsupported = 4,  // understood, but not something this build or machine can do
  kExitMemory = 5,       // a size that does not fit
  kExitNumeric = 6,      // the model or cache produced numbers that are not finite, or too large
  kExitInterrupted = 130
};
int ExitCodeOf(const Error& error);
// The text of --help about exit codes.
std::string ExitCodeHelp();

// A command's work, run after parsing. It prints its results itself.
using Action = std::function<Status()>;

struct Common {
  int threads = 0;  // 0: all
  std::string simd;
  bool json = false;
};

// Adds --threads, --simd and --json to a command.
void AddCommon(CLI::App& command, Common& common);
// Forces the instruction set and makes the pool.
Result<std::unique_ptr<Executor>> Start(const Common& common);

// Options that choose a cache.
struct CacheOptions {
  std::vector<std::string> kv;
  std::vector<std::string> layers;  // --kv-layers
  int64_t sinks = 4, ring = 128;
  uint64_t seed = 0;
};
void AddSinksAndRing(CLI::App& command, CacheOptions& options);
// Parses each --kv with the same --kv-layers, and makes sure that its methods exist and take the head size (0: no
// check).
Result<std::vector<kvcache::KvPolicy>> ParseCaches(const CacheOptions& options, int64_t head_dim);
Status CheckSinksAndRing(const CacheOptions& options);

// The path of a file or folder of models/: beside the installed program (share/croquis/models), else in the source
// folder.
Result<std::string> BundledPath(const std::string& name);
// `path`, or CROQUIS_MODEL from the environment, or the bundled model.
Result<std::string> ModelPath(const std::string& path);

struct ModelOptions {
  std::string path, tokenizer, dtype = "auto";
};
void AddModelOptions(CLI::App& command, ModelOptions& options, bool positional_required);
// Whether neither the command line nor CROQUIS_MODEL names a model, so that the bundled one is taken.
bool TakesBundled(const ModelOptions& options);
Result<std::unique_ptr<model::Model>> LoadModel(const ModelOptions& options, Executor& executor);
// The model's tokenizer, or an error that says how to name one.
Result<const model::Tokenizer*> NeedTokenizer(const model::Model& model);

// Makes SIGINT set a flag instead of ending the process; a second one ends it.
void CatchInterrupts();
bool Interrupted();
// The error that ends a command after an interrupt.
Error InterruptedError();

// Prints the rows: one JSON object when common.json, else the table.
void PrintRows(const Common& common, std::string_view command, int threads, const std::vector<Column>& columns,
               const Json& rows, const Json& extra = Json::object());
// One line on stderr: "croquis: note: ...".
void Note(const std::string& text);

// Each adds its command; *action is set when it was chosen.
void AddRun(CLI::App& app, Action* action);
void AddEdit(CLI::App& app, Action* action);
void AddEval(CLI::App& app, Action* action);
void AddNeedle(CLI::App& app, Action* action);
void AddBench(CLI::App& app, Action* action);
void AddBenchBatch(CLI::App& bench, Action* action);    // a part of bench
void AddBenchPrefill(CLI::App& bench, Action* action);  // another
void AddCodecs(CLI::App& app, Action* action);
void AddAttn(CLI::App& app, Action* action);
void AddDemo(CLI::App& app, Action* action);

// The whole program; argv as in main. Returns the exit code.
int Main(int argc, const char* const* argv);

}  // namespace croquis::apps
