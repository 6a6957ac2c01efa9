// What the loops of tile_quantised_inl.h need beyond the vectors V of tile_avx2.h: integer products, and lanes of 16
// bits. Included after tile_inl.h, by the files for AVX2 and AVX-VNNI.

struct Q {
  // Plain AVX2 has no products of bytes that cannot overflow: keys of 16 bits cost less than widening bytes, and
  // weights stay small enough for vpmaddubsw (QuantisedLayout::WeightLevels).
#if defined(__AVXVNNI__)
  static constexpr bool kWide = false, kPairs = false;
  static constexpr int kUnroll = 1;
  static constexpr int kByteRows = 6;
#else
  static constexpr bool kWide = true, kPairs = true;
  static constexpr int kUnroll = 2;    // of a product's inner loop
  static constexpr int kByteRows = 4;  // rows of a product's block; four more registers are needed
#endif
  static constexpr int kRows = 6;

  // c += a b: four products of unsigned by signed bytes, or two of 16 bits. With AVX-VNNI as statements, because g++ 12
  // copies the sum of the intrinsic before each of them.
  template <bool kBytes>
  static void Dot(I& c, I a, I b) {
#if defined(__AVXVNNI__)
    if constexpr (kBytes)
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    else
      asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
#else
    if constexpr (kBytes)
      c = _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
    else
      c = _mm256_add_epi32(c, _mm256_madd_epi16(a, b));
#endif
  }
  // c += a b + d e in bytes, where sums of four products fit 16 bits (kQuantisedFour).
  static void DotPair(I& c, I a, I b, I d, I e) {
    const I four = _mm256_add_epi16(_mm256_maddubs_epi16(a, b), _mm256_maddubs_epi16(d, e));
    c = _mm256_add_epi32(c, _mm256_madd_epi16(four, _mm256_set1_epi16(1)));
  }

  // The largest lane, in all lanes.
  static F Largest(F x) {
    x = _mm256_max_ps(x, _mm256_permute2f128_ps(x, x, 1));
    x = _mm256_max_ps(x, _mm256_permute_ps(x, 0x4e));
    return _mm256_max_ps(x, _mm256_permute_ps(x, 0xb1));
  }
  static float First(F x) { return _mm256_cvtss_f32(x); }

  // Lanes of 16 bits.
  static I Set16(uint16_t x) { return _mm256_set1_epi16(int16_t(x)); }
  // Two vectors of 32-bit lanes, saturated; 128 bits of a, of b, then again.
  static I Narrow(I a, I b) { return _mm256_packs_epi32(a, b); }
  static I AddSaturated(I a, I b) { return _mm256_adds_epi16(a, b); }
  static I Add16(I a, I b) { return _mm256_add_epi16(a, b); }
  static I ShiftUp5(I a) { return _mm256_slli_epi16(a, 5); }
  static I MultiplyHigh(I a, I b) { return _mm256_mulhi_epu16(a, b); }
  static I MultiplyRound(I a, I b) { return _mm256_mulhrs_epi16(a, b); }
  static I Average(I a, I b) { return _mm256_avg_epu16(a, b); }
  // p 2^floor(u / 2048), rounded down, for u in [-2^15, -1]: p is multiplied by 2^k, k = 16 + floor(u / 2048), one byte
  // of which a look-up finds by k, the other by k - 8.
  struct Raiser {
    I powers = _mm256_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
    I whole = Set16(0xf800), twice = Set16(257 << 5), down = Set16(24 << 8);
    Raiser() { asm("" : "+x"(powers), "+x"(whole), "+x"(twice), "+x"(down)); }  // see Kept
    I operator()(I p, I u) const {
      const I both = MultiplyHigh(_mm256_and_si256(u, whole), twice);  // 16 + k in both bytes
      return MultiplyHigh(p, _mm256_shuffle_epi8(powers, _mm256_sub_epi16(both, down)));
    }
  };
  static I NarrowBytes(I a, I b) { return _mm256_packus_epi16(a, b); }  // in the order of Narrow
  static I SumHalves(I a) { return _mm256_madd_epi16(a, Set16(1)); }    // of neighbours, in 32-bit lanes
  static F Divide(F a, F b) { return _mm256_div_ps(a, b); }
#if !defined(__AVXVNNI__)
  // Sums of a row's powers, and the largest sum of four of them that are added in 16 bits (AddsFour).
  static I SumFours(const I (&power)[4], float* four) {
    const I even = _mm256_add_epi32(SumHalves(power[0]), SumHalves(power[2]));
    const I odd = _mm256_add_epi32(SumHalves(power[1]), SumHalves(power[3]));
    *four = First(Largest(_mm256_cvtepi32_ps(_mm256_max_epi32(even, odd))));
    return _mm256_add_epi32(even, odd);
  }
#endif

  // Signed numbers of 32 bits, stored as 16 or 8.
  static void StoreHalves(void* p, I x) {
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  static void StoreBytes(void* p, I x) {
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(halves, halves));
  }

  // Lanes of 32 bits put together: the low halves of two, or the low bytes of four.
  static I Join(I a, I b) { return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa); }
  static I Join(I a, I b, I c, I d) {
    const I low = _mm256_set1_epi32(0xff);
    const auto pair = [&](I x, I y) {
      return _mm256_or_si256(_mm256_and_si256(x, low), _mm256_slli_epi32(_mm256_and_si256(y, low), 8));
    };
    return Join(pair(a, b), pair(c, d));
  }
};
