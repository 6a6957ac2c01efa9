// What the loops of tile_quantised_inl.h need beyond the vectors V of tile_avx512.h: integer products, and lanes of 16
// bits. Included after tile_inl.h.

struct Q {
  static constexpr bool kWide = false, kPairs = false;
  static constexpr int kByteRows = 6, kRows = 6, kUnroll = 1;  // rows of a product's block

  // c += a b: four products of unsigned by signed bytes, or two of 16 bits. As statements, because g++ 12 copies the
  // sum of the intrinsic before each of them.
  template <bool kBytes>
  static void Dot(I& c, I a, I b) {
    if constexpr (kBytes)
      asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    else
      asm("vpdpwssd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  }
  // The largest lane, in all lanes.
  static F Largest(F x) {
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4e));
    return _mm512_max_ps(x, _mm512_permute_ps(x, 0xb1));
  }
  static float First(F x) { return _mm512_cvtss_f32(x); }

  // Lanes of 16 bits.
  static I Set16(uint16_t x) { return _mm512_set1_epi16(int16_t(x)); }
  // Two vectors of 32-bit lanes, saturated; 128 bits of a, of b, and so on.
  static I Narrow(I a, I b) { return _mm512_packs_epi32(a, b); }
  static I AddSaturated(I a, I b) { return _mm512_adds_epi16(a, b); }
  static I Add16(I a, I b) { return _mm512_add_epi16(a, b); }
  static I ShiftUp5(I a) { return _mm512_slli_epi16(a, 5); }
  static I MultiplyHigh(I a, I b) { return _mm512_mulhi_epu16(a, b); }
  static I MultiplyRound(I a, I b) { return _mm512_mulhrs_epi16(a, b); }
  static I Average(I a, I b) { return _mm512_avg_epu16(a, b); }
  // p 2^floor(u / 2048), rounded down, for u in [-2^15, -1].
  struct Raiser {
    I operator()(I p, I u) const { return _mm512_srlv_epi16(p, _mm512_sub_epi16(Set16(32), _mm512_srli_epi16(u, 11))); }
  };
  static I NarrowBytes(I a, I b) { return _mm512_packus_epi16(a, b); }  // in the order of Narrow
  static I SumHalves(I a) { return _mm512_madd_epi16(a, Set16(1)); }    // of neighbours, in 32-bit lanes
  static F Divide(F a, F b) { return _mm512_div_ps(a, b); }

  // Signed numbers of 32 bits, stored as 16 or 8.
  static void StoreHalves(void* p, I x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x)); }
  static void StoreBytes(void* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }

  // Lanes of 32 bits put together: the low halves of two, or the low bytes of four.
  static I Join(I a, I b) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)); }
  static I Join(I a, I b, I c, I d) {
    const I low = _mm512_set1_epi32(0xff);
    const auto pair = [&](I x, I y) {
      return _mm512_or_si512(_mm512_and_si512(x, low), _mm512_slli_epi32(_mm512_and_si512(y, low), 8));
    };
    return Join(pair(a, b), pair(c, d));
  }
};
