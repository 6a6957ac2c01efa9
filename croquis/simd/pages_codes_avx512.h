// Codes of a page turned into byte levels in registers. Included by the AVX-512 and AMX files only; all is
// in an unnamed namespace, so that no copy built with wide instructions can be picked for a plain caller.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "croquis/simd/prefetch_inl.h"

namespace croquis::simd {
namespace {

constexpr int kTokens = 128;  // of a page
// Forms of the codes: 1..8 bits, where 8 means codes that are levels as they stand, and 9 is 8 bits with a look-up.
constexpr int kLooked8 = 9;
constexpr int BitsOf(int form) { return form == kLooked8 ? 8 : form; }

// vpermb looks at the low six bits of each index byte and nothing else, so tables that repeat over the bits of
// neighbouring codes save the AND of every unit and most of the shifts.
template <int F>
inline constexpr int kTables = F == 1             ? 6
                               : F == 2           ? 3
                               : F == 3 || F == 7 ? 2
                               : F == kLooked8    ? 4
                                                  : 1;
template <int F>
struct Tables {
  __m512i t[kTables<F>];
};

inline __m512i Iota8() {
  alignas(64) static constexpr uint8_t kIota[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                    48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  return _mm512_load_si512(kIota);
}

// True when 8-bit codes are their levels: level[c] = c - 128 or int8(c).
inline bool IsLinear(const int8_t* level) {
  const __m512i flip = _mm512_set1_epi8(level[0]);
  __mmask64 same = level[0] == 0 || level[0] == -128 ? ~__mmask64{0} : 0;
  for (int i = 0; i < 4; ++i) {
    const __m512i want = _mm512_xor_si512(_mm512_add_epi8(Iota8(), _mm512_set1_epi8(char(64 * i))), flip);
    same &= _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(level + 64 * i), want);
  }
  return same == ~__mmask64{0};
}
inline int FormOf(int bits, const int8_t* level) { return bits == 8 && !IsLinear(level) ? kLooked8 : bits; }

// level: 256 of them. offset: adds 128, which makes signed levels the unsigned operand of vpdpbusd.
template <int F>
inline Tables<F> MakeTables(const int8_t* level, bool offset) {
  const __m512i flip = _mm512_set1_epi8(offset ? char(0x80) : 0);
  Tables<F> t;
  if constexpr (F == 8) {
    t.t[0] = _mm512_xor_si512(flip, _mm512_set1_epi8(level[0]));
  } else if constexpr (F >= 7) {
    for (int i = 0; i < kTables<F>; ++i) t.t[i] = _mm512_xor_si512(flip, _mm512_loadu_si512(level + 64 * i));
  } else {
    const __m512i base = _mm512_xor_si512(flip, _mm512_loadu_si512(level)), mask = _mm512_set1_epi8((1 << F) - 1);
    for (int i = 0; i < kTables<F>; ++i) {
      const __m512i field = _mm512_and_si512(_mm512_srl_epi16(Iota8(), _mm_cvtsi32_si128(F * i)), mask);
      t.t[i] = _mm512_permutexvar_epi8(field, base);
    }
  }
  return t;
}

// Bits of `line` moved by `left` places, to the right when negative. Bits of the neighbouring byte that come along
// lie where no index looks, or are masked.
template <int left>
inline __m512i Shift(__m512i line) {
  if constexpr (left > 0) return _mm512_slli_epi16(line, left);
  if constexpr (left < 0) return _mm512_srli_epi16(line, -left);
  return line;
}
// Bits of a where mask has ones, else of b.
inline __m512i Select(__m512i mask, __m512i a, __m512i b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xCA); }

// Unit k of the atom at p, as byte levels.
template <int F, int k>
inline __m512i Unit(const uint8_t* p, const Tables<F>& t) {
  const auto line = [p](int l) { return _mm512_loadu_si512(p + 64 * l); };
  if constexpr (F == 1) {
    return k < 6 ? _mm512_permutexvar_epi8(line(0), t.t[k < 6 ? k : 0])
                 : _mm512_permutexvar_epi8(_mm512_srli_epi16(line(0), 6), t.t[k - 6 >= 0 ? k - 6 : 0]);
  } else if constexpr (F == 2) {
    return k % 4 == 3 ? _mm512_permutexvar_epi8(_mm512_srli_epi16(line(k / 4), 6), t.t[0])
                      : _mm512_permutexvar_epi8(line(k / 4), t.t[k % 4]);
  } else if constexpr (F == 3) {
    if constexpr (k < 6) return _mm512_permutexvar_epi8(line(k / 2), t.t[k % 2]);
    const __m512i low = _mm512_srli_epi16(line(k == 6 ? 0 : 2), 6), high = Shift<2 - k>(line(1));
    return _mm512_permutexvar_epi8(Select(_mm512_set1_epi8(3), low, high), t.t[0]);
  } else if constexpr (F <= 7) {
    const __m512i low = Shift < k % 2 ? -4 : 0 > (line(k / 2)), m15 = _mm512_set1_epi8(15);
    if constexpr (F == 4) return _mm512_permutexvar_epi8(low, t.t[0]);
    if constexpr (F == 5) return _mm512_permutexvar_epi8(Select(m15, low, Shift<4 - k>(line(4))), t.t[0]);
    const __m512i six = Select(m15, low, Shift<4 - 2 * (k % 4)>(line(4 + k / 4)));
    if constexpr (F == 6) return _mm512_permutexvar_epi8(six, t.t[0]);
    const __m512i seven = Select(_mm512_set1_epi8(64), Shift<6 - k>(line(6)), six);
    return _mm512_permutex2var_epi8(t.t[0], seven, t.t[1]);
  } else if constexpr (F == 8) {
    return _mm512_xor_si512(line(k), t.t[0]);
  } else {
    const __m512i x = line(k);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), _mm512_permutex2var_epi8(t.t[0], x, t.t[1]),
                                  _mm512_permutex2var_epi8(t.t[2], x, t.t[3]));
  }
}

// Loops over registers must disappear whatever the compiler thinks of it.
#define CROQUIS_UNROLL _Pragma("GCC unroll 32")

// f(Index<0>{}) .. f(Index<N-1>{}), where the number must be a constant for the callee.
template <int N>
struct Index {
  static constexpr int value = N;
};
template <int N, int I = 0, class F>
[[gnu::always_inline]] inline void Unroll(const F& f) {
  if constexpr (I < N) {
    f(Index<I>{});
    Unroll<N, I + 1>(f);
  }
}

inline __m512 LoadHalf(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512i Broadcast(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

// The sum of sixteen lanes, in the order of TreeSum (pages_internal.h).
inline float TreeSum(__m512 v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

}  // namespace
}  // namespace croquis::simd
