// Parsing, and what happens to errors.
#include <iostream>
#include <new>

#include "apps/cli.h"

namespace croquis::apps {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  croquis demo                                       the idea in one screen\n"
    "  croquis run -p \"It was a dark night\" -n 100        the bundled model, 4-bit cache\n"
    "  croquis run MODEL -f book.txt --kv k=eden:bits=4,v=eden:bits=3\n"
    "  croquis eval MODEL text.txt --kv eden:bits=4 --kv q4_0 --plot quality.svg\n"
    "  croquis bench attention --n 32768\n"
    "  croquis codecs\n"
    "  croquis attn --q q.npy --k k.npy --v v.npy --method hyper --causal -o out.npy\n";

int Fail(const Error& error) {
  if (error.message == "interrupted" && Interrupted()) {
    std::cerr << "croquis: interrupted\n";
  } else {
    std::cerr << "croquis: " << error.message << "\n";
    if (error.code == Code::kInternal)
      std::cerr << "croquis: this is a bug in Croquis; please report it with the command line\n";
  }
  return ExitCodeOf(error);
}

}  // namespace

int Main(int argc, const char* const* argv) {
  CLI::App app("Croquis runs language models with a compressed KV cache, and measures what that costs.", "croquis");
  app.require_subcommand(1);
  app.footer(std::string("\n") + kExamples + "\n" + ExitCodeHelp());
  app.set_version_flag("--version", std::string("croquis ") + CROQUIS_VERSION + " (" + std::string(Commit()) + ")");
  Action action;
  AddRun(app, &action);
  AddEdit(app, &action);
  AddEval(app, &action);
  AddNeedle(app, &action);
  AddBench(app, &action);
  AddCodecs(app, &action);
  AddAttn(app, &action);
  AddDemo(app, &action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help and --version
    std::cerr << "croquis: " << e.what() << "\n";
    const auto chosen = app.get_subcommands();
    std::cerr << "See croquis " << (chosen.empty() ? "" : chosen[0]->get_name() + " ") << "--help\n";
    return kExitUsage;
  }
  CatchInterrupts();
  try {
    const Status status = action();
    std::cout.flush();
    if (!status) return Fail(status.error());
    if (!std::cout) return Fail(IoError("cannot write to standard output"));
  } catch (const std::bad_alloc&) {
    return Fail(NoMemory("out of memory; take a shorter context or a smaller cache"));
  }
  return kExitOk;
}

}  // namespace croquis::apps
