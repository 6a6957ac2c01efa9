// A piece of softmax attention: the part of the answer that some set of keys contributes to one query row.
#pragma once

#include <cstdint>
#include <span>

namespace croquis::attention {

// For a set of keys with logits x_j and values v_j: m = max x_j, l = sum exp(x_j - m), a = sum exp(x_j - m) v_j.
// Natural log at this boundary. The empty piece is m = -infinity stand-in (kEmptyMax), l = 0, a = 0.
// Merge is associative and commutative up to rounding; the empty piece is its identity.
inline constexpr float kEmptyMax = -1e30f;

struct Partial {
  float m = kEmptyMax;
  float l = 0;
  std::span<float> a;  // not owned
};

// into := into merged with from; both have rows of the same width.
void Merge(const Partial& from, Partial& into);
// a / l into out (zeros when l = 0); returns the log-sum-exp m + ln l (kEmptyMax when empty).
float Finalize(const Partial& p, std::span<float> out);

}  // namespace croquis::attention
