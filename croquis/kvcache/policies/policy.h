// Eviction policies: what is kept of the tokens that have left the ring when not all of them are.
//
// A policy is immutable and shared; all that changes lies in a PolicyState, plain bytes whose sizes follow from the
// number of tokens that have left the ring. So copies, snapshots and the report are the same code for every policy.
// Deletion is irreversible: Truncate reaches back into the ring only. Never a default.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/memory.h"
#include "croquis/base/result.h"
#include "croquis/base/rng.h"
#include "croquis/base/spec.h"
#include "croquis/kvcache/cache.h"
#include "croquis/kvcache/policies/kept.h"

namespace croquis::kvcache {

// A run of items of one kind: rows of keys, a column of numbers.
struct StatePart {
  enum class Holds : uint8_t { kKeys, kValues, kTables };
  int64_t item_bytes = 0, items = 0;
  Holds holds = Holds::kTables;
  int64_t bytes() const { return (item_bytes * items + 63) / 64 * 64; }
};

// The parts of a state, in order; the header comes before them.
struct StateLayout {
  static constexpr size_t kMaxParts = 8;
  std::array<StatePart, kMaxParts> parts{};
  size_t count = 0;

  void Add(StatePart::Holds holds, int64_t item_bytes, int64_t items) { parts[count++] = {item_bytes, items, holds}; }
  int64_t bytes() const;
  int64_t bytes(StatePart::Holds holds) const;  // the header counts as tables
};

// What is kept of one head. Zero-filled where nothing was written.
class PolicyState {
 public:
  struct Header {
    int64_t left = 0;       // tokens that have left the ring
    int64_t rows[2] = {};   // in use; their meaning is the policy's
    double number[5] = {};  // the policy's
  };
  static_assert(sizeof(Header) == 64);

  PolicyState() = default;
  explicit PolicyState(const StateLayout& layout);
  PolicyState(const PolicyState& other);
  PolicyState& operator=(const PolicyState& other);
  PolicyState(PolicyState&&) noexcept = default;
  PolicyState& operator=(PolicyState&&) noexcept = default;
  ~PolicyState() = default;

  Header& header() { return *reinterpret_cast<Header*>(data_.data()); }
  const Header& header() const { return *reinterpret_cast<const Header*>(data_.data()); }
  template <class T>
  T* Part(size_t i) {
    return reinterpret_cast<T*>(data_.data() + offset_[i]);
  }
  template <class T>
  const T* Part(size_t i) const {
    return reinterpret_cast<const T*>(data_.data() + offset_[i]);
  }
  const StateLayout& layout() const { return layout_; }
  std::span<std::byte> bytes() { return {data_.data(), data_.size()}; }
  std::span<const std::byte> bytes() const { return {data_.data(), data_.size()}; }
  // The header and the first `parts` parts.
  std::span<const std::byte> First(size_t parts) const {
    return bytes().first(parts < layout_.count ? size_t(offset_[parts]) : data_.size());
  }
  // Whether all numbers of part i, rows of f16, are finite.
  bool Finite(size_t i) const;
  // Moves to another layout of the same parts: each keeps its first items, new ones are zeros.
  void Resize(const StateLayout& layout);

 private:
  Buffer data_;
  StateLayout layout_;
  std::array<int64_t, StateLayout::kMaxParts> offset_{};
};

inline constexpr int64_t kPolicyRun = 16;  // tokens that leave the ring together
// With Sees::kMass: the part that holds what the ring's tokens received, [ring slots] floats, oldest first.
inline constexpr size_t kRingMassPart = 0;

// Tokens that leave the ring.
struct PolicyRun {
  const std::byte *k = nullptr, *v = nullptr;  // [kPolicyRun, head_dim] f16
  const float* mass = nullptr;                 // [kPolicyRun] attention received so far; null without Sees::kMass
  int64_t position = 0;                        // of the first
  uint64_t head = 0;                           // layer * kv_heads + head: names the random stream
};

struct PolicyRequest {
  Spec spec;  // completed
  int64_t head_dim = 0, sinks = 0, ring = 0, capacity = 0;
  RopeInfo rope;
  uint64_t seed = 0;
};

class Policy {
 public:
  explicit Policy(const PolicyRequest& request) : method_(ToString(request.spec)) {}
  virtual ~Policy() = default;
  Policy(const Policy&) = delete;
  Policy& operator=(const Policy&) = delete;

  // With all defaults: "window:memory=50,slots=0".
  std::string_view Method() const { return method_; }
  // What attention has to report: kMass takes a second pass over the logits.
  virtual Sees Observes() const { return Sees::kNothing; }
  // The first parts of the state: all that Observe writes to.
  virtual size_t ObservedParts() const { return 0; }
  // The state's parts once `left` tokens have left the ring: what is allocated. Never shrinks as `left` grows.
  virtual StateLayout Layout(int64_t left) const = 0;
  // Takes in what one call of attention saw, before the call's tokens are taken in.
  virtual void Observe(const Observation&, PolicyState&) const {}
  // Takes in a run; the state has the layout for the tokens before it.
  virtual void Absorb(const PolicyRun& run, PolicyState& state) const = 0;
  virtual KeptView View(const PolicyState& state) const = 0;
  // Whether bytes from a file are a state that Absorb can go on from. The size, Header::left and that rows of keys and
  // values are finite are checked already.
  virtual bool Valid(const PolicyState& state) const = 0;

 private:
  std::string method_;
};

struct PolicyInfo {
  std::string_view name, summary, paper;
  std::span<const ParamInfo> params;
  // Errors: sizes that leave no room, what the method cannot do with this model.
  Result<std::unique_ptr<const Policy>> (*make)(const PolicyRequest& request);
};

// All policies, in the order of listings.
std::span<const PolicyInfo* const> Policies();
// The policy that a method string names, or null: "subgen:memory=50" -> subgen.
const PolicyInfo* FindPolicy(std::string_view text);
// "subgen:memory=50" with defaults filled in, checked.
Result<Spec> ResolvePolicy(std::string_view text);
Result<std::unique_ptr<const Policy>> MakePolicy(std::string_view text, PolicyRequest request);

// ---- what policies share ----

// memory, slots: how much may be kept.
inline constexpr ParamInfo kMemoryParam = {
    "memory", "50", 1, 100, {}, "per cent of what an f16 cache of the same tokens takes, everything counted"};
inline constexpr ParamInfo kSlotsParam = {
    "slots", "0", 0, 1 << 24, {}, "tokens' worth of f16 memory a head, whatever the length; 0: as memory says"};
inline constexpr ParamInfo kRecentParam = {"recent", "32", 0,
                                           1 << 20,  {},   "most recent tokens kept exactly (never more than --ring)"};

// Turns memory and slots into rows. A head's sinks and ring are part of what they allow.
class Budget {
 public:
  // Fewest rows kept: in contexts so short that this exceeds the memory asked for, nothing is lost by it.
  static constexpr int64_t kLeast = 64;

  explicit Budget(const PolicyRequest& request);
  // memory=100: every token is kept and nothing is noted about it.
  bool keeps_all() const { return memory_ == 100 && slots_ == 0; }
  // Bytes that what is kept of `left` tokens may take; below 0 where sinks and ring take more than all.
  int64_t Bytes(int64_t left) const;
  // Rows of item_bytes each, beside `fixed` bytes: a multiple of 16, at least kLeast, at most left.
  int64_t Rows(int64_t left, int64_t item_bytes, int64_t fixed) const;
  // Errors: slots that the sinks, the ring and kLeast rows exceed.
  Status Check(const PolicyRequest& request, int64_t item_bytes, int64_t fixed) const;
  // Tokens' worth of memory at `left`, sinks and ring included.
  int64_t Tokens(int64_t left) const;

 private:
  int64_t memory_, slots_, row_bytes_;
  int64_t exact_;  // tokens outside of what is kept, at least
  int64_t taken_;  // tokens that sinks and ring have room for
};

}  // namespace croquis::kvcache
