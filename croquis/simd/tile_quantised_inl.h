// The quantised tile kernels in the vectors V of one instruction set. Included after tile_inl.h.

// One operand of an integer product: units of 32 bits.
struct IntProduct {
  const uint32_t* a;  // [m, k]
  int64_t lda;
  const uint32_t* b;  // [k, n]
  int64_t ldb;
  int64_t m, n, k;
  const int32_t* start;  // [n] added to every row, or null
};

// MR rows from `row`, NV vectors of columns from `col`; store(row, column, sums).
template <bool kBytes, int MR, int NV, class Store>
[[gnu::noinline]] void IntMicro(const IntProduct& g, int64_t row, int64_t col, const Store& store) {
  const uint32_t *a = g.a + row * g.lda, *b = g.b + col;
  const int64_t lda = g.lda, ldb = g.ldb;
  alignas(64) static constexpr int32_t kZeros[NV * kW] = {};
  const int32_t* const start = g.start != nullptr ? g.start + col : kZeros;
  I s[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) s[r][j] = V::LoadI(start + j * kW);
  for (int64_t l = g.k; l > 0; --l, ++a, b += ldb) {
    I y[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) y[j] = V::LoadI(b + j * kW);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const I x = V::SpreadI(a + r * lda);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        if constexpr (kBytes)
          V::Dot8(s[r][j], x, y[j]);
        else
          V::Dot16(s[r][j], x, y[j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(row + r, col + j * kW, s[r][j]);
}

template <bool kBytes, int NV, class Store>
void IntStrip(const IntProduct& g, int64_t col, const Store& store) {
  int64_t i = 0;
  for (; i + 6 <= g.m; i += 6) IntMicro<kBytes, 6, NV>(g, i, col, store);
  for (; i + 2 <= g.m; i += 2) IntMicro<kBytes, 2, NV>(g, i, col, store);
  if (i < g.m) IntMicro<kBytes, 1, NV>(g, i, col, store);
}

template <bool kBytes, class Store>
void IntMultiply(const IntProduct& g, const Store& store) {
  int64_t col = 0;
  for (; col + V::kNv * kW <= g.n; col += V::kNv * kW) IntStrip<kBytes, V::kNv>(g, col, store);
  for (; col < g.n; col += kW) IntStrip<kBytes, 1>(g, col, store);
}

struct QuantisedScratch {
  Rows rows;
  alignas(64) float logits[kTileRows][kTileKeys];
  alignas(64) uint16_t weights[kTileRows][kTileKeys];
  float unit[kTileRows];
};
static_assert(sizeof(QuantisedScratch) <= kQuantisedScratch);

template <bool kNarrow>
void AttendQuantised(const QuantisedCall& c) {
  const FlushToZero flush;
  auto& scratch = *reinterpret_cast<QuantisedScratch*>(c.scratch);
  const int64_t units = (c.layout.dim + 3) / 4, width = RoundUp(c.layout.value_dim, 16);
  constexpr int64_t kTogether = kNarrow ? 4 : 2;
  TileCall tile;  // the softmax's view of it
  tile.layout.value_dim = c.layout.value_dim;
  tile.rows = c.rows;
  tile.begin = c.begin, tile.end = c.end;
  tile.first = c.first, tile.last = c.last;
  tile.max = c.max, tile.mass = c.mass, tile.sums = c.sums;
  Softmax softmax(tile, scratch.rows);
  const Softmax::Sight sight = softmax.Of(0, c.rows);
  for (int64_t block = c.begin / kTileKeys * kTileKeys; block < c.end; block += kTileKeys) {
    if (!sight.Sees(block)) continue;
    const int64_t b = block / kTileKeys;
    const float *key_scale = c.key_scale + block, *bias = c.bias != nullptr ? c.bias + block - c.bias_first : nullptr;
    const auto logit = [&](int64_t r, int64_t j, I dots) __attribute__((always_inline)) {
      F x = V::Mul(V::ToFloat(dots), V::Mul(V::Set(c.row_scale[r]), V::Load(key_scale + j)));
      if (bias != nullptr) x = V::Add(x, V::Load(bias + j));
      V::Store(scratch.logits[r] + j, x);
    };
    IntMultiply<true>({(const uint32_t*)c.queries, units, (const uint32_t*)c.keys + b * units * kTileKeys, kTileKeys,
                       c.rows, kTileKeys, units, c.key_offset + block},
                      logit);
    const bool prepare = !sight.SeesAll(block);
    auto* const weights = (std::byte*)scratch.weights;
    constexpr int64_t kRowBytes = kTileKeys * (kNarrow ? 1 : 2);
    for (int64_t r = 0; r < c.rows; ++r)
      scratch.unit[r] = softmax.Quantise<kNarrow>(r, block, prepare, scratch.logits[r], weights + r * kRowBytes);
    const auto add = [&](int64_t r, int64_t i, I dots) __attribute__((always_inline)) {
      float* const sum = c.sums.data + r * c.sums.stride + i;
      V::Store(sum, V::Fma(V::ToFloat(dots), V::Set(scratch.unit[r]), V::Load(sum)));
    };
    IntMultiply<kNarrow>(
        {(const uint32_t*)weights, kRowBytes / 4, (const uint32_t*)c.values + b * kTileKeys / kTogether * width, width,
         c.rows, width, kTileKeys / kTogether, nullptr},
        add);
  }
  softmax.Finish();
}

void AttendQuantisedEither(const QuantisedCall& c) {
  if (c.layout.narrow)
    AttendQuantised<true>(c);
  else
    AttendQuantised<false>(c);
}
