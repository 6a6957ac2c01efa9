// The KV cache of one sequence: sinks and a recent ring in 16 bits, everything older in coded pages.
//
// Per layer and kv head, tokens are kept as
//   [0, sinks)                 exact, in the ring's type
//   [sinks, encoded)           pages of 128 tokens, keys and values by their own codecs
//   [encoded, length)          the ring: exact, at least `ring` most recent tokens
// A run of tokens (16, or 32 where a codec of the layer needs it) is encoded when it leaves the ring. All in
// the ring's type: f16, or bf16 / f32 when the key codec is that type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/layer_heads.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"
#include "croquis/codecs/codec.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::kvcache {

// The codecs of one head.
struct KvPair {
  std::string key = "eden:bits=4", value = "eden:bits=4";
  // A policy that evicts, such as "subgen:memory=50"; key and value are f16 then. "": every token is kept.
  std::string evict = {};
  bool operator==(const KvPair&) const = default;
};

// Which codecs where. Later overrides win.
struct KvPolicy {
  KvPair base;
  struct Override {
    LayerHeads at;  // layers and kv heads
    KvPair pair;
  };
  std::vector<Override> overrides;
  std::string text;  // as the user wrote it; the `kv` column of tables

  KvPair At(int64_t layer, int64_t head) const;
};

// "eden:bits=4" (both), "k=eden:bits=4,v=eden:bits=3". `layers` entries: "0-1=f16", "3=k=int8,v=eden:bits=4",
// "0-3/1=f16" (layers 0 to 3, kv head 1). An eviction policy ("h2o:memory=50") stands for both sides, and for all heads
// of a layer.
Result<KvPolicy> ParseKvPolicy(std::string_view kv, std::span<const std::string> layers = {});

// How the model rotates keys, needed to remove a common part exactly. Empty inv_freq: no RoPE (mean removal only).
struct RopeInfo {
  std::vector<double> inv_freq;  // angle per position of each pair, head_dim / 2 of them (fewer: partial rotary)
  bool interleaved = false;      // pairs (2i, 2i+1); otherwise (i, i + n)
};

struct CacheConfig {
  int64_t layers = 0, kv_heads = 0, head_dim = 0;
  int64_t capacity = 0;  // most tokens it will ever hold; reserved as address space, taken as used
  int64_t sinks = 4, ring = 128;
  KvPolicy policy;
  RopeInfo rope;
  uint64_t seed = 0;
  uint64_t model_id = 0;  // hash of the model's configuration and weights' names; a snapshot of another is refused
};

// Bytes as allocated, by what they hold. total() is what the cache has taken from the system.
struct Report {
  int64_t tokens = 0;
  int64_t key_pages = 0, value_pages = 0;  // bytes
  int64_t ring = 0, sinks = 0;             // bytes, keys and values
  int64_t tables = 0;                      // common parts, their rotation table, page tables and page headers
  int64_t total() const { return key_pages + value_pages + ring + sinks + tables; }
  int64_t f16_bytes = 0;                // what a plain 16-bit cache of the same tokens takes
  double bits_per_number = 0;           // 8 * total / numbers held
  double key_bits = 0, value_bits = 0;  // stored bits of a page's numbers, mean over heads
  std::vector<std::string> kernels;     // "k eden:bits=4,...: avx512-vnni, fine (8 heads)", one line a distinct codec
  bool all_fast = true;                 // false when a head runs on a generic path
  int64_t centered_heads = 0, centered_pairs = 0;
};

// One sequence's cache. Not thread-safe for writing; reads between writes may come from any thread.
// The API below is what the layers above use; what attention needs of the inside is in layer_view.h.
class KvCache {
 public:
  // Errors: unknown methods, head sizes a codec does not take, sizes that do not fit memory.
  static Result<std::unique_ptr<KvCache>> Make(const CacheConfig& config);
  ~KvCache();

  const CacheConfig& config() const;
  int64_t length() const;  // committed tokens; with edits, slots in use, deleted tokens' included

  // Appends k, v [T, kv_heads * head_dim] (after RoPE) to one layer at positions length() .. length() + T. The
  // tokens count once Commit(T) is called after the last layer. Errors: capacity; kNumeric for NaN, infinite or (for
  // f16) larger than 65504, with the layer and position in the message; nothing is appended then.
  Status Append(int64_t layer, MatView<const float> k, MatView<const float> v);
  void Commit(int64_t tokens);
  // Forgets what was appended since the last Commit.
  void Rollback();
  // Keeps the first `length` tokens (of an edited cache by deleting the others). Tokens that come back out of a page
  // into the ring keep their decoded values.
  // Errors: a length above length(); with an eviction policy, one that reaches beyond the ring (0 is always possible).
  Status Truncate(int64_t length);
  // ---- edits (Positional Integrity Encoding, arXiv 2407.03157; edit_map.h) ----
  // Tokens may be deleted and inserted anywhere without touching what is stored of the others: they keep their keys and
  // values, which still reflect the text they were computed in, and stand at their new positions exactly. Needs the
  // RoPE of the configuration. Deleted tokens keep their room and their place in the capacity.
  int64_t tokens() const;  // tokens that stand: length() less what was deleted
  bool edited() const;
  // Removes the tokens at positions [begin, end); those behind move forward.
  Status Delete(int64_t begin, int64_t end);
  // What is appended from now on goes before the token at `position` and sees what stands before it only; at each
  // Commit the tokens behind move back. position = tokens(): at the end again, as it is at first.
  Status InsertAt(int64_t position);

  // A copy that shares the full pages; each side may go on alone.
  std::unique_ptr<KvCache> Branch() const;

  // Versioned, checksummed, written to a temporary name in the same folder, synced and renamed. Restoring gives the
  // same bits. Load refuses files of another model, version or configuration, and corrupt ones, in words.
  Status Save(const std::string& path) const;
  static Result<std::unique_ptr<KvCache>> Load(const std::string& path, const CacheConfig& expected);
  // The same from bytes in memory (tests, fuzzing, other stores).
  static Result<std::unique_ptr<KvCache>> LoadFromMemory(std::span<const std::byte> bytes, const CacheConfig& expected);

  Report GetReport() const;
  // The formula that GetReport().total() equals for a cache of `tokens` tokens of this configuration.
  static Result<int64_t> BytesFor(const CacheConfig& config, int64_t tokens);

  struct Impl;
  Impl& impl() { return *impl_; }
  const Impl& impl() const { return *impl_; }

 private:
  explicit KvCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Bytes that the caches have taken from the system together: what branches share is counted once.
int64_t BytesTogether(std::span<const KvCache* const> caches);

}  // namespace croquis::kvcache
