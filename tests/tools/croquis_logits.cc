// Runs a model over token ids and writes what it computed: the tool by which the peer tests compare us with other
// programs. Not installed.
//
// usage: croquis_logits MODEL [--dtype f32|bf16] [--kv SPEC] [--chunk N] [--threads N] [--decode N] [--generate N]
//                       [--out FILE] ID...
// The last --decode of the ids run one at a time. --out gets the logits of all ids as f32 [ids, vocab]. --generate
// prints N greedy ids after the given ones. One line of JSON tells what ran.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/kvcache/cache.h"
#include "croquis/model/model.h"

namespace {

using namespace croquis;  // NOLINT(google-build-using-namespace): a program of one file

struct Options {
  std::string model, kv = "f32", out;
  model::LoadOptions load;
  int64_t chunk = 256, threads = 1, decode = 0, generate = 0;
  std::vector<int32_t> ids;
};

Result<Options> Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a.rfind("--", 0) != 0) {
      if (o.model.empty())
        o.model = a;
      else
        o.ids.push_back(int32_t(std::strtol(a.c_str(), nullptr, 10)));
      continue;
    }
    if (i + 1 >= argc) return InvalidArgument(a + " wants a value");
    const std::string value = argv[++i];
    const int64_t number = std::strtoll(value.c_str(), nullptr, 10);
    if (a == "--dtype") {
      o.load.dtype = value == "f32" ? model::LoadOptions::Dtype::kF32 : model::LoadOptions::Dtype::kBf16;
    } else if (a == "--kv") {
      o.kv = value;
    } else if (a == "--out") {
      o.out = value;
    } else if (a == "--chunk") {
      o.chunk = number;
    } else if (a == "--threads") {
      o.threads = number;
    } else if (a == "--decode") {
      o.decode = number;
    } else if (a == "--generate") {
      o.generate = number;
    } else {
      return InvalidArgument("unknown option " + a);
    }
  }
  if (o.ids.empty()) return InvalidArgument("usage: croquis_logits MODEL [options] ID...");
  if (o.decode < 0 || o.decode >= int64_t(o.ids.size())) return InvalidArgument("--decode leaves no id for the prompt");
  return o;
}

Status Main(const Options& o) {
  Executor executor(static_cast<int>(o.threads));
  CROQUIS_TRY(auto m, model::Model::Load(o.model, executor, o.load));
  const int64_t n = int64_t(o.ids.size()), vocab = m->config().vocab;
  auto config = m->CacheTemplate();
  config.capacity = n + o.generate;
  CROQUIS_TRY(config.policy, kvcache::ParseKvPolicy(o.kv));
  CROQUIS_TRY(auto cache, kvcache::KvCache::Make(config));
  Matrix<float> logits(n, vocab);
  const int64_t prompt = n - o.decode;
  CROQUIS_CHECK_OK(
      m->Forward(executor, std::span(o.ids).first(size_t(prompt)), *cache, logits.View().Rows(0, prompt), o.chunk));
  for (int64_t t = prompt; t < n; ++t)
    CROQUIS_CHECK_OK(
        m->Forward(executor, std::span(o.ids).subspan(size_t(t), 1), *cache, logits.View().Rows(t, 1), o.chunk));
  if (!o.out.empty()) {
    FILE* f = std::fopen(o.out.c_str(), "wb");
    if (f == nullptr) return IoError("cannot write " + o.out);
    std::fwrite(logits.data(), sizeof(float), size_t(n * vocab), f);
    std::fclose(f);
  }
  std::printf("{\"compute\": \"%s\", \"layers\": %lld, \"vocab\": %lld, \"generated\": [",
              std::string(m->Compute()).c_str(), static_cast<long long>(m->config().layers),
              static_cast<long long>(vocab));
  const float* last = logits.Row(n - 1);
  Matrix<float> next(1, vocab);
  const auto start = std::chrono::steady_clock::now();
  for (int64_t g = 0; g < o.generate; ++g) {
    const int32_t id = int32_t(std::max_element(last, last + vocab) - last);
    std::printf("%s%d", g > 0 ? ", " : "", id);
    CROQUIS_CHECK_OK(m->Forward(executor, std::span(&id, 1), *cache, next.View()));
    last = next.data();
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("], \"ms_per_token\": %.4f}\n", o.generate > 0 ? seconds * 1e3 / double(o.generate) : 0.0);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const auto options = Parse(argc, argv);
  const Status status = options ? Main(*options) : Status(options.error());
  if (!status) std::fprintf(stderr, "croquis_logits: %s\n", status.error().message.c_str());
  return status ? 0 : 1;
}
