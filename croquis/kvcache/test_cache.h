// For tests: configurations, random rows, and a cache's whole state as bytes.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "croquis/base/rng.h"
#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/impl.h"

namespace croquis::kvcache::testing {

inline CacheConfig Config(const std::string& kv, const std::vector<std::string>& layers = {}) {
  CacheConfig c;
  c.layers = 2, c.kv_heads = 2, c.head_dim = 64, c.capacity = 2000, c.seed = 3, c.model_id = 0x1234;
  auto policy = ParseKvPolicy(kv, layers);
  EXPECT_TRUE(policy) << policy.error().message;
  if (policy) c.policy = *policy;
  for (int64_t i = 0; i < 32; ++i) c.rope.inv_freq.push_back(std::pow(10000.0, -double(i) / 32));
  return c;
}

inline std::unique_ptr<KvCache> MakeCache(const CacheConfig& config) {
  auto made = KvCache::Make(config);
  EXPECT_TRUE(made) << made.error().message;
  return made ? *std::move(made) : nullptr;
}

// Gaussian rows [tokens, kv_heads * head_dim] that depend on the absolute position alone. `common`: length of a vector
// that all un-rotated keys share.
inline Matrix<float> Rows(const CacheConfig& c, int64_t layer, bool keys, int64_t first, int64_t tokens,
                          float common = 0) {
  const Stream stream{uint64_t(2 * layer + (keys ? 1 : 0)), Purpose("kvcache.test")};
  const int64_t cols = c.kv_heads * c.head_dim, half = c.head_dim / 2;
  Matrix<float> m(std::max<int64_t>(1, tokens), cols);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < cols; ++i) m.Row(t)[i] = stream.Gaussian(uint64_t((first + t) * cols + i));
    if (!keys || common == 0) continue;
    for (int64_t h = 0; h < c.kv_heads; ++h)
      for (int64_t i = 0; i < half; ++i) {
        const Stream mu = stream.Sub(uint64_t(h));
        const double scale = double(common) / std::sqrt(double(c.head_dim));
        const double a = scale * double(mu.Gaussian(uint64_t(2 * i))),
                     b = scale * double(mu.Gaussian(uint64_t(2 * i + 1)));
        const double angle = c.rope.inv_freq[size_t(i)] * double(first + t);
        m.Row(t)[h * c.head_dim + i] += float(a * std::cos(angle) - b * std::sin(angle));
        m.Row(t)[h * c.head_dim + i + half] += float(a * std::sin(angle) + b * std::cos(angle));
      }
  }
  return m;
}

// Appends without committing.
inline void AppendAll(KvCache& cache, int64_t tokens, float common = 0) {
  const CacheConfig& c = cache.config();
  for (int64_t l = 0; l < c.layers; ++l) {
    const auto k = Rows(c, l, true, cache.length(), tokens, common), v = Rows(c, l, false, cache.length(), tokens);
    const Status s = cache.Append(l, k.View().Rows(0, tokens), v.View().Rows(0, tokens));
    EXPECT_TRUE(s) << s.error().message;
  }
}

inline void Fill(KvCache& cache, int64_t to, int64_t chunk = 50, float common = 0) {
  while (cache.length() < to) {
    const int64_t n = std::min(chunk, to - cache.length());
    AppendAll(cache, n, common);
    cache.Commit(n);
  }
}

inline std::string TempPath(const std::string& name) { return ::testing::TempDir() + "croquis_" + name; }

// A snapshot holds the whole state, so equal snapshots are equal states.
inline std::string State(const KvCache& cache) {
  if (cache.impl().Pending()) return State(*cache.Branch());
  char* text = nullptr;
  size_t size = 0;
  FILE* f = open_memstream(&text, &size);
  EXPECT_TRUE(WriteSnapshot(f, const_cast<KvCache&>(cache).impl()));
  std::fclose(f);
  std::string bytes(text, size);
  std::free(text);
  return bytes;
}

inline std::span<const std::byte> Bytes(const std::string& s) {
  return {reinterpret_cast<const std::byte*>(s.data()), s.size()};
}

}  // namespace croquis::kvcache::testing
