// The quantised tile kernels in the vectors V and Q of one instruction set. Included after tile_inl.h.

// ---- rounding ----

template <bool kWide>
float RoundRowAs(const float* x, int64_t n, float most, std::byte* out) {
  const auto at = [&](int64_t i) { return i + kW <= n ? V::Load(x + i) : V::LoadN(x + i, Max(0, n - i)); };
  F top = V::Zero();
  for (int64_t i = 0; i < n; i += kW) {
    const F d = at(i);
    top = V::Max(top, V::Max(d, V::Sub(V::Zero(), d)));
  }
  const float largest = V::MaxOf(top);
  const bool zeros = largest < kQuantisedSmallest;
  const F inverse = V::Set(zeros ? 0 : most / largest);
  for (int64_t i = 0; i < RoundUp(n, 16); i += kW) {
    const I number = V::ToInt(V::Mul(at(i), inverse));
    if constexpr (kWide)
      Q::StoreHalves(out + 2 * i, number);
    else
      Q::StoreBytes(out + i, number);
  }
  return zeros ? 0 : largest / most;
}

float RoundRow(const float* x, int64_t n, bool wide, int most, std::byte* out) {
  return wide ? RoundRowAs<true>(x, n, float(most), out) : RoundRowAs<false>(x, n, float(most), out);
}

template <bool kNarrow>
void PackValuesAs(const QuantisedLayout& layout, const float* v, const float* center, int64_t keys, float* scale,
                  uint32_t* out) {
  constexpr int kTogether = kNarrow ? 4 : 2;
  const int64_t width = RoundUp(layout.value_dim, 16);
  const float most = float(!kNarrow ? 4095 : layout.wide ? kQuantisedFewValues : 127);
  for (int64_t i = 0; i < width; i += kW) {
    const F mean = V::Load(center + i);
    F top = V::Zero();
    for (int64_t t = 0; t < keys; ++t) {
      const F d = V::Sub(V::Load(v + t * width + i), mean);
      top = V::Max(top, V::Max(d, V::Sub(V::Zero(), d)));
    }
    alignas(64) float largest[kW], inverse[kW];
    V::Store(largest, top);
    for (int j = 0; j < kW; ++j) {
      const bool zeros = largest[j] < kQuantisedSmallest;
      inverse[j] = zeros ? 0 : most / largest[j], scale[i + j] = zeros ? 0 : largest[j] / most;
    }
    const F factor = V::Load(inverse);
    const auto number = [&](int64_t t) {
      return t < keys ? V::ToInt(V::Mul(V::Sub(V::Load(v + t * width + i), mean), factor)) : V::ZeroI();
    };
    for (int64_t t = 0; t < kTileKeys; t += kTogether) {
      uint32_t* const to = out + t / kTogether * width + i;
      if constexpr (kNarrow)
        V::StoreI(to, Q::Join(number(t), number(t + 1), number(t + 2), number(t + 3)));
      else
        V::StoreI(to, Q::Join(number(t), number(t + 1)));
    }
  }
}

void PackValues(const QuantisedLayout& layout, const float* v, const float* center, int64_t keys, float* scale,
                std::byte* values) {
  if (layout.narrow)
    PackValuesAs<true>(layout, v, center, keys, scale, (uint32_t*)values);
  else
    PackValuesAs<false>(layout, v, center, keys, scale, (uint32_t*)values);
}

// ---- products ----

// Operands of an integer product: units of 32 bits.
struct IntProduct {
  const uint32_t* a;  // [m, k]
  int64_t lda;
  const uint32_t* b;  // [k, n]
  int64_t ldb;
  const int32_t* order;  // which row of b each column of a meets, times ldb; null: the same
  int64_t m, n, k;
  const int32_t* start;  // [n] added to every row, or null
};

// MR rows after MR rows from `row` on, as many as are left, of NV vectors of columns from `col`; store(row, column,
// sums). Returns the first row that is left.
template <bool kBytes, bool kOrder, int MR, int NV, class Ops, class Store>
[[gnu::noinline]] int64_t IntRows(const IntProduct& g, int64_t row, int64_t col, Store store) {
  constexpr bool kPairs = kBytes && Ops::kPairs;
  const uint32_t* const b = g.b + col;
  const int64_t lda = g.lda, ldb = g.ldb, k = g.k, m = g.m;
  const int32_t* const order = g.order;
  alignas(64) static constexpr int32_t kZeros[NV * kW] = {};
  const int32_t* const start = g.start != nullptr ? g.start + col : kZeros;
  for (; row + MR <= m; row += MR) {
    const uint32_t* const a = g.a + row * lda;
    I s[MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) s[r][j] = V::LoadI(start + j * kW);
#pragma GCC unroll Q::kUnroll
    for (int64_t l = 0; l < (kPairs ? k / 2 : k); ++l) {
      const uint32_t* const y = b + (kOrder ? order[l] : l * ldb);
      const uint32_t* const z = kPairs ? b + order[k / 2 + l] : nullptr;
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const I x = V::SpreadI(a + l + r * lda);
        if constexpr (kPairs) {
          const I w = V::SpreadI(a + k / 2 + l + r * lda);
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) Ops::DotPair(s[r][j], x, V::LoadI(y + j * kW), w, V::LoadI(z + j * kW));
        } else {
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) Q::Dot<kBytes>(s[r][j], x, V::LoadI(y + j * kW));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) store(row + r, col, s[r]);
  }
  return row;
}

template <bool kBytes, bool kOrder, int NV, class Store>
void IntStrip(const IntProduct& g, int64_t col, const Store& store) {
  constexpr int kRows = kBytes ? Q::kByteRows : Q::kRows;
  int64_t row = IntRows<kBytes, kOrder, kRows, NV, Q>(g, 0, col, store);
  if (kRows > 4 && row + 4 <= g.m) row = IntRows<kBytes, kOrder, 4, NV, Q>(g, row, col, store);
  if (row + 2 <= g.m) row = IntRows<kBytes, kOrder, 2, NV, Q>(g, row, col, store);
  if (row < g.m) IntRows<kBytes, kOrder, 1, NV, Q>(g, row, col, store);
}

template <bool kBytes, bool kOrder, class Store>
void IntMultiply(const IntProduct& g, const Store& store) {
  int64_t col = 0;
  for (; col + V::kNv * kW <= g.n; col += V::kNv * kW) IntStrip<kBytes, kOrder, V::kNv>(g, col, store);
  for (; col < g.n; col += kW) IntStrip<kBytes, kOrder, 1>(g, col, store);
}

// What becomes of dot products: logits, or values' sums. Copied into the loops, which then know that nothing changes.
struct StoreLogits {
  float* logits;  // [kTileRows][kTileKeys]
  const float *row_scale, *key_scale, *bias;
  template <int NV>
  [[gnu::always_inline]] void operator()(int64_t r, int64_t col, const I (&dots)[NV]) const {
    const F scale = V::Set(row_scale[r]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const int64_t at = col + j * kW;
      const F x = V::Mul(V::ToFloat(dots[j]), V::Load(key_scale + at));
      V::Store(logits + r * kTileKeys + at, V::Fma(x, scale, V::Load(bias + at)));
    }
  }
};
struct AddValues {
  float* sums;
  int64_t stride;
  const float *unit, *scale;
  template <int NV>
  [[gnu::always_inline]] void operator()(int64_t r, int64_t col, const I (&dots)[NV]) const {
    const F factor = V::Set(unit[r]);
    float* const sum = sums + r * stride + col;
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const F x = V::Mul(V::ToFloat(dots[j]), V::Load(scale + col + j * kW));
      V::Store(sum + j * kW, V::Fma(x, factor, V::Load(sum + j * kW)));
    }
  }
};

// ---- weights ----

// x, from where the compiler does not see that it is a constant: g++ 12 would make it anew in every turn of a loop.
[[gnu::always_inline]] inline I Kept(I x) {
  asm("" : "+v"(x));
  return x;
}
inline I Kept16(double x) { return Kept(Q::Set16(uint16_t(x))); }

// Powers of two in lanes of 16 bits.
struct Exponential {
  I step = Kept16(0xffff), first = Kept16(kQuantisedExp[1] * 65536), second = Kept16(kQuantisedExp[2] * 65536),
    third = Kept16(kQuantisedExp[3] * 65536);
  Q::Raiser raiser;
  // 2^(u / 2048) / kQuantisedExp[0] with 15 bits after the point, in steps of it; u <= 0, and 0 is taken for -1.
  [[gnu::always_inline]] I operator()(I u) const {
    u = Q::AddSaturated(u, step);
    const I f = Q::ShiftUp5(u);
    I rest = Q::Add16(Q::MultiplyHigh(f, third), second);
    rest = Q::MultiplyHigh(Q::Add16(Q::MultiplyHigh(rest, f), first), f);
    return raiser(Q::Average(rest, step), u);
  }
};

// Order in which a row of weights comes out: groups of four keys.
constexpr int64_t GroupAt(bool narrow, int64_t i) {
  const int64_t lanes = kW / 4, vectors = narrow ? 4 : 2, in = i % (vectors * lanes);
  return i - in + in % vectors * lanes + in / vectors;
}

struct QuantisedScratch {
  Rows rows;
  alignas(64) float logits[kTileRows][kTileKeys];  // times kQuantisedStep
  alignas(64) uint16_t weights[kTileRows][kTileKeys];
  alignas(64) int32_t sums[kTileRows][kW];  // of powers
  // Largest logits times kQuantisedStep, largest sums of four powers, levels of weights, what a unit of the powers and
  // of the weights is worth.
  alignas(64) float top[kTileRows], four[kTileRows], levels[kTileRows], power_unit[kTileRows], unit[kTileRows];
  alignas(64) int32_t levels_twice[kTileRows];              // in both halves
  alignas(64) float key_scale[kTileKeys], bias[kTileKeys];  // times kQuantisedStep
};
static_assert(sizeof(QuantisedScratch) <= kQuantisedScratch);

// A tile's softmax: logits become weights of 16 or 8 bits, relative to the largest logit of the row's block of keys.
template <bool kNarrow, class Ops>
class Weights {
 public:
  Weights(const QuantisedCall& c, QuantisedScratch& scratch, Softmax& softmax)
      : c_(c), scratch_(scratch), softmax_(softmax) {
    __builtin_memset(scratch_.top, 0, sizeof scratch_.top);
    __builtin_memset(scratch_.four, 0, sizeof scratch_.four);
    for (float& x : scratch_.levels) x = kLevels;
  }

  // The weights of a block, and in unit[r] what one of them is worth.
  void Block(int64_t block, bool masked) {
    for (int64_t r = 0; r < c_.rows; ++r) {
      if (masked) Mask(r, block);
      Top(r);
    }
    for (int64_t r = 0; r < c_.rows; ++r) Row(r);
    if constexpr (kPairs) {
      constexpr float kAllowed = (kQuantisedFour - 4) * 32768.f;
      for (int64_t r = 0; r < c_.rows; r += kW) {
        const I n = V::ToInt(V::Min(Q::Divide(V::Set(kAllowed), V::Load(scratch_.four + r)), V::Set(kLevels)));
        V::Store(scratch_.levels + r, V::ToFloat(n));
        V::StoreI(scratch_.levels_twice + r, Q::Join(n, n));
      }
      for (int64_t r = 0; r < c_.rows; ++r) Round(r);
    }
    // Powers are a step too small and their polynomial by its first factor.
    constexpr auto kWorth = float(1.00033850805268231 * kQuantisedExp[0]);
    for (int64_t r = 0; r < c_.rows; r += kW) {
      const F local = V::Mul(V::Load(scratch_.top + r), V::Set(1 / kQuantisedStep));
      if (V::AnyAbove(local, V::Load(scratch_.rows.limit + r))) [[unlikely]] {
        for (int64_t i = r; i < Min(c_.rows, r + kW); ++i) softmax_.Grow(i, scratch_.top[i] * (1 / kQuantisedStep));
      }
      const F unit = V::Mul(Weight<false>(local, V::Set(1), V::Load(scratch_.rows.reference + r)), V::Set(kWorth));
      V::Store(scratch_.power_unit + r, V::Mul(unit, V::Set(1.f / 32768)));
      V::Store(scratch_.unit + r, Q::Divide(unit, V::Load(scratch_.levels + r)));
    }
    for (int64_t r = 0; r < c_.rows; ++r) {
      float* const mass = scratch_.rows.mass[r];
      const F sum = V::ToFloat(V::LoadI(scratch_.sums[r]));
      V::Store(mass, V::Fma(sum, V::Set(scratch_.power_unit[r]), V::Load(mass)));
    }
  }

 private:
  // The largest logit of a row. For all rows before their weights, so that one row does not wait for the other.
  [[gnu::always_inline]] void Top(int64_t r) {
    const float* const s = scratch_.logits[r];
    F x[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) x[j] = V::Load(s + j * kW);
#pragma GCC unroll 3
    for (int n = kVectors / 2; n > 0; n /= 2)
#pragma GCC unroll 4
      for (int j = 0; j < n; ++j) x[j] = V::Max(x[j], x[j + n]);
    const float top = Q::First(V::Max(Q::Largest(x[0]), V::Set(kMasked / 2 * kQuantisedStep)));
    scratch_.top[r] = top;  // nothing seen: weights are zeros
  }
  [[gnu::always_inline]] static I Distance(const float* s, F top) { return V::ToInt(V::Sub(V::Load(s), top)); }
  [[gnu::always_inline]] void Row(int64_t r) {
    const float* const s = scratch_.logits[r];
    const F top = V::Set(scratch_.top[r]);
    I power[kVectors / 2];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors / 2; ++j)
      power[j] = exponential_(Q::Narrow(Distance(s + 2 * j * kW, top), Distance(s + (2 * j + 1) * kW, top)));
    if constexpr (kPairs) {  // rounded when the levels of all rows are known
      V::StoreI(scratch_.sums[r], Ops::SumFours(power, scratch_.four + r));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors / 2; ++j) V::StoreI(scratch_.weights[r] + j * 2 * kW, power[j]);
    } else {
      I sum = Q::SumHalves(power[0]);
#pragma GCC unroll 4
      for (int j = 1; j < kVectors / 2; ++j) sum = V::AddI(sum, Q::SumHalves(power[j]));
      V::StoreI(scratch_.sums[r], sum);
      StoreRounded(r, power, levels_);
    }
  }
  // Powers of a row, where its weights of 16 bits would stand, become weights of 8. In the order of rows: the new rows
  // take the places of old ones before them.
  [[gnu::always_inline]] void Round(int64_t r) {
    I power[kVectors / 2];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors / 2; ++j) power[j] = V::LoadI(scratch_.weights[r] + j * 2 * kW);
    StoreRounded(r, power, V::SpreadI((const uint32_t*)scratch_.levels_twice + r));
  }
  [[gnu::always_inline]] void StoreRounded(int64_t r, I (&power)[kVectors / 2], I levels) {
    auto* const out = (std::byte*)scratch_.weights + r * kTileKeys * (kNarrow ? 1 : 2);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors / 2; ++j) power[j] = Q::MultiplyRound(power[j], levels);
    constexpr int kBytes = 4 * kW;
    if constexpr (kNarrow) {
#pragma GCC unroll 2
      for (int j = 0; j < kVectors / 4; ++j)
        V::StoreI(out + j * kBytes, Q::NarrowBytes(power[2 * j], power[2 * j + 1]));
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < kVectors / 2; ++j) V::StoreI(out + j * kBytes, power[j]);
    }
  }
  [[gnu::noinline]] void Mask(int64_t r, int64_t block) {
    for (int j = 0; j < kVectors; ++j) {
      float* const s = scratch_.logits[r] + j * kW;
      const int64_t key = block + j * kW;
      const F x = V::Within(V::Mul(V::Load(s), V::Set(1 / kQuantisedStep)), scratch_.rows.first[r] - key,
                            scratch_.rows.last[r] - key);
      V::Store(s, V::Mul(x, V::Set(kQuantisedStep)));
    }
  }

  const QuantisedCall& c_;
  QuantisedScratch& scratch_;
  Softmax& softmax_;
  static constexpr bool kPairs = kNarrow && Ops::kPairs;
  static constexpr int kLevels = kNarrow ? 255 : 4095;
  Exponential exponential_;
  I levels_ = Kept16(kLevels);
};

// ---- tiles ----

template <bool kNarrow>
void AttendAs(const QuantisedCall& c) {
  const FlushToZero flush;
  auto& scratch = *reinterpret_cast<QuantisedScratch*>(c.scratch);
  constexpr bool kWide = Q::kWide;
  constexpr int64_t kNumbers = kWide ? 2 : 4, kTogether = kNarrow ? 4 : 2, kValueRows = kTileKeys / kTogether;
  const int64_t units = (c.layout.dim + kNumbers - 1) / kNumbers, width = RoundUp(c.layout.value_dim, 16);
  TileCall tile;  // the softmax's view of it
  tile.layout.value_dim = c.layout.value_dim;
  tile.rows = c.rows;
  tile.begin = c.begin, tile.end = c.end;
  tile.first = c.first, tile.last = c.last;
  tile.max = c.max, tile.mass = c.mass, tile.sums = c.sums;
  Softmax softmax(tile, scratch.rows);
  const Softmax::Sight sight = softmax.Of(0, c.rows);
  Weights<kNarrow, Q> weights(c, scratch, softmax);
  int32_t order[kValueRows];
  for (int64_t i = 0; i < kValueRows; ++i)
    order[i] = int32_t((GroupAt(kNarrow, i * kTogether / 4) * 4 / kTogether + i % (4 / kTogether)) * width);
  for (int64_t block = c.begin / kTileKeys * kTileKeys; block < c.end; block += kTileKeys) {
    if (!sight.Sees(block)) continue;
    const int64_t b = block / kTileKeys;
    const float *const value_scale = c.value_scale + b * width, *bias = c.bias;
    for (int64_t j = 0; j < kTileKeys; j += kW) {
      V::Store(scratch.key_scale + j, V::Mul(V::Load(c.key_scale + block + j), V::Set(kQuantisedStep)));
      V::Store(scratch.bias + j,
               bias == nullptr ? V::Zero() : V::Mul(V::Load(bias + block - c.bias_first + j), V::Set(kQuantisedStep)));
    }
    IntMultiply<!kWide, false>({(const uint32_t*)c.queries, units, (const uint32_t*)c.keys + b * units * kTileKeys,
                                kTileKeys, nullptr, c.rows, kTileKeys, units, kWide ? nullptr : c.key_offset + block},
                               StoreLogits{scratch.logits[0], c.row_scale, scratch.key_scale, scratch.bias});
    weights.Block(block, !sight.SeesAll(block));
    IntMultiply<kNarrow, true>(
        {(const uint32_t*)scratch.weights, kValueRows, (const uint32_t*)c.values + b * kValueRows * width, width, order,
         c.rows, width, kValueRows, nullptr},
        AddValues{c.sums.data, c.sums.stride, scratch.unit, value_scale});
  }
  softmax.Finish();
}

void AttendQuantised(const QuantisedCall& c) {
  if (c.layout.narrow)
    AttendAs<true>(c);
  else
    AttendAs<false>(c);
}
