// The one door to oneDNN: products of activations with weights that are packed once.
//
// oneDNN as Debian builds it parallelises with OpenMP. Here each call into it runs on one thread (OpenMP's thread count
// is set to one around it), and the work is cut over the columns of the result into slices that depend on the shape
// only. So the Executor is the only pool of threads, and results do not depend on how many it has.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/result.h"
#include "croquis/base/view.h"

namespace croquis::linalg {

enum class WeightType : uint8_t { kF32, kBf16 };

// Whether oneDNN multiplies bf16 with instructions for it on this machine (AVX-512 BF16 or AMX).
bool HasFastBf16();
// The instruction set oneDNN uses for weights of a type: "AMX", "AVX-512 BF16", "AVX-512", "AVX2", ...
std::string Isa(WeightType type);

// A weight matrix W [out, in], with an optional bias [out], packed for products x W^T.
//
// Layout: panels of 64 rows of W. A panel is [in / 2][64][2] for bf16 and [in][64] for f32, `in` padded to a multiple
// of 32 with zeros and `out` to 64. These are oneDNN's BA16a64b2a and BA16a64b, asked for by name: chosen with
// format_tag::any they came out the same, and known beforehand they are written straight from the file.
class PackedLinear {
 public:
  PackedLinear() = default;
  // All zeros. The caller checks sizes first (CheckMemory of Bytes(...)).
  PackedLinear(int64_t out, int64_t in, WeightType type);

  // Bytes that the packed form takes, bias not counted; -1 when that does not fit an int64_t.
  static int64_t Bytes(int64_t out, int64_t in, WeightType type);

  // Rows row .. row + w.rows of W, rounded to the weight type. Different rows may be set from different threads.
  void SetRows(int64_t row, MatView<const float> w);
  // Rows row .. row + b.size() of the bias; rows never set have none.
  void SetBias(int64_t row, std::span<const float> b);

  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  WeightType type() const { return type_; }
  int64_t bytes() const { return int64_t(weights_.size() + bias_.size() * sizeof(float)); }

 private:
  friend class Multiplier;
  const std::byte* Panel(int64_t panel) const { return weights_.data() + panel * panel_bytes_; }

  int64_t out_ = 0, in_ = 0, padded_in_ = 0, panel_bytes_ = 0;
  WeightType type_ = WeightType::kF32;
  Buffer weights_;
  std::vector<float> bias_;
};

// Runs products: keeps oneDNN's primitives by shape, and scratch. Not thread-safe; one for each caller.
class Multiplier {
 public:
  // Room for matrices with at most `max_in` inputs.
  explicit Multiplier(int64_t max_in);
  ~Multiplier();

  // y = x W^T + bias. x: [M, in], y: [M, out], any row strides, not overlapping. With bf16 weights x is rounded to
  // bf16; sums are f32. Once a shape (M up to rounding) has been seen nothing is allocated but what oneDNN's execute
  // itself takes and gives back (a map of its arguments).
  // Errors: a primitive that oneDNN cannot make or run (kInternal).
  Status Apply(Executor& executor, const PackedLinear& w, MatView<const float> x, MatView<float> y);

  // oneDNN's names of what ran so far: "brg:avx512_core_amx_bf16".
  std::vector<std::string> Implementations() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace croquis::linalg
