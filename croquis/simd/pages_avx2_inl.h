// Scores and sums on page bytes with 256-bit registers. Included inside the anonymous namespace of pages_avx2.cc and
// pages_avxvnni.cc after
//   __m256i Dot(__m256i acc, __m256i x, __m256i y)   acc + the sums of pairs of products of 16-bit integers,
// so that each has machine code of its own. Codes of 16 tokens (keys) or 32 dims (values) are expanded once to 16-bit
// integers in scratch, at most 16 KiB, and then all query rows pass over them, four at a time.

constexpr int kTokens = 128;
constexpr int kRows = 4;  // rows of one pass: 8 accumulators, 4 registers of codes

inline __m256i Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i Table(const int8_t* level) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(level)));
}
inline __m256i Broadcast(const int16_t* pair) {
  int32_t x;
  __builtin_memcpy(&x, pair, 4);
  return _mm256_set1_epi32(x);
}
inline __m256 LoadHalf(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// ---- codes to levels ----

// How codes become levels: by look-up (16 entries an instruction), or, where level[c] = level[0] + c, by an addition.
struct Book {
  alignas(32) int8_t table[256];  // entry of each code; up to 4 bits repeated to 16 entries
  bool affine;
};

inline void MakeBook(int bits, const int8_t* level, Book& book) {
  const int n = 1 << bits;
  for (int i = 0; i < (n < 16 ? 16 : n); ++i) book.table[i] = level[i & (n - 1)];
  book.affine = bits > 4;
  for (int i = 0; i < n; ++i) book.affine = book.affine && uint8_t(level[i]) == uint8_t(level[0] + i);
}

// Entry of n * 16 chosen by the low nibble of each byte of `low` and the low bits of `high`; a tree of blends, which
// look at bit 7 only.
template <int n>
inline __m256i LookUp(const int8_t* table, __m256i low, __m256i high) {
  if constexpr (n == 1) {
    return _mm256_shuffle_epi8(Table(table), low);
  } else {
    constexpr int kShift = n == 2 ? 7 : n == 4 ? 6 : n == 8 ? 5 : 4;
    return _mm256_blendv_epi8(LookUp<n / 2>(table, low, high), LookUp<n / 2>(table + 8 * n, low, high),
                              _mm256_slli_epi16(high, kShift));
  }
}

// Levels of 32 codes of unit k, from the lines at `p` (already advanced to the half of the unit).
template <int kBits, bool kAffine, int k>
inline __m256i UnitLevels(const uint8_t* p, const Book& book) {
  const __m256i m15 = _mm256_set1_epi8(15);
  const auto line = [p](int l) { return Load(p + 64 * l); };
  if constexpr (kBits <= 4) {
    __m256i x;
    if constexpr (kBits == 3 && k >= 6) {
      const __m256i low = _mm256_and_si256(_mm256_srli_epi16(line(k == 6 ? 0 : 2), 6), _mm256_set1_epi8(3));
      x = _mm256_or_si256(low, _mm256_and_si256(_mm256_srli_epi16(line(1), k == 6 ? 4 : 5), _mm256_set1_epi8(4)));
    } else {
      // Bits of neighbours within the nibble do not matter: the table repeats over them.
      constexpr int kPer = kBits == 3 ? 2 : 8 / kBits;
      x = _mm256_and_si256(_mm256_srli_epi16(line(k / kPer), kBits * (k % kPer)), m15);
    }
    return _mm256_shuffle_epi8(Table(book.table), x);
  } else {
    __m256i low, high;
    if constexpr (kBits == 8) {
      if constexpr (kAffine) return _mm256_add_epi8(line(k), _mm256_set1_epi8(book.table[0]));
      low = _mm256_and_si256(line(k), m15);
      high = _mm256_srli_epi16(line(k), 4);
    } else {
      low = _mm256_and_si256(_mm256_srli_epi16(line(k / 2), 4 * (k % 2)), m15);
      if constexpr (kBits == 5) {
        high = _mm256_and_si256(_mm256_srli_epi16(line(4), k), _mm256_set1_epi8(1));
      } else {
        high = _mm256_and_si256(_mm256_srli_epi16(line(4 + k / 4), 2 * (k % 4)), _mm256_set1_epi8(3));
        if constexpr (kBits == 7) {
          const __m256i bit = _mm256_and_si256(_mm256_srli_epi16(line(6), k), _mm256_set1_epi8(1));
          high = _mm256_or_si256(high, _mm256_slli_epi16(bit, 2));
        }
      }
    }
    if constexpr (kAffine) {
      const __m256i code = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
      return _mm256_add_epi8(code, _mm256_set1_epi8(book.table[0]));
    } else {
      return LookUp<1 << (kBits - 4)>(book.table, low, high);
    }
  }
}

// An atom to int16 [unit][half of its lanes][even bytes, odd bytes][16].
template <int kBits, bool kAffine>
void ExpandAtom(const uint8_t* p, const Book& book, int16_t* out) {
  const auto unit = [&]<int k>() {
    for (int h = 0; h < 2; ++h) {
      const __m256i u = UnitLevels<kBits, kAffine, k>(p + 32 * h, book);
      auto* to = reinterpret_cast<__m256i*>(out + (2 * k + h) * 32);
      _mm256_store_si256(to, _mm256_srai_epi16(_mm256_slli_epi16(u, 8), 8));
      _mm256_store_si256(to + 1, _mm256_srai_epi16(u, 8));
    }
  };
  unit.template operator()<0>();
  unit.template operator()<1>();
  unit.template operator()<2>();
  unit.template operator()<3>();
  unit.template operator()<4>();
  unit.template operator()<5>();
  unit.template operator()<6>();
  unit.template operator()<7>();
}

using ExpandFn = void (*)(const uint8_t*, const Book&, int16_t*);
inline ExpandFn ExpandOf(int bits, bool affine) {
  switch (bits) {
    case 1:
      return ExpandAtom<1, false>;
    case 2:
      return ExpandAtom<2, false>;
    case 3:
      return ExpandAtom<3, false>;
    case 4:
      return ExpandAtom<4, false>;
    case 5:
      return affine ? ExpandAtom<5, true> : ExpandAtom<5, false>;
    case 6:
      return affine ? ExpandAtom<6, true> : ExpandAtom<6, false>;
    case 7:
      return affine ? ExpandAtom<7, true> : ExpandAtom<7, false>;
    default:
      return affine ? ExpandAtom<8, true> : ExpandAtom<8, false>;
  }
}

inline const int8_t* LevelOf(const Levels& levels, int plane) {
  return reinterpret_cast<const int8_t*>(&levels.level) + 256 * plane;
}
inline float PlaneWeight(const Levels& levels, int plane) { return levels.planes == 2 && plane == 0 ? 128.f : 1.f; }

// ---- keys ----

struct KeyBlock {
  const int16_t* words;    // 16 tokens, all dims
  const uint16_t* scales;  // of these tokens, in the first run
  const int16_t* q;        // quads [rows][dim]
  const float* s;
  float weight;  // of the plane
  int dim, runs;
  bool add;       // to what is in logits
  float* logits;  // of these tokens, in the first row
};

template <int R>
inline void ScoreRowsOf(const KeyBlock& b, int64_t row) {
  const int run_atoms = b.dim / b.runs / 32;
  const int16_t* q = b.q + row * b.dim;
  const int16_t* x = b.words;
  __m256 f[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) f[r][0] = f[r][1] = _mm256_setzero_ps();
  for (int run = 0; run < b.runs; ++run) {
    __m256i a[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) a[r][0] = a[r][1] = _mm256_setzero_si256();
    for (int i = 0; i < run_atoms * 8; ++i, x += 64, q += 4) {  // a unit: 16 tokens x 4 dims
      const __m256i e0 = Load(x), o0 = Load(x + 16), e1 = Load(x + 32), o1 = Load(x + 48);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i even = Broadcast(q + r * b.dim), odd = Broadcast(q + r * b.dim + 2);
        a[r][0] = Dot(Dot(a[r][0], e0, even), o0, odd);
        a[r][1] = Dot(Dot(a[r][1], e1, even), o1, odd);
      }
    }
    for (int h = 0; h < 2; ++h) {
      const __m256 s = LoadHalf(b.scales + run * kTokens + 8 * h);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) f[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[r][h]), s, f[r][h]);
    }
  }
  for (int r = 0; r < R; ++r) {
    const __m256 s = _mm256_set1_ps(b.s[row + r] * b.weight);
    for (int h = 0; h < 2; ++h) {
      float* out = b.logits + (row + r) * kTokens + 8 * h;
      const __m256 logit = _mm256_mul_ps(f[r][h], s);
      _mm256_storeu_ps(out, b.add ? _mm256_add_ps(_mm256_loadu_ps(out), logit) : logit);
    }
  }
}

void Score(const PageLayout& layout, const Levels& levels, Precision, const std::byte* page, const std::byte* query,
           int64_t rows, const Upcoming& next, float* logits, std::byte* scratch) {
  const avx2::QueryAt at = avx2::QueryParts(layout, rows);
  const int atoms = layout.dim / 32, atom_bytes = 64 * layout.bits;
  const auto* scales = reinterpret_cast<const uint16_t*>(page);
  auto* words = reinterpret_cast<int16_t*>(scratch);
  Ahead ahead(next, 8 * atoms);
  for (int plane = 0; plane < levels.planes; ++plane) {
    Book book;
    MakeBook(layout.bits, LevelOf(levels, plane), book);
    const ExpandFn expand = ExpandOf(layout.bits, book.affine);
    const auto* codes = reinterpret_cast<const uint8_t*>(page) + layout.runs * (layout.mins ? 512 : 256);
    KeyBlock b;
    b.words = words;
    b.scales = scales;
    b.q = reinterpret_cast<const int16_t*>(query);
    b.s = reinterpret_cast<const float*>(query + at.s);
    b.weight = PlaneWeight(levels, plane);
    b.dim = layout.dim;
    b.runs = layout.runs;
    b.add = plane > 0;
    b.logits = logits;
    for (int t = 0; t < kTokens; t += 16, b.scales += 16, b.logits += 16) {
      for (int i = 0; i < atoms; ++i, codes += atom_bytes) {
        expand(codes, book, words + i * avx2::kAtomWords);
        ahead.Step();
      }
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows) ScoreRowsOf<kRows>(b, row);
      if (rows - row == 3) ScoreRowsOf<3>(b, row);
      if (rows - row == 2) ScoreRowsOf<2>(b, row);
      if (rows - row == 1) ScoreRowsOf<1>(b, row);
    }
  }
  const auto* m = reinterpret_cast<const float*>(query + at.m);
  for (int64_t row = 0; layout.mins && row < rows; ++row) {
    avx2::AddKeyMins(scales + layout.runs * kTokens, layout.runs, m + row * layout.runs, logits + row * kTokens);
  }
}

// ---- values ----

struct ValueStrip {
  const int16_t* words;    // 32 dims, all tokens
  const int32_t* total;    // [32] sums of levels over the tokens, times -offset of the weights; null when that is 0
  const int16_t* weights;  // quads [rows][128] of the run
  const float* unit;       // [rows]
  float step;              // times the weight of the plane
  const float* p_scale;
  float* acc;  // first dim of the strip in the first row
  int64_t stride;
};

template <int R>
inline void SumRowsOf(const ValueStrip& v, int64_t row) {
  for (int j = 0; j < 2; ++j) {  // 16 dims
    const int16_t* x = v.words + 64 * j;
    const int16_t* w = v.weights + row * kTokens;
    __m256i a[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < 2; ++h) a[r][h] = v.total ? Load(v.total + 16 * j + 8 * h) : _mm256_setzero_si256();
    }
    for (int i = 0; i < kTokens / 4; ++i, x += 128, w += 4) {
      const __m256i e0 = Load(x), o0 = Load(x + 16), e1 = Load(x + 32), o1 = Load(x + 48);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i even = Broadcast(w + r * kTokens), odd = Broadcast(w + r * kTokens + 2);
        a[r][0] = Dot(Dot(a[r][0], e0, even), o0, odd);
        a[r][1] = Dot(Dot(a[r][1], e1, even), o1, odd);
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m256 unit = _mm256_set1_ps((v.unit[row + r] * v.step) * v.p_scale[row + r]);
      for (int h = 0; h < 2; ++h) {
        float* out = v.acc + (row + r) * v.stride + 16 * j + 8 * h;
        _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(a[r][h]), unit, _mm256_loadu_ps(out)));
      }
    }
  }
}

// total[32] = 32768 * sum over tokens of the levels of a strip. Pairs of at most 2 * 128 sum to 2^13 over 32 quads.
inline void TotalLevels(const int16_t* words, int32_t* total) {
  for (int part = 0; part < 4; ++part) {  // 8 dims each: unit part / 2, half part % 2
    const int16_t* x = words + 32 * part;
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < kTokens / 4; ++i, x += 128) {
      sum = _mm256_add_epi16(sum, _mm256_add_epi16(Load(x), Load(x + 16)));
    }
    const __m256i pair = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(total + 8 * part), _mm256_slli_epi32(pair, 15));
  }
}

// At most kMaxRows rows, whose weights fit in scratch.
void AccumulateGroup(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                     const float* p, const float* p_scale, int64_t rows, Ahead& ahead, MatView<float> acc,
                     std::byte* scratch) {
  const avx2::ScratchAt at = avx2::ScratchParts(layout, rows);
  const int run_dims = layout.dim / layout.runs, atom_bytes = 64 * layout.bits;
  const auto* scales = reinterpret_cast<const uint16_t*>(page);
  auto* words = reinterpret_cast<int16_t*>(scratch);
  auto* weights = reinterpret_cast<int16_t*>(scratch + at.weights);
  auto* units = reinterpret_cast<float*>(scratch + at.units);
  const avx2::WeightForm form = avx2::FormOf(layout, precision, page);
  for (int r = 0; r < layout.runs; ++r) {
    for (int64_t row = 0; row < rows; ++row) {
      units[r * rows + row] =
          avx2::QuantiseWeights(form, p + row * kTokens, scales + r * kTokens, weights + (r * rows + row) * kTokens);
    }
  }
  alignas(32) int32_t total[32];
  for (int plane = 0; plane < levels.planes; ++plane) {
    Book book;
    MakeBook(layout.bits, LevelOf(levels, plane), book);
    const ExpandFn expand = ExpandOf(layout.bits, book.affine);
    const auto* codes = reinterpret_cast<const uint8_t*>(page) + layout.runs * (layout.mins ? 512 : 256);
    for (int i = 0; i < layout.dim; i += 32) {
      for (int t = 0; t < 8; ++t, codes += atom_bytes) {
        expand(codes, book, words + t * avx2::kAtomWords);
        ahead.Step();
      }
      if (form.offset != 0) TotalLevels(words, total);
      const int64_t r = i / run_dims;
      ValueStrip v;
      v.words = words;
      v.total = form.offset != 0 ? total : nullptr;
      v.weights = weights + r * rows * kTokens;
      v.unit = units + r * rows;
      v.step = levels.step * PlaneWeight(levels, plane);
      v.p_scale = p_scale;
      v.acc = acc.data + i;
      v.stride = acc.stride;
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows) SumRowsOf<kRows>(v, row);
      if (rows - row == 3) SumRowsOf<3>(v, row);
      if (rows - row == 2) SumRowsOf<2>(v, row);
      if (rows - row == 1) SumRowsOf<1>(v, row);
    }
  }
  for (int64_t row = 0; layout.mins && row < rows; ++row) {
    avx2::AddValueMins(scales + layout.runs * kTokens, layout.runs, run_dims, p + row * kTokens, p_scale[row],
                       acc.data + row * acc.stride);
  }
}

void Accumulate(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                const float* p, const float* p_scale, int64_t rows, const Upcoming& next, MatView<float> acc,
                std::byte* scratch) {
  Ahead ahead(next, layout.dim / 4);
  for (int64_t row = 0; row < rows; row += avx2::kMaxRows) {
    const int64_t n = rows - row < avx2::kMaxRows ? rows - row : avx2::kMaxRows;
    MatView<float> part = acc;  // not Rows(): a shared inline function
    part.data += row * acc.stride;
    AccumulateGroup(layout, levels, precision, page, p + row * kTokens, p_scale + row, n, ahead, part, scratch);
  }
}
