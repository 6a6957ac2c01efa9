// Codecs: rows of head_dim numbers to bytes, and attention's two products computed on those bytes.
//
// A codec works on pages of 128 tokens of one kv head, keys or values. It is immutable after Make; every
// call is const, thread-safe and cannot fail. Queries and keys are treated differently on purpose (the
// asymmetric estimator): a query is prepared once at high precision and scored against many pages.
// No call writes a decoded copy of a page; a codec without integer kernels decodes a tile of at most 16 rows
// at a time into scratch, and says so in Kernel().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "croquis/base/result.h"
#include "croquis/base/spec.h"
#include "croquis/base/view.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/upcoming.h"

namespace croquis::codecs {

inline constexpr int64_t kPageTokens = 128;

enum class Role : uint8_t { kKey, kValue };

// Whether the cache removes the common part of the keys before they reach the codec and adds its exact
// contribution back to the logits (spec kv-cache 0.4). kAuto: only on heads where it pays.
enum class Center : uint8_t { kNone, kAuto, kRope };

class Codec {
 public:
  virtual ~Codec() = default;

  virtual int64_t HeadDim() const noexcept = 0;
  virtual Role GetRole() const noexcept = 0;
  // The full method string, with defaults: "eden:bits=4,rounds=1,center=auto,precision=auto".
  virtual std::string_view Method() const noexcept = 0;
  // Bytes of one page (multiple of 64). Stored bits per number = 8 * PageBytes / (128 * HeadDim).
  virtual size_t PageBytes() const noexcept = 0;
  double BitsPerNumber() const noexcept { return 8.0 * double(PageBytes()) / double(kPageTokens * HeadDim()); }
  // Tokens that are encoded together: Encode takes a multiple of it, starting at a multiple of it. Divides 128.
  virtual int64_t Granularity() const noexcept = 0;
  // What computes on the codes on this machine, e.g. "avx512-vnni, fine" or "generic (no integer kernels)".
  virtual std::string_view Kernel() const noexcept = 0;
  // True where scores and sums are computed on the codes by vector kernels; false for the generic path.
  virtual bool HasFastPath() const noexcept = 0;
  // What a page consists of when it is plain rows, [128][HeadDim], which may be read without the codec.
  virtual std::optional<simd::RowType> PlainRows() const noexcept { return std::nullopt; }
  virtual Center GetCenter() const noexcept { return Center::kNone; }

  // Encodes x [rows, HeadDim] as tokens first .. first + rows of the page; both multiples of Granularity.
  // Slots never written hold zeros (pages start zero-filled).
  virtual void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept = 0;
  // Reference path: x [rows, HeadDim] = what is stored at tokens first .. first + rows (any first and rows).
  virtual void Decode(const std::byte* page, int64_t first, MatView<float> x) const noexcept = 0;

  // ---- keys ----
  virtual size_t QueryBytes(int64_t rows) const noexcept = 0;
  // q [rows, HeadDim]: query rows that share this kv head. logits below are scale * <q, k>.
  virtual void Prepare(MatView<const float> q, float scale, std::byte* query) const noexcept = 0;
  // logits[row * 128 + t] for all 128 slots; those of slots never written are unspecified but finite.
  // `next`: what the caller reads later, of which this call prefetches its share.
  virtual void Score(const std::byte* page, const std::byte* query, int64_t rows, const simd::Upcoming& next,
                     float* logits, std::byte* scratch) const noexcept = 0;

  // ---- values ----
  // Width of an accumulator row (HeadDim or its padded size).
  virtual int64_t AccDim() const noexcept = 0;
  // acc[row] += p_scale[row] * sum_t p[row * 128 + t] * v[t], in the codec's own basis; p >= 0, 0 where unused.
  virtual void Accumulate(const std::byte* page, const float* p, const float* p_scale, int64_t rows,
                          const simd::Upcoming& next, MatView<float> acc, std::byte* scratch) const noexcept = 0;
  // out [rows, HeadDim] = acc [rows, AccDim] brought to the model's basis (inverse rotation). Linear, once per row.
  virtual void Finish(MatView<const float> acc, MatView<float> out) const noexcept = 0;

  // Scratch for Score and Accumulate of up to `rows` rows, 64-byte aligned by the caller; one a thread.
  virtual size_t ScratchBytes(int64_t rows) const noexcept = 0;
};

// What a method promises at a head_dim; the conformance test checks each line for every registered method.
struct Contract {
  double bits_per_number;  // as stored, everything counted
  double rel_mse;          // E|x - x^|^2 / |x|^2 of unit Gaussian rows; measured within 2 % + 1e-7
  bool unbiased;           // E<x, x^> = |x|^2
};

struct CodecRequest {
  int64_t head_dim = 0;
  Role role = Role::kKey;
  Spec spec;          // completed: every parameter present and in range
  uint64_t seed = 0;  // of rotations and projections; recorded in snapshots
};

struct MethodInfo {
  std::string_view name;
  std::string_view summary;  // one line for listings
  std::string_view paper;    // source, e.g. "arXiv 2406.03482"
  std::span<const ParamInfo> params;
  // Errors: head sizes the method does not take, in words that say which it takes.
  Result<Contract> (*contract)(int64_t head_dim, Role role, const Spec& spec);
  Result<std::unique_ptr<const Codec>> (*make)(const CodecRequest& request);
};

// All methods, in the order of the registry (METHODS in CMakeLists.txt).
std::span<const MethodInfo* const> Methods();
// The method of that name, or an error that lists those there are.
Result<const MethodInfo*> FindMethod(std::string_view name);
// "eden:bits=4" with defaults filled in, checked.
Result<Spec> ResolveSpec(std::string_view text);
// Makes a codec. head_dim from 8 to 256; a method may take fewer.
Result<std::unique_ptr<const Codec>> Make(std::string_view text, int64_t head_dim, Role role, uint64_t seed = 0);

}  // namespace croquis::codecs
