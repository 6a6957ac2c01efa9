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
  alignas(64) float logits[kTileRows][kTileKeys];  // weights take their places
};

// A tile as the products take it: units of 32 bits.
struct Operands {
  const uint32_t *queries, *keys, *values;  // of one block
  int64_t key_units, value_width;
};

// The weights of a block for rows [begin, end), and their values into the sums.
template <TileType T>
void AttendBlock(const TileCall& c, Softmax& softmax, Scratch& scratch, const Operands& o, int64_t begin, int64_t end,
                 int64_t block, bool plain) {
  constexpr bool kBf16 = T == TileType::kBf16;
  const int64_t rows = RoundUp(end - begin, kGroup);
  float* const logits = scratch.logits[0];
  Multiply<T>({o.queries + begin * o.key_units, o.key_units, o.keys, kTileKeys, logits, kTileKeys, rows, kTileKeys,
               o.key_units, false});
  for (int64_t r = 0; r < rows; r += kGroup) {
    float* const s = scratch.logits[r];
    if (plain)
      softmax.Group<kBf16, false>(begin + r, block, s, (uint16_t*)s, 2 * kTileKeys);
    else
      softmax.Group<kBf16, true>(begin + r, block, s, (uint16_t*)s, 2 * kTileKeys);
  }
  Multiply<T>({(const uint32_t*)logits, kTileKeys, o.values, o.value_width, c.sums.data + begin * c.sums.stride,
               c.sums.stride, end - begin, o.value_width, kTileKeys / Sizes<T>::kNumbers, true});
}

// Enters each range; fn(range, block, rows, plain) for each block of it that some row sees.
template <class Fn>
[[gnu::always_inline]] inline void EachBlock(const TileCall& c, Softmax& softmax, const Fn& fn) {
  EachRange(c, [&](const TileRange& range) {
    softmax.Enter(range);
    const int64_t rows = Min(c.rows, range.row_end);
    if (range.row_begin >= rows) return;
    const Softmax::Sight sight = softmax.Of(range.row_begin, rows);
    for (int64_t block = range.begin / kTileKeys * kTileKeys; block < range.end; block += kTileKeys)
      if (sight.Sees(block)) fn(range, block, rows, softmax.Plain() && sight.SeesAll(block));
  });
}

template <TileType T>
void Attend(const TileCall& c) {
  const FlushToZero flush;
  auto& scratch = *reinterpret_cast<Scratch*>(c.scratch);
  const Sizes<T> sizes(c.layout);
  Softmax softmax(c, scratch.rows);
  EachBlock(c, softmax, [&](const TileRange& range, int64_t block, int64_t rows, bool plain) {
    const int64_t b = block / kTileKeys;
    AttendBlock<T>(c, softmax, scratch,
                   {(const uint32_t*)c.queries, (const uint32_t*)range.keys + b * sizes.KeyBlock(),
                    (const uint32_t*)range.values + b * sizes.ValueBlock(), sizes.units, sizes.value_width},
                   range.row_begin, rows, block, plain);
  });
  softmax.Finish();
}

size_t ScratchBytes(const TileLayout&) { return sizeof(Scratch); }

// Columns [i, i + n) of the products, 64 at a time.
template <TileType T, class Fn>
[[gnu::always_inline]] inline void EachColumns(const TileProducts& c, Scratch& scratch, const Fn& multiply) {
  const int64_t width = Sizes<T>(c.layout).value_width;
  float* const products = scratch.logits[0];
  for (int64_t i = 0; i < width; i += kTileKeys) {
    const int64_t n = Min(kTileKeys, width - i);
    multiply(i, n, products);
    AddWeighted(products, kTileKeys, c.rows, n, c.weights, c.sums.data + i, c.sums.stride);
  }
}

template <TileType T>
void AddProducts(const TileProducts& c) {
  const Sizes<T> sizes(c.layout);
  EachColumns<T>(c, *reinterpret_cast<Scratch*>(c.scratch), [&](int64_t i, int64_t n, float* products) {
    Multiply<T>({(const uint32_t*)c.queries, sizes.units, (const uint32_t*)c.matrix + i, sizes.value_width, products,
                 kTileKeys, c.rows, n, sizes.units, false});
  });
}

// ---- bf16 tiles in f32 arithmetic: a block is widened once for all rows ----

// Rows of n pairs, to = both rows of numbers.
inline void Widen(const uint32_t* from, int64_t n, float* low, float* high) {
  for (int64_t i = 0; i < n; i += kW) {
    const I x = V::LoadI(from + i);
    V::Store(low + i, V::Low(x));
    V::Store(high + i, V::High(x));
  }
}

// Widened queries, keys and values lie after the scratch.
size_t WidenedBytes(const TileLayout& l) {
  const Sizes<TileType::kBf16> sizes(l);
  return sizeof(Scratch) + size_t(2 * kTileKeys * (2 * sizes.units) + kTileKeys * sizes.value_width) * 4;
}

void AddProductsWidened(const TileProducts& c) {
  const Sizes<TileType::kBf16> sizes(c.layout);
  const int64_t dim = 2 * sizes.units;
  float *const queries = (float*)(c.scratch + sizeof(Scratch)), *const columns = queries + kTileRows * dim;
  for (int64_t i = 0; i < kTileRows * dim; i += kW)
    V::Store(queries + i, V::Numbers<RowType::kBf16>(c.queries + 2 * i));
  EachColumns<TileType::kBf16>(c, *reinterpret_cast<Scratch*>(c.scratch), [&](int64_t i, int64_t n, float* products) {
    const auto* from = (const uint32_t*)c.matrix + i;
    for (int64_t u = 0; u < sizes.units; ++u, from += sizes.value_width)
      Widen(from, n, columns + 2 * u * kTileKeys, columns + (2 * u + 1) * kTileKeys);
    Multiply<TileType::kF32>({(const uint32_t*)queries, dim, (const uint32_t*)columns, kTileKeys, products, kTileKeys,
                              c.rows, n, dim, false});
  });
}

void AttendWidened(const TileCall& c) {
  const FlushToZero flush;
  auto& scratch = *reinterpret_cast<Scratch*>(c.scratch);
  const Sizes<TileType::kBf16> sizes(c.layout);
  const int64_t dim = 2 * sizes.units, width = sizes.value_width;
  float* const queries = (float*)(c.scratch + sizeof(Scratch));
  float *const keys = queries + kTileRows * dim, *const values = keys + dim * kTileKeys;
  for (int64_t i = 0; i < kTileRows * dim; i += kW)
    V::Store(queries + i, V::Numbers<RowType::kBf16>(c.queries + 2 * i));
  Softmax softmax(c, scratch.rows);
  EachBlock(c, softmax, [&](const TileRange& range, int64_t block, int64_t rows, bool plain) {
    const auto* k = (const uint32_t*)range.keys + block / kTileKeys * sizes.KeyBlock();
    const auto* v = (const uint32_t*)range.values + block / kTileKeys * sizes.ValueBlock();
    for (int64_t u = 0; u < sizes.units; ++u, k += kTileKeys)
      Widen(k, kTileKeys, keys + 2 * u * kTileKeys, keys + (2 * u + 1) * kTileKeys);
    for (int64_t t = 0; t < kTileKeys; t += 2, v += width)
      Widen(v, width, values + t * width, values + (t + 1) * width);
    AttendBlock<TileType::kF32>(c, softmax, scratch,
                                {(const uint32_t*)queries, (const uint32_t*)keys, (const uint32_t*)values, dim, width},
                                range.row_begin, rows, block, plain);
  });
  softmax.Finish();
}
