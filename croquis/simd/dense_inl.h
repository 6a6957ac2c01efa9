// The loops of the dense kernels, written in the vectors `V` of one instruction set. Included inside the anonymous
// namespace of dense_avx2.cc and dense_avx512.cc, after V, so that each keeps machine code of its own. No shared inline
// function (std::min, MatView::Row) is called here: the linker could pick this instruction set's copy for other files.
//
// Two shapes of loop. Few query rows (decode) are bound by memory: a token's row is read once, converted in registers
// and used by 4 query rows at a time, and prefetching runs ahead of it. Many query rows (prefill) are bound by
// arithmetic: k or v is converted once into a panel that stays in cache, and a register-blocked product runs over it.

using F = V::F;
constexpr int kW = V::kW;
constexpr int kTokens = V::kTokens;
constexpr int kRows = 4;             // query rows that share the registers of the few-rows loops
constexpr int64_t kFewRows = 8;      // more rows than this take the panel
constexpr int64_t kTokenBlock = 16;  // tokens that stay in the first cache while all groups of rows pass over them
constexpr int64_t kPanelCols = 64;   // a panel is [kPanelDepth, kPanelCols] floats: 32 KiB
constexpr int64_t kPanelDepth = 128;
constexpr int64_t kAheadBytes = 3072;  // prefetch distance: 12 tokens of 128 numbers of 16 bits (8 to 16 are as good)

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls fn.template operator()<n>() for n = 1..kMax, n given at run time.
template <int kMax, class Fn>
inline void WithConstant(int64_t n, const Fn& fn) {
  if constexpr (kMax > 1)
    if (n < kMax) return WithConstant<kMax - 1>(n, fn);
  fn.template operator()<kMax>();
}

// Asks for the bytes at p + ahead, which may lie past the end of what the caller owns: the address is only a number.
inline void Prefetch(const std::byte* p, int64_t ahead, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const void*)(uintptr_t(p) + uintptr_t(ahead + i)), 0, 3);
}

// Distance in bytes at which rows `stride` apart and `bytes` long are prefetched: whole rows, at least 4.
inline int64_t Ahead(int64_t bytes, int64_t stride) {
  const int64_t rows = kAheadBytes / (bytes + 1) + 1;
  return (rows < 4 ? 4 : rows) * stride;
}

// ---- few rows ----

// R <= 4 query rows against at most kTokenBlock tokens. Tokens past the end repeat the last one, so that a token's
// sum does not depend on its place in the block.
template <class K, int R>
inline void ScoreBlock(const float* q, int64_t ldq, int64_t dim, const std::byte* k, int64_t stride, int64_t tokens,
                       float* out, int64_t ldo, int64_t ahead) {
  const int64_t full = dim / kW * kW;
  for (int64_t t = 0; t < tokens; t += kTokens) {
    const std::byte* x[kTokens];
    F a[R][kTokens];
#pragma GCC unroll 4
    for (int j = 0; j < kTokens; ++j) {
      x[j] = k + Min(t + j, tokens - 1) * stride;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) a[r][j] = V::Zero();
    }
    int64_t i = 0;
    for (; i < full; i += kW) {
      F y[kTokens];
#pragma GCC unroll 4
      for (int j = 0; j < kTokens; ++j) {
        y[j] = K::Load(x[j] + i * K::kBytes);
        // Spread out: all lines of the rows asked for at once fill the line buffers and stall (66 % against 90 % of
        // the machine's bandwidth).
        Prefetch(x[j] + i * K::kBytes, ahead, 1);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const F z = V::Load(q + r * ldq + i);
#pragma GCC unroll 4
        for (int j = 0; j < kTokens; ++j) a[r][j] = V::Fma(y[j], z, a[r][j]);
      }
    }
    if (i < dim) {
      for (int j = 0; j < kTokens; ++j) {
        const F y = K::LoadN(x[j] + i * K::kBytes, dim - i);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) a[r][j] = V::Fma(y, V::LoadN(q + r * ldq + i, dim - i), a[r][j]);
      }
    }
    V::StoreSums<R>(a, out + t, ldo, Min(kTokens, tokens - t));
  }
}

template <class K>
inline void ScoreFew(MatView<const float> q, const std::byte* k, int64_t stride, int64_t tokens, float* out,
                     int64_t ldo) {
  const int64_t ahead = Ahead(q.cols * K::kBytes, stride);
  for (int64_t t = 0; t < tokens; t += kTokenBlock)
    for (int64_t r = 0; r < q.rows; r += kRows)
      WithConstant<kRows>(Min(q.rows - r, kRows), [&]<int R>() {
        ScoreBlock<K, R>(q.data + r * q.stride, q.stride, q.cols, k + t * stride, stride, Min(kTokenBlock, tokens - t),
                         out + r * ldo + t, ldo, r == 0 ? ahead : 0);
      });
}

// R <= 4 rows of acc, NV vectors wide: acc += scale * sum_t p[t] * v[t]. kTail: NV = 1 and only n lanes of it. Not
// inlined: what the strips of a caller need before their loops would be made ready for all of them at every block.
template <class K, int R, int NV, bool kTail>
[[gnu::noinline]] void AccumulateBlock(const float* p, int64_t ldp, const float* scale, const std::byte* v,
                                       int64_t stride, int64_t tokens, float* acc, int64_t lda, int64_t ahead,
                                       int64_t n) {
  F a[R][NV];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) a[r][j] = V::Zero();
  for (int64_t t = 0; t < tokens; ++t, v += stride) {
    if (ahead) Prefetch(v, ahead, NV * kW * K::kBytes);
    F x[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) x[j] = kTail ? K::LoadN(v, n) : K::Load(v + j * kW * K::kBytes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F w = V::Set(p[r * ldp + t]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) a[r][j] = V::Fma(x[j], w, a[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      float* o = acc + r * lda + j * kW;
      if constexpr (kTail)
        V::StoreN(o, V::Fma(a[r][j], V::Set(scale[r]), V::LoadN(o, n)), n);
      else
        V::Store(o, V::Fma(a[r][j], V::Set(scale[r]), V::Load(o)));
    }
}

// One block of tokens, R rows, all dims; `ahead` 0: no prefetch.
template <class K, int R>
inline void AccumulateTokens(const float* p, int64_t ldp, const float* scale, const std::byte* v, int64_t stride,
                             int64_t tokens, float* acc, int64_t lda, int64_t dim, int64_t ahead) {
  int64_t i = 0;
  // A line is asked for by the strip that holds its first byte.
  const auto at = [&](int64_t j) { return j * K::kBytes % 64 == 0 ? ahead : 0; };
  const auto strip = [&]<int NV>() {
    for (; i + NV * kW <= dim; i += NV * kW)
      AccumulateBlock<K, R, NV, false>(p, ldp, scale, v + i * K::kBytes, stride, tokens, acc + i, lda, at(i), kW);
  };
  strip.template operator()<V::kNv>();
  if constexpr (V::kNv > 2) strip.template operator()<2>();
  strip.template operator()<1>();
  if (i < dim)
    AccumulateBlock<K, R, 1, true>(p, ldp, scale, v + i * K::kBytes, stride, tokens, acc + i, lda, at(i), dim - i);
}

template <class K>
inline void AccumulateFew(const float* p, int64_t ldp, const float* scale, int64_t rows, const std::byte* v,
                          int64_t stride, int64_t tokens, MatView<float> acc) {
  const int64_t ahead = Ahead(acc.cols * K::kBytes, stride);
  for (int64_t t = 0; t < tokens; t += kTokenBlock)
    for (int64_t r = 0; r < rows; r += kRows)
      WithConstant<kRows>(Min(rows - r, kRows), [&]<int R>() {
        AccumulateTokens<K, R>(p + r * ldp + t, ldp, scale + r, v + t * stride, stride, Min(kTokenBlock, tokens - t),
                               acc.data + r * acc.stride, acc.stride, acc.cols, r == 0 ? ahead : 0);
      });
}

// ---- many rows: C = (add ? C : 0) + scale * A B ----

struct Product {
  const float* a;  // [m, k]
  int64_t lda;
  const float* b;  // [k, n]
  int64_t ldb;
  float* c;  // [m, n]
  int64_t ldc;
  int64_t m, n, k;
  const float* scale;  // [m], or null for 1
  bool add;
};

// MR rows from `row`, NV vectors of columns from `col`; kTail: the last n - col < kW columns.
template <int MR, int NV, bool kTail>
inline void Micro(const Product& g, int64_t row, int64_t col) {
  const int64_t n = g.n - col;
  const float* a = g.a + row * g.lda;
  const float* b = g.b + col;
  F s[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) s[r][j] = V::Zero();
  for (int64_t l = 0; l < g.k; ++l, ++a, b += g.ldb) {
    F y[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) y[j] = kTail ? V::LoadN(b, n) : V::Load(b + j * kW);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const F x = V::Set(a[r * g.lda]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) s[r][j] = V::Fma(x, y[j], s[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
    const F scale = V::Set(g.scale ? g.scale[row + r] : 1.f);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      float* o = g.c + (row + r) * g.ldc + col + j * kW;
      if constexpr (kTail)
        V::StoreN(o, V::Fma(s[r][j], scale, g.add ? V::LoadN(o, n) : V::Zero()), n);
      else
        V::Store(o, V::Fma(s[r][j], scale, g.add ? V::Load(o) : V::Zero()));
    }
  }
}

template <int NV, bool kTail>
inline void Strip(const Product& g, int64_t col) {
  for (int64_t i = 0; i < g.m; i += V::kMr)
    WithConstant<V::kMr>(Min(g.m - i, V::kMr), [&]<int MR>() { Micro<MR, NV, kTail>(g, i, col); });
}

inline void Multiply(const Product& g) {
  int64_t col = 0;
  for (; col + V::kNv * kW <= g.n; col += V::kNv * kW) Strip<V::kNv, false>(g, col);
  if constexpr (V::kNv > 2)
    for (; col + 2 * kW <= g.n; col += 2 * kW) Strip<2, false>(g, col);
  for (; col + kW <= g.n; col += kW) Strip<1, false>(g, col);
  if (col < g.n) Strip<1, true>(g, col);
}

// panel[i][t] = k[t][i] for n tokens and `depth` dims; columns up to the next multiple of kW repeat the last token.
template <class K>
inline void TransposeToPanel(const std::byte* k, int64_t stride, int64_t n, int64_t depth, int64_t ahead,
                             float* panel) {
  for (int64_t t = 0; t < n; t += kW) {
    const std::byte* x[kW];
    for (int j = 0; j < kW; ++j) {
      x[j] = k + Min(t + j, n - 1) * stride;
      Prefetch(x[j], ahead, depth * K::kBytes);
    }
    for (int64_t i = 0; i < depth; i += kW) {
      F y[kW];
      if (i + kW <= depth) {
#pragma GCC unroll 16
        for (int j = 0; j < kW; ++j) y[j] = K::Load(x[j] + i * K::kBytes);
      } else {
        for (int j = 0; j < kW; ++j) y[j] = K::LoadN(x[j] + i * K::kBytes, depth - i);
      }
      V::StoreTransposed(y, panel + i * kPanelCols + t, kPanelCols, Min(kW, depth - i));
    }
  }
}

template <class K>
inline void ScoreMany(MatView<const float> q, const std::byte* k, int64_t stride, int64_t tokens, float* logits,
                      int64_t ldl) {
  alignas(64) float panel[kPanelDepth * kPanelCols];
  const int64_t ahead = Ahead(q.cols * K::kBytes, stride);
  for (int64_t t = 0; t < tokens; t += kPanelCols) {
    const int64_t n = Min(kPanelCols, tokens - t);
    for (int64_t i = 0; i < q.cols; i += kPanelDepth) {
      const int64_t depth = Min(kPanelDepth, q.cols - i);
      TransposeToPanel<K>(k + t * stride + i * K::kBytes, stride, n, depth, ahead, panel);
      Multiply({q.data + i, q.stride, panel, kPanelCols, logits + t, ldl, q.rows, n, depth, nullptr, i > 0});
    }
  }
}

template <class K>
inline void AccumulateMany(const float* p, int64_t ldp, const float* scale, int64_t rows, const std::byte* v,
                           int64_t stride, int64_t tokens, MatView<float> acc) {
  alignas(64) float panel[kPanelDepth * kPanelCols];
  const int64_t ahead = Ahead(acc.cols * K::kBytes, stride);
  for (int64_t t = 0; t < tokens; t += kPanelDepth) {
    const int64_t depth = Min(kPanelDepth, tokens - t);
    for (int64_t i = 0; i < acc.cols; i += kPanelCols) {
      const int64_t n = Min(kPanelCols, acc.cols - i);
      for (int64_t l = 0; l < depth; ++l) {
        const std::byte* x = v + (t + l) * stride + i * K::kBytes;
        Prefetch(x, ahead, n * K::kBytes);
        int64_t j = 0;
        for (; j + kW <= n; j += kW) V::Store(panel + l * kPanelCols + j, K::Load(x + j * K::kBytes));
        if (j < n) V::Store(panel + l * kPanelCols + j, K::LoadN(x + j * K::kBytes, n - j));
      }
      Multiply({p + t, ldp, panel, kPanelCols, acc.data + i, acc.stride, rows, n, depth, scale, true});
    }
  }
}

// ---- the interface ----

template <class Fn>
inline void WithRowType(RowType type, const Fn& fn) {
  switch (type) {
    case RowType::kF32:
      return fn.template operator()<V::F32Row>();
    case RowType::kF16:
      return fn.template operator()<V::F16Row>();
    case RowType::kBf16:
      return fn.template operator()<V::Bf16Row>();
  }
}

void ScoreRows(RowType type, MatView<const float> q, const std::byte* k, int64_t stride_bytes, int64_t tokens,
               float* logits, int64_t logit_stride) {
  WithRowType(type, [&]<class K>() {
    if (q.rows <= kFewRows)
      ScoreFew<K>(q, k, stride_bytes, tokens, logits, logit_stride);
    else
      ScoreMany<K>(q, k, stride_bytes, tokens, logits, logit_stride);
  });
}

void AccumulateRows(RowType type, const float* p, int64_t p_stride, const float* p_scale, int64_t rows,
                    const std::byte* v, int64_t stride_bytes, int64_t tokens, MatView<float> acc) {
  WithRowType(type, [&]<class K>() {
    if (rows <= kFewRows)
      AccumulateFew<K>(p, p_stride, p_scale, rows, v, stride_bytes, tokens, acc);
    else
      AccumulateMany<K>(p, p_stride, p_scale, rows, v, stride_bytes, tokens, acc);
  });
}

void SmallGemm(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n,
               int64_t k) {
  Multiply({a, lda, b, ldb, c, ldc, m, n, k, nullptr, true});
}

// 2^d for d <= 0; zero below 2^-126, where results would be denormal and slow.
inline F Exp2OrZero(F d) {
  const F low = V::Set(-126.f);
  return V::ZeroBelow(Exp2<V>(V::Max(d, low)), d, low);
}

// R <= 4 rows side by side, and of few rows kChains vectors of each: what a page's 128 logits cost one after the other
// is latency. Calls fn(row, chain, where) for every whole vector of n numbers a row.
template <int R>
struct RowTile {
  static constexpr int kChains = 4 / R;
  template <class Fn>
  [[gnu::always_inline]] static inline void EachVector(float* x, int64_t stride, int64_t n, const Fn& fn) {
    const int64_t full = n / kW * kW, whole = n / (kChains * kW) * (kChains * kW);
    int64_t i = 0;
    for (; i < whole; i += kChains * kW)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) fn(r, c, x + r * stride + i + c * kW);
    for (; i < full; i += kW)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) fn(r, 0, x + r * stride + i);
  }

  // x = exp2(r, x) for n numbers of every row; sum[r]: their sums. A last, partial vector is filled up with masked
  // logits.
  template <class Fn>
  [[gnu::always_inline]] static inline void Weigh(float* x, int64_t stride, int64_t n, const Fn& exp2, float* sum) {
    F total[R][kChains];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) total[r][c] = V::Zero();
    EachVector(
        x, stride, n, [&](int r, int c, float* at) __attribute__((always_inline)) {
          const F e = exp2(r, V::Load(at));
          V::Store(at, e);
          total[r][c] = V::Add(total[r][c], e);
        });
    const int64_t full = n / kW * kW;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (full < n) {
        float* const rest = x + r * stride + full;
        const F e = exp2(r, LoadRest(rest, n - full));
        V::StoreN(rest, e, n - full);
        total[r][0] = V::Add(total[r][0], e);
      }
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[r][0] = V::Add(total[r][0], total[r][c]);
      sum[r] = V::Sum(total[r][0]);
    }
  }

  static inline F LoadRest(const float* x, int64_t n) {
    alignas(64) float rest[kW];
    for (int64_t j = 0; j < kW; ++j) rest[j] = j < n ? x[j] : kMasked;
    return V::Load(rest);
  }
};

template <int R>
inline void SoftmaxRows(float* x, int64_t stride, int64_t n, float* max, float* sum) {
  using Tile = RowTile<R>;
  const int64_t full = n / kW * kW;
  F top[R][Tile::kChains], t[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < Tile::kChains; ++c) top[r][c] = V::Set(kMasked);
    if (full < n) top[r][0] = V::Max(top[r][0], Tile::LoadRest(x + r * stride + full, n - full));
  }
  Tile::EachVector(
      x, stride, n, [&](int r, int c, const float* at) __attribute__((always_inline)) {
        top[r][c] = V::Max(top[r][c], V::Load(at));
      });
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 1; c < Tile::kChains; ++c) top[r][0] = V::Max(top[r][0], top[r][c]);
    max[r] = V::MaxOf(top[r][0]);
    if (max[r] <= kMasked / 2) max[r] = kMasked;
    // Everything masked: far above it, so that all weights are zero.
    t[r] = V::Set(max[r] == kMasked ? 0.f : max[r]);
  }
  Tile::Weigh(
      x, stride, n, [&](int r, F v) __attribute__((always_inline)) { return Exp2OrZero(V::Sub(v, t[r])); }, sum);
}

void SoftmaxTiles(float* x, int64_t stride, int64_t rows, int64_t n, float* max, float* sum) {
  for (int64_t r = 0; r < rows; r += kRows)
    WithConstant<kRows>(Min(rows - r, kRows),
                        [&]<int R>() { SoftmaxRows<R>(x + r * stride, stride, n, max + r, sum + r); });
}

template <int R>
inline void Exp2Rows(float* x, int64_t stride, int64_t n, const float* at, float* sum) {
  const F low = V::Set(-126.f), high = V::Set(126.f);
  F t[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) t[r] = V::Set(at[r]);
  RowTile<R>::Weigh(
      x, stride, n,
      [&](int r, F v) __attribute__((always_inline)) {
        F d = V::Max(V::Sub(v, t[r]), low);
        if constexpr (!V::kRaiseSaturates) d = V::Min(d, high);
        return Exp2<V>(d);
      },
      sum);
}

void Exp2Tiles(float* x, int64_t stride, int64_t rows, int64_t n, const float* at, float* sum) {
  for (int64_t r = 0; r < rows; r += kRows)
    WithConstant<kRows>(Min(rows - r, kRows),
                        [&]<int R>() { Exp2Rows<R>(x + r * stride, stride, n, at + r, sum + r); });
}

void ScaleInPlace(float* x, int64_t n, float s) {
  int64_t i = 0;
  for (; i + kW <= n; i += kW) V::Store(x + i, V::Mul(V::Load(x + i), V::Set(s)));
  for (; i < n; ++i) x[i] *= s;
}

void AddTo(const float* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kW <= n; i += kW) V::Store(y + i, V::Add(V::Load(x + i), V::Load(y + i)));
  for (; i < n; ++i) y[i] += x[i];
}

bool AllBelow(const float* x, int64_t n, float limit) {
  const F bound = V::Set(limit < __FLT_MAX__ ? limit : __FLT_MAX__);
  int64_t i = 0;
  for (; i + kW <= n; i += kW)
    if (!V::AllAbsAtMost(V::Load(x + i), bound)) return false;
  return i == n || V::AllAbsAtMost(V::LoadN(x + i, n - i), bound);
}
