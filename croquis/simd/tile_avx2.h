// The vectors of AVX2 that the loops of tile_inl.h, tile_product_inl.h and tile_quantised_inl.h are written in.
// Included inside the anonymous namespace of their files, which include vector_avx2.h.

struct V : VectorAvx2 {
  using I = __m256i;                       // the same width in 32-bit lanes
  static constexpr int kNv = 2;            // a product's block: 6 rows x 2 vectors
  static constexpr int kMr[] = {0, 8, 6};  // rows of a block that is 1 or 2 vectors wide

  static F Fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  template <TileType T>
  static F MultiplyAdd(F a, F b, F c) {
    static_assert(T == TileType::kF32);
    return _mm256_fmadd_ps(a, b, c);
  }
  static bool AnyAbove(F x, F bound) { return _mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_GT_OQ)) != 0; }
  // One number in all lanes, in a register: as an operand it would be loaded again for every product.
  static F Spread(const uint32_t* p) {
    F x = _mm256_castsi256_ps(_mm256_set1_epi32(int(*p)));
    asm("" : "+x"(x));
    return x;
  }
  // x in lanes first <= lane < last, otherwise kMasked.
  static F Within(F x, int64_t first, int64_t last) {
    const auto spread = [](int64_t n) { return _mm256_set1_epi32(n < 0 ? 0 : n > 8 ? 8 : int(n)); };
    const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const I in = _mm256_andnot_si256(_mm256_cmpgt_epi32(spread(first), lane), _mm256_cmpgt_epi32(spread(last), lane));
    return _mm256_blendv_ps(Set(kMasked), x, _mm256_castsi256_ps(in));
  }

  // 8 numbers of a row.
  template <RowType T>
  static F Numbers(const std::byte* p) {
    if constexpr (T == RowType::kF32) return Load((const float*)p);
    if constexpr (T == RowType::kF16) return LoadF16(p);
    return LoadBf16(p);
  }
  // The same in bf16, in the low halves of the lanes.
  static I Bf16(F x) {
    const I u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  }
  static I Bits(F x) { return _mm256_castps_si256(x); }
  static void StoreI(void* p, I x) { _mm256_storeu_si256((I*)p, x); }
  static I LoadI(const void* p) { return _mm256_loadu_si256((const I*)p); }
  // 8 halves of 16 bits in the low halves of the lanes.
  static I LoadHalves(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static I ZeroI() { return _mm256_setzero_si256(); }
  // Lane i: low half of a's, low half of b's above it; and the two halves as numbers.
  static I Interleave(I a, I b) { return _mm256_or_si256(a, _mm256_slli_epi32(b, 16)); }
  static F Low(I x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
  static F High(I x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000u)))); }
  // 16 weights in bf16: first lo's, then hi's.
  static void StoreBf16(uint16_t* p, F lo, F hi) {
    StoreLowHalves(p, Bf16(lo));
    StoreLowHalves(p + kW, Bf16(hi));
  }
  static void StoreLowHalves(uint16_t* p, I x) {
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
  }

  // out[i * stride + t] = x[t] lane i, for lanes i < n.
  static void StoreTransposed(const I* x, uint32_t* out, int64_t stride, int64_t n) {
    F numbers[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) numbers[i] = _mm256_castsi256_ps(x[i]);
    Transpose(numbers, numbers);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      if (i < n) StoreI(out + i * stride, Bits(numbers[i]));
  }

  static I AddI(I a, I b) { return _mm256_add_epi32(a, b); }
  static F ToFloat(I x) { return _mm256_cvtepi32_ps(x); }
  static I ToInt(F x) { return _mm256_cvtps_epi32(x); }
  static I SpreadI(const uint32_t* p) { return _mm256_castps_si256(Spread(p)); }
};
