// Cache snapshots: what loads must work as a cache.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "croquis/kvcache/cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace croquis;
  kvcache::CacheConfig config;
  config.layers = 1;
  config.kv_heads = 1;
  config.head_dim = 32;
  config.capacity = 512;
  config.sinks = 2;
  config.ring = 16;
  config.policy = *kvcache::ParseKvPolicy("eden:bits=2,center=none");
  auto cache = kvcache::KvCache::LoadFromMemory(
      std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size), config);
  if (!cache) return 0;
  const float row[32] = {1, 2, 3};
  if ((*cache)->length() < config.capacity && (*cache)->Append(0, {row, 1, 32}, {row, 1, 32})) (*cache)->Commit(1);
  (void)(*cache)->GetReport();
  return 0;
}
