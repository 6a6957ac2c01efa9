// LevAttention for decoding: keys come one at a time, memory stays bounded however many there are.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "croquis/attention/lev/leverage.h"
#include "croquis/base/result.h"

namespace croquis::attention::lev {

// Holds the first keys, the most recent ones, the universal set of all (StreamingLeverage) and, if asked for, a uniform
// sample of those let go. Softmax attention over what is held is exact but for the keys let go, none of which any query
// could have given a weight of eps under |x|^p; the sample stands for them with its weight.
// One kv head; not thread-safe.
class LevStream {
 public:
  struct Options {
    int64_t dim = 0, value_dim = 0;  // 1 .. 1024
    float scale = 1;
    double p = 2, eps = .05;  // p 1 .. 8, eps in (0, 1]
    int64_t top = 0;          // > 0: about that many keys instead of those above eps
    double ridge = kDefaultRidge;
    bool center = true;  // leverage about the mean of the keys, see PlanOptions
    int64_t window = 256, sinks = 4;
    int64_t samples = 0;  // even; 0: keys let go count as nothing
    uint64_t seed = 0;
  };
  // Errors: options out of range.
  static Result<LevStream> Make(const Options& options);
  LevStream(LevStream&&) noexcept;
  LevStream& operator=(LevStream&&) noexcept;
  ~LevStream();

  // The next key [dim] and value [value_dim]; finite. Keys are let go once in 64 calls.
  void Append(std::span<const float> key, std::span<const float> value);
  // out [value_dim] = attention of q [dim] over all keys so far; returns the log-sum-exp. Zeros and kEmptyMax before
  // the first key. est_error (may be null): the estimated relative error of `out` from the two halves of the sample, 0
  // while no key has been let go, -1 when there are such keys and no sample.
  float Attend(std::span<const float> q, std::span<float> out, double* est_error = nullptr);

  int64_t seen() const;
  // Numbers of the keys held exactly, ascending.
  std::span<const int64_t> Held() const;
  // Of everything: keys, values, the stream's own copies, its factor, the sample. By eps and with p = 2 at most
  // d / eps + 64 + window + sinks + samples keys are held, d being dim, plus one with centering.
  int64_t bytes() const;

 private:
  struct Impl;
  explicit LevStream(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace croquis::attention::lev
