#include "apps/cli.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "croquis/codecs/codec.h"
#include "croquis/simd/target.h"

namespace croquis::apps {
namespace fs = std::filesystem;
namespace {

volatile std::sig_atomic_t interrupted = 0;
void OnInterrupt(int) { interrupted = 1; }

}  // namespace

int ExitCodeOf(const Error& error) {
  if (interrupted != 0 && error.message == "interrupted") return kExitInterrupted;
  switch (error.code) {
    case Code::kInvalidArgument:
    case Code::kOutOfRange:
      return kExitUsage;
    case Code::kNotFound:
    case Code::kCorrupt:
    case Code::kIo:
      return kExitFile;
    case Code::kUnsupported:
      return kExitUnsupported;
    case Code::kNoMemory:
      return kExitMemory;
    case Code::kNumeric:
      return kExitNumeric;
    case Code::kInternal:
      break;
  }
  return kExitInternal;
}

std::string ExitCodeHelp() {
  return "Exit codes: 0 done; 1 a bug in Croquis; 2 an option or value that makes no sense; 3 a file or model that is\n"
         "missing, unreadable or damaged, or a result that cannot be written; 4 not supported by this build or "
         "machine;\n"
         "5 more memory than there is; 6 numbers that are not finite; 130 interrupted.";
}

void AddCommon(CLI::App& command, Common& common) {
  command.add_option("--threads", common.threads, "Threads (default: all that this process may use)")
      ->check(CLI::Range(1, 1024));
  command.add_option("--simd", common.simd,
                     "Instruction set: scalar, avx2, avxvnni, avx512 or amx (default: the best)");
  command.add_flag("--json", common.json, "Print one JSON object {machine, commit, threads, rows} instead of text");
}

Result<std::unique_ptr<Executor>> Start(const Common& common) {
  if (!common.simd.empty()) {
    if (Status s = simd::Force(common.simd); !s) return std::move(s).error();
  } else {
    CROQUIS_CHECK_OK(simd::VerifyForced());
  }
  return std::make_unique<Executor>(common.threads > 0 ? common.threads : HardwareThreads());
}

void AddSinksAndRing(CLI::App& command, CacheOptions& options) {
  command.add_option("--sinks", options.sinks, "First tokens kept in 16 bits")->capture_default_str();
  command.add_option("--ring", options.ring, "Most recent tokens kept in 16 bits")->capture_default_str();
  command.add_option(
      "--kv-layers", options.layers,
      "Other methods for some layers: 0-1=f16, 3=k=int8,v=eden:bits=4, 0-3/1=f16 (layers 0 to 3, kv head 1)");
}

Status CheckSinksAndRing(const CacheOptions& options) {
  for (const auto& [name, value] : {std::pair{"--sinks", options.sinks}, std::pair{"--ring", options.ring}}) {
    if (value < 0 || value > (1 << 20)) {
      return OutOfRange(std::string(name) + " lies between 0 and 1048576, got " + std::to_string(value));
    }
  }
  return {};
}

Result<std::vector<kvcache::KvPolicy>> ParseCaches(const CacheOptions& options, int64_t head_dim) {
  std::vector<kvcache::KvPolicy> policies;
  for (const std::string& kv : options.kv) {
    auto policy = kvcache::ParseKvPolicy(kv, options.layers);
    // A method that does not exist is a wrong option, not a missing file.
    const auto usage = [&](const Error& e) {
      return Error{e.code == Code::kNotFound ? Code::kInvalidArgument : e.code, "--kv " + kv + ": " + e.message};
    };
    if (!policy) return usage(policy.error());
    std::vector<kvcache::KvPair> pairs = {policy->base};
    for (const auto& o : policy->overrides) pairs.push_back(o.pair);
    for (const kvcache::KvPair& pair : pairs) {
      for (const auto& [method, role] :
           {std::pair{pair.key, codecs::Role::kKey}, std::pair{pair.value, codecs::Role::kValue}}) {
        if (head_dim == 0) {
          if (auto spec = codecs::ResolveSpec(method); !spec) return usage(spec.error());
        } else if (auto codec = codecs::Make(method, head_dim, role); !codec) {
          return usage(codec.error());
        }
      }
    }
    policies.push_back(*std::move(policy));
  }
  return policies;
}

Result<std::string> BundledPath(const std::string& name) {
  std::error_code ec;
  const fs::path self = fs::read_symlink("/proc/self/exe", ec);
  std::vector<fs::path> places;
  if (!ec) places.push_back(self.parent_path().parent_path() / "share" / "croquis" / "models" / name);
  if (*CROQUIS_MODELS_DIR != '\0') places.push_back(fs::path(CROQUIS_MODELS_DIR) / name);
  std::string tried;
  for (const fs::path& p : places) {
    if (fs::exists(p, ec)) return p.string();
    tried += (tried.empty() ? "" : " and ") + p.string();
  }
  return NotFound("the bundled " + name + " is not there (looked at " + tried +
                  "); name a model, or set CROQUIS_MODEL");
}

// The model named on the command line, else by CROQUIS_MODEL, else "".
static std::string NamedModel(const std::string& path) {
  const char* env = std::getenv("CROQUIS_MODEL");
  return !path.empty() || env == nullptr ? path : env;
}

bool TakesBundled(const ModelOptions& options) { return NamedModel(options.path).empty(); }

Result<std::string> ModelPath(const std::string& path) {
  std::string named = NamedModel(path);
  if (named.empty()) return BundledPath("croquis-7m");
  return named;
}

void AddModelOptions(CLI::App& command, ModelOptions& options, bool positional_required) {
  auto* model = command.add_option(
      "MODEL", options.path,
      "A Hugging Face folder, a .gguf file or a llama2.c .bin (default: CROQUIS_MODEL, else the bundled model)");
  if (positional_required) model->required();
  command.add_option("--tokenizer", options.tokenizer, "Tokenizer file or folder, for models that carry none");
  command.add_option("--dtype", options.dtype, "Matrix products in f32 or bf16; auto: bf16 where the machine has it")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str();
}

Result<std::unique_ptr<model::Model>> LoadModel(const ModelOptions& options, Executor& executor) {
  using Dtype = model::LoadOptions::Dtype;
  CROQUIS_TRY(const std::string path, ModelPath(options.path));
  model::LoadOptions load;
  load.tokenizer = options.tokenizer;
  load.dtype = options.dtype == "f32" ? Dtype::kF32 : options.dtype == "bf16" ? Dtype::kBf16 : Dtype::kAuto;
  return model::Model::Load(path, executor, load);
}

Result<const model::Tokenizer*> NeedTokenizer(const model::Model& model) {
  if (model.tokenizer() != nullptr) return model.tokenizer();
  return NotFound("the model " + model.config().name + " carries no tokenizer; name one with --tokenizer FILE");
}

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  action.sa_flags = SA_RESETHAND;  // a second one ends the process
  ::sigaction(SIGINT, &action, nullptr);
}

bool Interrupted() { return interrupted != 0; }
Error InterruptedError() { return Internal("interrupted"); }

void PrintRows(const Common& common, std::string_view command, int threads, const std::vector<Column>& columns,
               const Json& rows, const Json& extra) {
  if (common.json) {
    Json o = Envelope(command, threads, rows);
    for (const auto& [key, value] : extra.items()) o[key] = value;
    std::cout << o.dump(1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    std::cout << FormatTable(columns, rows);
  }
  std::cout.flush();
}

void Note(const std::string& text) { std::cerr << "croquis: note: " << text << "\n"; }

}  // namespace croquis::apps
