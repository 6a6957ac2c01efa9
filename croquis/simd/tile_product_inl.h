// Products of tiles in vector registers, C = (add ? C : 0) + A B in units of 32 bits, f32 numbers or pairs of bf16, and
// the tile kernels made of them. Included after tile_inl.h.

struct Product {
  const uint32_t* a;  // [m, k]
  int64_t lda;
  const uint32_t* b;  // [k, n], n a multiple of 16
  int64_t ldb;
  float* c;  // [m, n]
  int64_t ldc;
  int64_t m, n, k;
  bool add;
};

// MR rows from `row`, NV vectors of columns from `col`.
template <TileType T, int MR, int NV>
[[gnu::noinline]] void Micro(const Product& g, int64_t row, int64_t col) {
  const uint32_t *a = g.a + row * g.lda, *b = g.b + col;
  float* const c = g.c + row * g.ldc + col;
  F s[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) s[r][j] = g.add ? V::Load(c + r * g.ldc + j * kW) : V::Zero();
  for (int64_t l = 0; l < g.k; ++l, ++a, b += g.ldb) {
    F y[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) y[j] = V::Load((const float*)b + j * kW);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const F x = V::Spread(a + r * g.lda);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) s[r][j] = V::MultiplyAdd<T>(x, y[j], s[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) V::Store(c + r * g.ldc + j * kW, s[r][j]);
}

template <TileType T, int NV>
void Strip(const Product& g, int64_t col) {
  constexpr int kMr = V::kMr[NV];
  int64_t i = 0;
  for (; i + kMr <= g.m; i += kMr) Micro<T, kMr, NV>(g, i, col);
  for (; i + 4 <= g.m; i += 4) Micro<T, 4, NV>(g, i, col);
  for (; i + 2 <= g.m; i += 2) Micro<T, 2, NV>(g, i, col);
  for (; i < g.m; ++i) Micro<T, 1, NV>(g, i, col);
}

template <TileType T>
void Multiply(const Product& g) {
  int64_t col = 0;
  for (; col + V::kNv * kW <= g.n; col += V::kNv * kW) Strip<T, V::kNv>(g, col);
  const int64_t rest = (g.n - col) / kW;
  if constexpr (V::kNv > 3)
    if (rest == 3) Strip<T, 3>(g, col);
  if constexpr (V::kNv > 2)
    if (rest == 2) Strip<T, 2>(g, col);
  if (rest == 1) Strip<T, 1>(g, col);
}

struct Scratch {
  Rows rows;
  alignas(64) float logits[kTileRows][kTileKeys];
  alignas(64) uint16_t weights[kTileRows][kTileKeys];  // bf16
};

template <TileType T>
void Attend(const TileCall& c) {
  constexpr bool kBf16 = T == TileType::kBf16;
  auto& scratch = *reinterpret_cast<Scratch*>(c.scratch);
  const Sizes<T> sizes(c.layout);
  const FlushToZero flush;
  Softmax softmax(c, scratch.rows);
  const typename Softmax::Sight sight = softmax.Of(0, c.rows);
  const int64_t rows = RoundUp(c.rows, kGroup);
  float* const logits = scratch.logits[0];
  for (int64_t block = c.begin / kTileKeys * kTileKeys; block < c.end; block += kTileKeys) {
    if (!sight.Sees(block)) continue;
    const auto *keys = (const uint32_t*)c.keys + block / kTileKeys * sizes.KeyBlock(),
               *values = (const uint32_t*)c.values + block / kTileKeys * sizes.ValueBlock();
    Multiply<T>({(const uint32_t*)c.queries, sizes.units, keys, kTileKeys, logits, kTileKeys, rows, kTileKeys,
                 sizes.units, false});
    const bool plain = softmax.Plain() && sight.SeesAll(block);
    for (int64_t r = 0; r < rows; r += kGroup) {
      if (plain)
        softmax.Group<kBf16, false>(r, block, scratch.logits[r], scratch.weights[r], kTileKeys);
      else
        softmax.Group<kBf16, true>(r, block, scratch.logits[r], scratch.weights[r], kTileKeys);
    }
    const auto* weights = kBf16 ? (const uint32_t*)scratch.weights : (const uint32_t*)scratch.logits;
    constexpr int64_t kUnits = kTileKeys / Sizes<T>::kNumbers;
    Multiply<T>({weights, kUnits, values, sizes.value_width, c.sums.data, c.sums.stride, c.rows, sizes.value_width,
                 kUnits, true});
  }
  softmax.Finish();
}

size_t ScratchBytes(const TileLayout&) { return sizeof(Scratch); }
