// Encoding with AVX-512: packing of codes, Hadamard transform, nearest level, conversions of 16-bit floats.
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"

namespace croquis::simd::avx512 {
namespace {

__m512i Or(__m512i a, __m512i b) { return _mm512_or_si512(a, b); }

// The last `planes` lines of an atom that hold one bit of each code: bit `bit` of unit k to bit k.
void StoreBitLine(const __m512i* u, int bit, uint8_t* line) {
  __m512i out = _mm512_setzero_si512();
  CROQUIS_UNROLL for (int k = 0; k < 8; ++k) {
    const __mmask64 set = _mm512_test_epi8_mask(u[k], _mm512_set1_epi8(char(1 << bit)));
    out = Or(out, _mm512_maskz_set1_epi8(set, char(1 << k)));
  }
  _mm512_storeu_si512(line, out);
}
// Two lines with bits from..from+1 of the codes.
void StorePairLines(const __m512i* u, int from, uint8_t* lines) {
  const __m512i m3 = _mm512_set1_epi8(3);
  CROQUIS_UNROLL for (int l = 0; l < 2; ++l) {
    __m512i out = _mm512_setzero_si512();
    CROQUIS_UNROLL for (int j = 0; j < 4; ++j) {
      const __m512i pair = _mm512_and_si512(_mm512_srl_epi16(u[4 * l + j], _mm_cvtsi32_si128(from)), m3);
      out = Or(out, _mm512_sll_epi16(pair, _mm_cvtsi32_si128(2 * j)));
    }
    _mm512_storeu_si512(lines + 64 * l, out);
  }
}
void StoreNibbleLines(const __m512i* u, uint8_t* lines) {
  const __m512i m15 = _mm512_set1_epi8(15);
  CROQUIS_UNROLL for (int l = 0; l < 4; ++l) {
    _mm512_storeu_si512(lines + 64 * l, Select(m15, u[2 * l], _mm512_slli_epi16(u[2 * l + 1], 4)));
  }
}

// Eight units of byte codes to the lines of their atom.
void StoreAtom(const __m512i* u, int bits, uint8_t* out) {
  switch (bits) {
    case 1:
      return StoreBitLine(u, 0, out);
    case 2:
      return StorePairLines(u, 0, out);
    case 3: {
      const __m512i m3 = _mm512_set1_epi8(3), m4 = _mm512_set1_epi8(4);
      const auto two = [u](int k) { return Or(u[k], _mm512_slli_epi16(u[k + 1], 3)); };
      _mm512_storeu_si512(out, Or(two(0), _mm512_slli_epi16(_mm512_and_si512(u[6], m3), 6)));
      _mm512_storeu_si512(out + 64, Or(two(2), Or(_mm512_slli_epi16(_mm512_and_si512(u[6], m4), 4),
                                                  _mm512_slli_epi16(_mm512_and_si512(u[7], m4), 5))));
      _mm512_storeu_si512(out + 128, Or(two(4), _mm512_slli_epi16(_mm512_and_si512(u[7], m3), 6)));
      return;
    }
    case 8:
      for (int k = 0; k < 8; ++k) _mm512_storeu_si512(out + 64 * k, u[k]);
      return;
    default:
      StoreNibbleLines(u, out);
      if (bits == 5) StoreBitLine(u, 4, out + 256);
      if (bits >= 6) StorePairLines(u, 4, out + 256);
      if (bits == 7) StoreBitLine(u, 6, out + 384);
  }
}

__m512i FourRows(const uint8_t* p, int64_t stride) {
  const auto row = [=](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * stride)); };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(1), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(2)), row(3), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

constexpr int kLongest = 256;  // transform that stays in registers

// R registers of 16 numbers; stages 1, 2, 4, 8 within registers and then between them.
template <int R>
void FwhtRegisters(float* p) {
  __m512 x[R];
  CROQUIS_UNROLL for (int i = 0; i < R; ++i) {
    const __m512 one = _mm512_set1_ps(1.f);
    const auto signs = [one](__mmask16 negative) {
      return _mm512_mask_sub_ps(one, negative, _mm512_setzero_ps(), one);
    };
    __m512 v = _mm512_loadu_ps(p + 16 * i);
    v = _mm512_fmadd_ps(v, signs(0xAAAA), _mm512_permute_ps(v, 0xB1));
    v = _mm512_fmadd_ps(v, signs(0xCCCC), _mm512_permute_ps(v, 0x4E));
    v = _mm512_fmadd_ps(v, signs(0xF0F0), _mm512_shuffle_f32x4(v, v, 0xB1));
    x[i] = _mm512_fmadd_ps(v, signs(0xFF00), _mm512_shuffle_f32x4(v, v, 0x4E));
  }
  CROQUIS_UNROLL for (int h = 1; h < R; h *= 2) {
    CROQUIS_UNROLL for (int i = 0; i < R; ++i) {
      if ((i & h) != 0) continue;
      const __m512 a = x[i], b = x[i + h];
      x[i] = _mm512_add_ps(a, b);
      x[i + h] = _mm512_sub_ps(a, b);
    }
  }
  CROQUIS_UNROLL for (int i = 0; i < R; ++i) _mm512_storeu_ps(p + 16 * i, x[i]);
}

// Thresholds as a search tree of tables: `root` (sixteen, in order) settles the first four bits; each level below
// adds a bit with one look-up in twice as many. level[l] holds the even entries of what is left at its turn.
template <int kBits>
struct Search {
  static constexpr int kLower = kBits > 4 ? kBits - 4 : 0;
  __m512 root;
  __m512 level[kLower > 0 ? kLower : 1][kLower > 0 ? 1 << (kLower - 1) : 1];

  Search(const float* thresholds, int64_t n) {
    constexpr int kRegisters = kBits > 4 ? 1 << (kBits - 4) : 1;
    const __m512 top = _mm512_set1_ps(__builtin_inff());
    __m512 x[kRegisters];
    for (int i = 0; i < kRegisters; ++i) {
      const int64_t left = n - 16 * i;
      const auto mask = __mmask16(left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1 << left) - 1);
      x[i] = _mm512_mask_loadu_ps(top, mask, thresholds + 16 * i);
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int l = kLower - 1; l >= 0; --l) {
      for (int i = 0; i < 1 << l; ++i) {
        level[l][i] = _mm512_permutex2var_ps(x[2 * i], even, x[2 * i + 1]);
        x[i] = _mm512_permutex2var_ps(x[2 * i], odd, x[2 * i + 1]);
      }
    }
    root = x[0];
  }

  // Entry `index` of n * 16 in registers; bits of the index above the table are not looked at.
  template <int n>
  static __m512 LookUp(const __m512* table, __m512i index) {
    if constexpr (n == 1) return _mm512_permutexvar_ps(index, table[0]);
    if constexpr (n == 2) return _mm512_permutex2var_ps(table[0], index, table[1]);
    if constexpr (n > 2) {
      const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(8 * n));
      return _mm512_mask_blend_ps(upper, LookUp<n / 2>(table, index), LookUp<n / 2>(table + n / 2, index));
    }
    __builtin_unreachable();
  }

  __m512i Find(__m512 z) const {
    __m512i at = _mm512_setzero_si512();
    CROQUIS_UNROLL for (int step = 1 << (kBits < 4 ? kBits - 1 : 3); step >= 1; step /= 2) {
      const __m512i probe = _mm512_add_epi32(at, _mm512_set1_epi32(step - 1));
      const __mmask16 above = _mm512_cmp_ps_mask(z, _mm512_permutexvar_ps(probe, root), _CMP_GT_OQ);
      at = _mm512_mask_add_epi32(at, above, at, _mm512_set1_epi32(step));
    }
    Unroll<kLower>([&](auto l) __attribute__((always_inline)) {
      const __mmask16 above = _mm512_cmp_ps_mask(z, LookUp<1 << l.value>(level[l.value], at), _CMP_GT_OQ);
      at = _mm512_add_epi32(at, at);
      at = _mm512_mask_add_epi32(at, above, at, _mm512_set1_epi32(1));
    });
    return at;
  }
};

template <int kBits>
float NearestOf(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
                uint8_t* codes) {
  const Search<kBits> search(thresholds, n_thresholds);
  constexpr int kValues = kBits > 4 ? 1 << (kBits - 4) : 1;
  const auto have = __mmask16(kBits >= 4 ? 0xFFFF : (1 << (1 << kBits)) - 1);
  __m512 table[kValues], sum = _mm512_setzero_ps();
  CROQUIS_UNROLL for (int i = 0; i < kValues; ++i) {
    const int64_t left = n_thresholds + 1 - 16 * i;
    const auto mask = __mmask16(left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1 << left) - 1);
    table[i] = _mm512_maskz_loadu_ps(mask & have, value + 16 * i);
  }
  for (int64_t i = 0; i < n; i += 16) {
    const auto lanes = __mmask16(n - i >= 16 ? 0xFFFF : (1 << (n - i)) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(lanes, z + i);
    const __m512i code = search.Find(x);
    const __m512 v = Search<kBits>::template LookUp<kValues>(table, code);
    sum = _mm512_mask3_fmadd_ps(x, v, sum, lanes);
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, lanes, code);
  }
  return TreeSum(sum);
}

__mmask16 Tail16(int64_t left) { return __mmask16(left >= 16 ? 0xFFFF : (1 << left) - 1); }

}  // namespace

void PackKeys(const PageLayout& layout, const uint8_t* codes, int64_t block, std::byte* page) {
  const int64_t dim = layout.dim, atom = 64 * layout.bits;
  auto* out = reinterpret_cast<uint8_t*>(page) + layout.runs * (layout.mins ? 512 : 256) + block * (dim / 32) * atom;
  for (int64_t i = 0; i < dim; i += 32, out += atom) {
    __m512i u[8];
    CROQUIS_UNROLL for (int h = 0; h < 2; ++h) {
      // x[j]: lane L holds 16 bytes of token 4L + j; a 4x4 transpose of dwords in each lane gives four units.
      __m512i x[4];
      CROQUIS_UNROLL for (int j = 0; j < 4; ++j) x[j] = FourRows(codes + j * dim + i + 16 * h, 4 * dim);
      const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
      const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
      u[4 * h] = _mm512_unpacklo_epi64(a, c);
      u[4 * h + 1] = _mm512_unpackhi_epi64(a, c);
      u[4 * h + 2] = _mm512_unpacklo_epi64(b, d);
      u[4 * h + 3] = _mm512_unpackhi_epi64(b, d);
    }
    StoreAtom(u, layout.bits, out);
  }
}

void PackValues(const PageLayout& layout, const uint8_t* codes, int64_t block, std::byte* page) {
  const int64_t dim = layout.dim, atom = 64 * layout.bits;
  auto* out = reinterpret_cast<uint8_t*>(page) + layout.runs * (layout.mins ? 512 : 256) + block * atom;
  // Lane 4i + t of a unit is byte i of token t, which FourRows leaves at 16 t + i.
  const __m512i iota = Iota8(), m3 = _mm512_set1_epi8(3), m15 = _mm512_set1_epi8(15);
  const __m512i order =
      Or(_mm512_slli_epi16(_mm512_and_si512(iota, m3), 4), _mm512_and_si512(_mm512_srli_epi16(iota, 2), m15));
  for (int64_t i = 0; i < dim; i += 32, out += 8 * atom) {
    __m512i u[8];
    CROQUIS_UNROLL for (int k = 0; k < 8; ++k) {
      u[k] = _mm512_permutexvar_epi8(order, FourRows(codes + k / 2 * 4 * dim + i + k % 2 * 16, dim));
    }
    StoreAtom(u, layout.bits, out);
  }
}

void Fwht(float* x, int64_t n) {
  switch (n) {
    case 16:
      return FwhtRegisters<1>(x);
    case 32:
      return FwhtRegisters<2>(x);
    case 64:
      return FwhtRegisters<4>(x);
    case 128:
      return FwhtRegisters<8>(x);
    case 256:
      return FwhtRegisters<16>(x);
    default:
      break;
  }
  int64_t h = 1;
  if (n > kLongest) {
    for (int64_t i = 0; i < n; i += kLongest) FwhtRegisters<kLongest / 16>(x + i);
    for (h = kLongest; h < n; h *= 2) {
      for (int64_t i = 0; i < n; i += 2 * h) {
        for (int64_t j = i; j < i + h; j += 16) {
          const __m512 a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + j + h);
          _mm512_storeu_ps(x + j, _mm512_add_ps(a, b));
          _mm512_storeu_ps(x + j + h, _mm512_sub_ps(a, b));
        }
      }
    }
    return;
  }
  for (; h < n; h *= 2) {  // fewer than 16 numbers
    for (int64_t i = 0; i < n; ++i) {
      if ((i & h) != 0) continue;
      const float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
  }
}

float Nearest(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
              uint8_t* codes) {
  static constexpr decltype(&NearestOf<1>) kOfBits[] = {NearestOf<1>, NearestOf<2>, NearestOf<3>, NearestOf<4>,
                                                        NearestOf<5>, NearestOf<6>, NearestOf<7>, NearestOf<8>};
  int bits = 1;
  while (bits < 8 && (1 << bits) - 1 < n_thresholds) ++bits;
  return kOfBits[bits - 1](z, n, thresholds, n_thresholds, value, codes);
}

void F16ToF32(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = Tail16(n - i);
    _mm512_mask_storeu_ps(y + i, m, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, x + i)));
  }
}

void F32ToF16(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = Tail16(n - i);
    _mm256_mask_storeu_epi16(y + i, m, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, x + i), _MM_FROUND_TO_NEAREST_INT));
  }
}

void Bf16ToF32(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = Tail16(n - i);
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x + i)), 16);
    _mm512_mask_storeu_epi32(y + i, m, wide);
  }
}

// vcvtneps2bf16 flushes subnormals to zero; this does not, and agrees with dtype.h on every input.
void F32ToBf16(const float* x, int64_t n, uint16_t* y) {
  const __m512i one = _mm512_set1_epi32(1);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 m = Tail16(n - i);
    const __m512i u = _mm512_maskz_loadu_epi32(m, x + i), high = _mm512_srli_epi32(u, 16);
    const __m512i bias = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(high, one));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
    const __m512 f = _mm512_castsi512_ps(u);
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
    _mm256_mask_storeu_epi16(y + i, m, _mm512_cvtepi32_epi16(r));
  }
}

}  // namespace croquis::simd::avx512
