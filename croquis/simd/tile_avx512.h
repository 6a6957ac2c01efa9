// The vectors of AVX-512 that the loops of tile_inl.h, tile_product_inl.h and tile_quantised_inl.h are written in.
// Included inside the anonymous namespace of their files, which include vector_avx512.h.

struct V : VectorAvx512 {
  using I = __m512i;                               // the same width in 32-bit lanes
  static constexpr int kNv = 4;                    // a product's block: 6 rows x 4 vectors
  static constexpr int kMr[] = {0, 16, 12, 8, 6};  // rows of a block that is 1 .. 4 vectors wide

  // c + a b, in units of 32 bits: a number, or a pair of bf16.
  template <TileType T>
  static F MultiplyAdd(F a, F b, F c) {
    if constexpr (T == TileType::kF32) return _mm512_fmadd_ps(a, b, c);
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
  }
  static F Fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static bool AnyAbove(F x, F bound) { return _mm512_cmp_ps_mask(x, bound, _CMP_GT_OQ) != 0; }
  // One number in all lanes, in a register: as an operand it would be loaded again for every product.
  static F Spread(const uint32_t* p) {
    F x = _mm512_castsi512_ps(_mm512_set1_epi32(int(*p)));
    asm("" : "+v"(x));
    return x;
  }
  // x in lanes first <= lane < last, otherwise kMasked.
  static F Within(F x, int64_t first, int64_t last) {
    const auto below = [](int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1; };
    return _mm512_mask_mov_ps(Set(kMasked), __mmask16(below(last) & ~below(first)), x);
  }
  // 32 weights in bf16: first lo's, then hi's.
  static void StoreBf16(uint16_t* p, F lo, F hi) { _mm512_storeu_si512(p, (I)_mm512_cvtne2ps_pbh(hi, lo)); }

  // 16 numbers of a row.
  template <RowType T>
  static F Numbers(const std::byte* p) {
    if constexpr (T == RowType::kF32) return Load((const float*)p);
    if constexpr (T == RowType::kF16) return LoadF16(p);
    return LoadBf16(p);
  }
  // The same in bf16, in the low halves of the lanes. By integers: vcvtneps2bf16 would flush denormal numbers.
  static I Bf16(F x) {
    const I u = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    return _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  }
  static I Bits(F x) { return _mm512_castps_si512(x); }
  static void StoreI(void* p, I x) { _mm512_storeu_si512(p, x); }
  static I LoadI(const void* p) { return _mm512_loadu_si512(p); }
  // 16 halves of 16 bits in the low halves of the lanes.
  static I LoadHalves(const void* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
  static I ZeroI() { return _mm512_setzero_si512(); }
  // Lane i: low half of a's, low half of b's above it.
  static I Interleave(I a, I b) { return _mm512_or_si512(a, _mm512_slli_epi32(b, 16)); }
  // The two halves as numbers.
  static F Low(I x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
  static F High(I x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000u)))); }
  static void StoreLowHalves(uint16_t* p, I x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x)); }

  // out[i * stride + t] = x[t] lane i, for lanes i < n.
  static void StoreTransposed(const I* x, uint32_t* out, int64_t stride, int64_t n) {
    F numbers[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) numbers[i] = _mm512_castsi512_ps(x[i]);
    Transpose(numbers, numbers);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      if (i < n) StoreI(out + i * stride, Bits(numbers[i]));
  }

  static I AddI(I a, I b) { return _mm512_add_epi32(a, b); }
  static F ToFloat(I x) { return _mm512_cvtepi32_ps(x); }
  static I ToInt(F x) { return _mm512_cvtps_epi32(x); }
  static I SpreadI(const uint32_t* p) { return _mm512_castps_si512(Spread(p)); }
};
