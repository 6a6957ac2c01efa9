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

// 2^x for -126 <= x < 127; V::Raise says what becomes of others. The polynomial is minimax in relative error with
// p(0) = 1 (8.3e-8 before rounding), so that 2^0 is exactly 1.
template <class V>
[[gnu::always_inline]] inline typename V::F Exp2(typename V::F x) {
  const typename V::F r = V::Fraction(x);
  typename V::F p = V::Set(0.0018671301659196615f);
  p = V::Fma(p, r, V::Set(0.009017029777169228f));
  p = V::Fma(p, r, V::Set(0.05579991266131401f));
  p = V::Fma(p, r, V::Set(0.24016444385051727f));
  p = V::Fma(p, r, V::Set(0.6931512951850891f));
  return V::Raise(V::Fma(p, r, V::Set(1.f)), x);
}

}  // namespace
}  // namespace croquis::simd
