// What the code of all vector instruction sets shares. Included by vector_avx2.h and vector_avx512.h alone; all is in
// an unnamed namespace, so that each file keeps machine code of its own.
#pragma once

#include <immintrin.h>

namespace croquis::simd {
namespace {

// Results below the normal numbers are zeros for as long as this lives: weights of keys far below the maximum, and
// their parts, would be slow denormal numbers.
class FlushToZero {
 public:
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

 private:
  const unsigned before_;
};

// 2^r for r in [-1/2, 1/2]: minimax in relative error with p(0) = 1 (1e-7), so that 2^0 is exactly 1.
template <class V>
inline typename V::F Exp2OfFraction(typename V::F r) {
  typename V::F p = V::Set(0.001326472732307149f);
  p = V::Fma(p, r, V::Set(0.009671512991189957f));
  p = V::Fma(p, r, V::Set(0.05550733581185341f));
  p = V::Fma(p, r, V::Set(0.24022242426872253f));
  p = V::Fma(p, r, V::Set(0.6931470036506653f));
  return V::Fma(p, r, V::Set(1.f));
}

}  // namespace
}  // namespace croquis::simd
