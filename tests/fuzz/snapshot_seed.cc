// Writes the seed files of fuzz_snapshot: small caches of the configuration that the target loads.
// usage: fuzz_snapshot_seed FOLDER
#include <cstdio>
#include <string>

#include "croquis/base/rng.h"
#include "croquis/kvcache/cache.h"

int main(int argc, char** argv) {
  using namespace croquis;
  if (argc != 2) return std::printf("usage: fuzz_snapshot_seed FOLDER\n"), 2;
  for (int64_t tokens : {0, 5, 60, 200}) {
    kvcache::CacheConfig config;
    config.layers = config.kv_heads = 1;
    config.head_dim = 32;
    config.capacity = 512;
    config.sinks = 2;
    config.ring = 16;
    config.policy = *kvcache::ParseKvPolicy("eden:bits=2,center=none");
    auto cache = kvcache::KvCache::Make(config);
    if (!cache) return std::printf("%s\n", cache.error().message.c_str()), 1;
    const Stream random{1, Purpose("test.fuzz")};
    for (int64_t t = 0; t < tokens; ++t) {
      float row[32];
      for (int i = 0; i < 32; ++i) row[i] = random.Gaussian(uint64_t(t * 32 + i));
      if (!(*cache)->Append(0, {row, 1, 32}, {row, 1, 32})) return 1;
      (*cache)->Commit(1);
    }
    if (auto saved = (*cache)->Save(std::string(argv[1]) + "/tokens" + std::to_string(tokens)); !saved)
      return std::printf("%s\n", saved.error().message.c_str()), 1;
  }
  return 0;
}
