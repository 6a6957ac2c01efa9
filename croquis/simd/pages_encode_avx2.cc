// Encoding with AVX2: packing of codes, Hadamard transform, nearest level, conversions of 16-bit floats.
#include <immintrin.h>

#include "croquis/simd/pages_avx2.h"

namespace croquis::simd::avx2 {
namespace {

__m256i Load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
void Store(uint8_t* p, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
__m256i Or(__m256i a, __m256i b) { return _mm256_or_si256(a, b); }
__m256i And(__m256i a, int mask) { return _mm256_and_si256(a, _mm256_set1_epi8(char(mask))); }
// Shifts within 16 bits: callers mask what crosses from byte to byte, or know that nothing does.
__m256i Left(__m256i x, int n) { return _mm256_sll_epi16(x, _mm_cvtsi32_si128(n)); }
__m256i Right(__m256i x, int n) { return _mm256_srl_epi16(x, _mm_cvtsi32_si128(n)); }

// Bit `bit` of unit k to bit k of the line.
__m256i BitLine(const __m256i* u, int bit) {
  __m256i out = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) out = Or(out, Left(And(Right(u[k], bit), 1), k));
  return out;
}
// Bits from..from+1 of units 4l..4l+3 to one line.
__m256i PairLine(const __m256i* u, int from, int l) {
  __m256i out = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) out = Or(out, Left(And(Right(u[4 * l + j], from), 3), 2 * j));
  return out;
}

// One half (32 lanes) of eight units of byte codes, to that half of the lines of their atom.
void StoreHalfAtom(const __m256i* u, int bits, uint8_t* out) {
  switch (bits) {
    case 1:
      return Store(out, BitLine(u, 0));
    case 2:
      for (int l = 0; l < 2; ++l) Store(out + 64 * l, PairLine(u, 0, l));
      return;
    case 3: {
      const auto two = [u](int k) { return Or(u[k], Left(u[k + 1], 3)); };
      Store(out, Or(two(0), Left(And(u[6], 3), 6)));
      Store(out + 64, Or(two(2), Or(Left(And(u[6], 4), 4), Left(And(u[7], 4), 5))));
      Store(out + 128, Or(two(4), Left(And(u[7], 3), 6)));
      return;
    }
    case 8:
      for (int k = 0; k < 8; ++k) Store(out + 64 * k, u[k]);
      return;
    default:
      for (int l = 0; l < 4; ++l) Store(out + 64 * l, Or(And(u[2 * l], 15), Left(And(u[2 * l + 1], 15), 4)));
      if (bits == 5) Store(out + 256, BitLine(u, 4));
      for (int l = 0; bits >= 6 && l < 2; ++l) Store(out + 256 + 64 * l, PairLine(u, 4, l));
      if (bits == 7) Store(out + 384, BitLine(u, 6));
  }
}

// Eight rows of eight dwords, transposed in place.
void Transpose(__m256i* x) {
  __m256i a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    x[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
}

// 8 dims of 4 tokens, [token][dim] to [dim][token].
__m256i Quads(const uint8_t* p, int64_t stride) {
  const auto row = [=](int i) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i * stride)); };
  const __m128i a = _mm_unpacklo_epi8(row(0), row(1)), b = _mm_unpacklo_epi8(row(2), row(3));
  return _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
}

// Partial sums 0..7 and 8..15 to one, in the order of TreeSum in pages_internal.h.
float TreeSum(const float* part) {
  const __m256 eight = _mm256_add_ps(_mm256_loadu_ps(part), _mm256_loadu_ps(part + 8));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// Eight codes of 0..255 in 32 bits to eight bytes.
void StoreCodes(__m256i code, uint8_t* out) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}

// Thresholds and values of one call; kBits is that of the codes.
template <int kBits>
struct Search {
  alignas(32) float threshold[256];  // filled up with infinity
  alignas(32) float value[256];

  Search(const float* thresholds, int64_t n, const float* values) {
    for (int64_t i = 0; i < (1 << kBits); ++i) {
      threshold[i] = i < n ? thresholds[i] : __builtin_inff();
      value[i] = values[i];
    }
  }

  // The number of thresholds below each z: counted up to 3 bits, found by halving above, the first three steps in a
  // table of eight that one register holds.
  __m256i Find(__m256 z) const {
    __m256i at = _mm256_setzero_si256();
    if constexpr (kBits <= 3) {
#pragma GCC unroll 8
      for (int i = 0; i < (1 << kBits) - 1; ++i) {
        const __m256 above = _mm256_cmp_ps(z, _mm256_set1_ps(threshold[i]), _CMP_GT_OQ);
        at = _mm256_sub_epi32(at, _mm256_castps_si256(above));
      }
    } else {
      constexpr int k = 1 << (kBits - 3);  // every k-th threshold is in the first table
      const __m256 coarse =
          _mm256_setr_ps(threshold[k - 1], threshold[2 * k - 1], threshold[3 * k - 1], threshold[4 * k - 1],
                         threshold[5 * k - 1], threshold[6 * k - 1], threshold[7 * k - 1], 0);
#pragma GCC unroll 3
      for (int step = 4; step >= 1; step /= 2) {
        const __m256i probe = _mm256_add_epi32(at, _mm256_set1_epi32(step - 1));
        at = Advance(at, z, _mm256_permutevar8x32_ps(coarse, probe), step);
      }
      if constexpr (kBits == 4) {  // what is left are the eight even thresholds
        const __m256 even = _mm256_setr_ps(threshold[0], threshold[2], threshold[4], threshold[6], threshold[8],
                                           threshold[10], threshold[12], threshold[14]);
        return Advance(_mm256_slli_epi32(at, 1), z, _mm256_permutevar8x32_ps(even, at), 1);
      }
      at = _mm256_slli_epi32(at, kBits - 3);
#pragma GCC unroll 5
      for (int step = k / 2; step >= 1; step /= 2) {
        at = Advance(at, z, _mm256_i32gather_ps(threshold + step - 1, at, 4), step);
      }
    }
    return at;
  }

  __m256 ValueOf(__m256i code) const {
    if constexpr (kBits > 4) return _mm256_i32gather_ps(value, code, 4);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(value), code);
    if constexpr (kBits < 4) return low;
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(value + 8), code);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
  }

 private:
  static __m256i Advance(__m256i at, __m256 z, __m256 threshold_there, int step) {
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(z, threshold_there, _CMP_GT_OQ));
    return _mm256_add_epi32(at, _mm256_and_si256(above, _mm256_set1_epi32(step)));
  }
};

template <int kBits>
float NearestOf(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
                uint8_t* codes) {
  const Search<kBits> search(thresholds, n_thresholds, value);
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  const auto step = [&](const float* from, uint8_t* to, __m256& part) {
    const __m256 x = _mm256_loadu_ps(from);
    const __m256i code = search.Find(x);
    part = _mm256_fmadd_ps(x, search.ValueOf(code), part);
    StoreCodes(code, to);
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    step(z + i, codes + i, sum[0]);
    step(z + i + 8, codes + i + 8, sum[1]);
  }
  alignas(32) float part[16], rest[16] = {};
  _mm256_store_ps(part, sum[0]);
  _mm256_store_ps(part + 8, sum[1]);
  if (i < n) {  // fewer than sixteen
    uint8_t rest_codes[16];
    const int64_t left = n - i;
    for (int64_t j = 0; j < left; ++j) rest[j] = z[i + j];
    __m256 unused = _mm256_setzero_ps();
    step(rest, rest_codes, unused);
    step(rest + 8, rest_codes + 8, unused);
    for (int64_t j = 0; j < left; ++j) {
      codes[i + j] = rest_codes[j];
      part[j] = __builtin_fmaf(rest[j], search.value[rest_codes[j]], part[j]);
    }
  }
  return TreeSum(part);
}

// Two stages of the transform, h and 2h, in one pass over memory; h >= 8.
void TwoStages(float* x, int64_t n, int64_t h) {
  for (int64_t i = 0; i < n; i += 4 * h) {
    for (float* p = x + i; p < x + i + h; p += 8) {
      const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + h);
      const __m256 c = _mm256_loadu_ps(p + 2 * h), d = _mm256_loadu_ps(p + 3 * h);
      const __m256 e = _mm256_add_ps(a, b), f = _mm256_sub_ps(a, b), g = _mm256_add_ps(c, d), k = _mm256_sub_ps(c, d);
      _mm256_storeu_ps(p, _mm256_add_ps(e, g));
      _mm256_storeu_ps(p + h, _mm256_add_ps(f, k));
      _mm256_storeu_ps(p + 2 * h, _mm256_sub_ps(e, g));
      _mm256_storeu_ps(p + 3 * h, _mm256_sub_ps(f, k));
    }
  }
}
void OneStage(float* x, int64_t n, int64_t h) {
  for (int64_t i = 0; i < n; i += 2 * h) {
    for (float* p = x + i; p < x + i + h; p += 8) {
      const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + h);
      _mm256_storeu_ps(p, _mm256_add_ps(a, b));
      _mm256_storeu_ps(p + h, _mm256_sub_ps(a, b));
    }
  }
}

}  // namespace

void PackKeys(const PageLayout& layout, const uint8_t* codes, int64_t block, std::byte* page) {
  const int64_t dim = layout.dim, atom = 64 * layout.bits;
  auto* out = reinterpret_cast<uint8_t*>(page) + layout.runs * (layout.mins ? 512 : 256) + block * (dim / 32) * atom;
  for (int64_t i = 0; i < dim; i += 32, out += atom) {
    for (int64_t h = 0; h < 2; ++h) {  // eight tokens: dword t of unit k is dims 4k..4k+3 of token t
      __m256i u[8];
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) u[t] = Load(codes + (8 * h + t) * dim + i);
      Transpose(u);
      StoreHalfAtom(u, layout.bits, out + 32 * h);
    }
  }
}

void PackValues(const PageLayout& layout, const uint8_t* codes, int64_t block, std::byte* page) {
  const int64_t dim = layout.dim, atom = 64 * layout.bits;
  auto* out = reinterpret_cast<uint8_t*>(page) + layout.runs * (layout.mins ? 512 : 256) + block * atom;
  for (int64_t i = 0; i < dim; i += 32, out += 8 * atom) {
    for (int64_t h = 0; h < 2; ++h) {  // eight dims of each unit of 16
      __m256i u[8];
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) u[k] = Quads(codes + k / 2 * 4 * dim + i + k % 2 * 16 + 8 * h, dim);
      StoreHalfAtom(u, layout.bits, out + 32 * h);
    }
  }
}

void Fwht(float* x, int64_t n) {
  if (n < 8) {
    for (int64_t h = 1; h < n; h *= 2) {
      for (int64_t i = 0; i < n; ++i) {
        if ((i & h) != 0) continue;
        const float a = x[i], b = x[i + h];
        x[i] = a + b;
        x[i + h] = a - b;
      }
    }
    return;
  }
  const __m256 s1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), s2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
  const __m256 s4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  for (int64_t i = 0; i < n; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    v = _mm256_fmadd_ps(v, s1, _mm256_permute_ps(v, 0xB1));
    v = _mm256_fmadd_ps(v, s2, _mm256_permute_ps(v, 0x4E));
    _mm256_storeu_ps(x + i, _mm256_fmadd_ps(v, s4, _mm256_permute2f128_ps(v, v, 1)));
  }
  int64_t h = 8;
  for (; 4 * h <= n; h *= 4) TwoStages(x, n, h);
  if (h < n) OneStage(x, n, h);
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
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  }
  for (; i < n; ++i) y[i] = _cvtsh_ss(x[i]);
}

void F32ToF16(const float* x, int64_t n, uint16_t* y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), h);
  }
  for (; i < n; ++i) y[i] = _cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT);
}

void Bf16ToF32(const uint16_t* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), _mm256_slli_epi32(wide, 16));
  }
  for (; i < n; ++i) {
    const uint32_t u = uint32_t(x[i]) << 16;
    __builtin_memcpy(y + i, &u, 4);
  }
}

void F32ToBf16(const float* x, int64_t n, uint16_t* y) {
  const auto round = [](__m256i u) {
    const __m256i high = _mm256_srli_epi32(u, 16);
    const __m256i bias = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)));
    const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, bias), 16);
    const __m256 f = _mm256_castsi256_ps(u);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(f, f, _CMP_UNORD_Q));
    const __m256i both = _mm256_blendv_epi8(r, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  };
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), round(u));
  }
  if (i < n) {
    alignas(32) float rest[8] = {};
    uint16_t out[8];
    __builtin_memcpy(rest, x + i, size_t(n - i) * 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), round(_mm256_castps_si256(_mm256_load_ps(rest))));
    __builtin_memcpy(y + i, out, size_t(n - i) * 2);
  }
}

}  // namespace croquis::simd::avx2
