// What the tile kernels of all vector instruction sets share: packing, and the softmax of a tile's logits. Written in
// the vectors `V` of one instruction set; included inside the anonymous namespace of its files after V, so that each
// keeps machine code of its own. No shared inline function (std::min, TileLayout::PaddedDim) is called here: the linker
// could pick this instruction set's copy for other files.

using F = V::F;
using I = V::I;
constexpr int kW = V::kW;
constexpr int kVectors = int(kTileKeys) / kW;  // of a row of logits
constexpr int kGroup = 4;                      // rows of a softmax step

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// TileLayout's sizes.
template <TileType T>
struct Sizes {
  static constexpr int64_t kNumbers = T == TileType::kBf16 ? 2 : 1;  // of a unit of 32 bits
  int64_t units, value_width;                                        // of a key; units of a pair of values, or one
  explicit Sizes(const TileLayout& l)
      : units(kNumbers == 2 ? RoundUp(l.dim, 32) / 2 : l.dim), value_width(RoundUp(l.value_dim, 16)) {}
  int64_t KeyBlock() const { return kTileKeys * units; }
  int64_t ValueBlock() const { return kTileKeys / kNumbers * value_width; }
};

// ---- packing ----

// Numbers i .. i + kW of a row of n, zeros beyond it.
template <RowType T>
inline F NumbersAt(const std::byte* row, int64_t i, int64_t n) {
  constexpr int64_t kBytes = T == RowType::kF32 ? 4 : 2;
  if (i + kW <= n) return V::Numbers<T>(row + i * kBytes);
  alignas(64) std::byte rest[kW * kBytes] = {};
  if (i < n) __builtin_memcpy(rest, row + i * kBytes, size_t((n - i) * kBytes));
  return V::Numbers<T>(rest);
}

// Units u .. u + kW of a row.
template <TileType Tile, RowType T>
inline I UnitsAt(const std::byte* row, int64_t u, int64_t n) {
  if constexpr (Tile == TileType::kF32) {
    return V::Bits(NumbersAt<T>(row, u, n));
  } else if (T == RowType::kBf16 && 2 * (u + kW) <= n) {
    return V::LoadI(row + 4 * u);
  } else {
    alignas(64) uint16_t halves[2 * kW];
    V::StoreLowHalves(halves, V::Bf16(NumbersAt<T>(row, 2 * u, n)));
    V::StoreLowHalves(halves + kW, V::Bf16(NumbersAt<T>(row, 2 * u + kW, n)));
    return V::LoadI(halves);
  }
}

template <TileType Tile, RowType T>
void PackKeys(const TileLayout& l, const std::byte* k, int64_t stride, const int32_t* index, int64_t n, uint32_t* out) {
  const Sizes<Tile> sizes(l);
  for (int64_t t = 0; t < kTileKeys; t += kW) {
    const std::byte* row[kW];
    for (int64_t j = 0; j < kW; ++j) {
      const int64_t at = Min(t + j, n - 1);
      row[j] = k + (index != nullptr ? index[at] : at) * stride;
    }
    for (int64_t u = 0; u < sizes.units; u += kW) {
      I x[kW];
#pragma GCC unroll 16
      for (int j = 0; j < kW; ++j) x[j] = t + j < n ? UnitsAt<Tile, T>(row[j], u, l.dim) : V::ZeroI();
      V::StoreTransposed(x, out + u * kTileKeys + t, kTileKeys, sizes.units - u);
    }
  }
}

template <TileType Tile, RowType T>
void PackValues(const TileLayout& l, const std::byte* v, int64_t stride, const int32_t* index, int64_t n,
                uint32_t* out) {
  const Sizes<Tile> sizes(l);
  const auto row_at = [&](int64_t t) { return v + (index != nullptr ? index[t] : t) * stride; };
  const auto number = [&](int64_t t, int64_t i) { return t < n ? NumbersAt<T>(row_at(t), i, l.value_dim) : V::Zero(); };
  for (int64_t t = 0; t < kTileKeys; t += sizes.kNumbers, out += sizes.value_width) {
    int64_t i = 0;
    if (Tile == TileType::kBf16 && T == RowType::kBf16 && t + 1 < n) {
      const std::byte *a = row_at(t), *b = row_at(t + 1);
      for (; i + kW <= l.value_dim; i += kW)
        V::StoreI(out + i, V::Interleave(V::LoadHalves(a + 2 * i), V::LoadHalves(b + 2 * i)));
    }
    for (; i < sizes.value_width; i += kW) {
      if constexpr (Tile == TileType::kF32)
        V::StoreI(out + i, V::Bits(number(t, i)));
      else
        V::StoreI(out + i, V::Interleave(V::Bf16(number(t, i)), V::Bf16(number(t + 1, i))));
    }
  }
}

template <TileType Tile, RowType T>
void PackQueryRows(const TileLayout& l, const std::byte* q, int64_t stride, const int32_t* index, int64_t rows,
                   float factor, std::byte* out) {
  const int64_t width = Sizes<Tile>(l).units * Sizes<Tile>::kNumbers;
  constexpr int64_t kBytes = 4 / Sizes<Tile>::kNumbers;
  for (int64_t r = 0; r < rows; ++r, out += width * kBytes) {
    const std::byte* row = q + (index != nullptr ? index[r] : r) * stride;
    const auto store = [&](int64_t i, F x) {
      if constexpr (Tile == TileType::kF32)
        V::StoreI(out + i * kBytes, V::Bits(x));
      else
        V::StoreLowHalves((uint16_t*)(out + i * kBytes), V::Bf16(x));
    };
    int64_t i = 0;
    if (Tile == TileType::kBf16 && T == RowType::kBf16 && factor == 1)
      for (; i + 2 * kW <= l.dim; i += 2 * kW) V::StoreI(out + 2 * i, V::LoadI(row + 2 * i));
    for (; i + kW <= l.dim; i += kW) store(i, V::Mul(NumbersAt<T>(row, i, l.dim), V::Set(factor)));
    for (; i < width; i += kW) {
      alignas(64) float rest[kW];
      V::Store(rest, V::Mul(NumbersAt<T>(row, i, l.dim), V::Set(factor)));
      for (int64_t j = Max(0, l.dim - i); j < kW; ++j) rest[j] = 0;
      if (i + kW <= width)
        store(i, V::Load(rest));
      else
        __builtin_memcpy(out + i * kBytes, rest, size_t((width - i) * kBytes));  // f32: bf16 rows are padded
    }
  }
  __builtin_memset(out, 0, size_t((kTileRows - rows) * width * kBytes));
}

template <class Fn>
inline void WithRowType(RowType type, const Fn& fn) {
  switch (type) {
    case RowType::kF32:
      return fn.template operator()<RowType::kF32>();
    case RowType::kF16:
      return fn.template operator()<RowType::kF16>();
    case RowType::kBf16:
      return fn.template operator()<RowType::kBf16>();
  }
}
inline int64_t NumberBytes(RowType type) { return type == RowType::kF32 ? 4 : 2; }

template <TileType Tile>
void PackBlock(const TileLayout& l, RowType type, const std::byte* k, int64_t k_stride, const std::byte* v,
               int64_t v_stride, const int32_t* index, int64_t n, std::byte* keys, std::byte* values) {
  WithRowType(type, [&]<RowType T>() {
    PackKeys<Tile, T>(l, k, k_stride * NumberBytes(type), index, n, (uint32_t*)keys);
    if (v != nullptr) PackValues<Tile, T>(l, v, v_stride * NumberBytes(type), index, n, (uint32_t*)values);
  });
}

template <TileType Tile>
void PackQueries(const TileLayout& l, RowType type, const std::byte* q, int64_t stride, const int32_t* index,
                 int64_t rows, float factor, std::byte* queries) {
  WithRowType(type, [&]<RowType T>() {
    PackQueryRows<Tile, T>(l, q, stride * NumberBytes(type), index, rows, factor, queries);
  });
}

// ---- products with a matrix ----

// sums[r] += weights[r] from[r], n numbers a row, n a multiple of 16.
inline void AddWeighted(const float* from, int64_t stride, int64_t rows, int64_t n, const float* weights, float* sums,
                        int64_t sums_stride) {
  for (int64_t r = 0; r < rows; ++r, from += stride, sums += sums_stride) {
    const F weight = V::Set(weights[r]);
    for (int64_t i = 0; i < n; i += kW) V::Store(sums + i, V::Fma(weight, V::Load(from + i), V::Load(sums + i)));
  }
}

// ---- softmax ----

// Weights are 2^(logit - reference). The reference of a row is an integer and follows its largest logit only when that
// gets 2^kSlack above it, so that sums are hardly ever scaled, and then by a power of two, without rounding.
constexpr float kSlack = 8;

// State of a tile's rows.
struct alignas(64) Rows {
  float mass[kTileRows][kW];       // by lane
  float reference[kTileRows];      // integral; 0 while nothing has been seen
  float limit[kTileRows];          // a logit above it moves the reference
  float product_limit[kTileRows];  // the same before scaling
  bool seen[kTileRows];
  int32_t first[kTileRows], last[kTileRows];
};

// 2^x; for weights that become bf16 by a shorter polynomial, minimax in relative error (7.5e-5).
template <bool kBf16>
[[gnu::always_inline]] inline F Weight(F product, F scale, F reference) {
  const F x = V::Fms(product, scale, reference);
  if constexpr (!kBf16) return Exp2<V>(x);
  const F r = V::Fraction(x);
  F p = V::Fma(V::Set(0.07802452264047964f), r, V::Set(0.226067155427483f));
  p = V::Fma(p, r, V::Set(0.6958335404947528f));
  p = V::Fma(p, r, V::Set(0.9999252185627154f));
  return V::Raise(p, x);
}

// 2^d for an integer d < 128; 0 below the normal numbers.
inline float PowerOfTwo(float d) {
  if (d < -126) return 0;
  const uint32_t bits = uint32_t(int32_t(d) + 127) << 23;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// The ranges of a call, one after the other.
template <class Fn>
[[gnu::always_inline]] inline void EachRange(const TileCall& c, const Fn& fn) {
  fn((const TileRange&)c);
  for (int64_t i = 0; i < c.more_ranges; ++i) fn(c.more[i]);
}

class Softmax {
 public:
  Softmax(const TileCall& call, Rows& rows) : c_(call), rows_(rows), inverse_scale_(1 / call.scale) {
    __builtin_memset(rows_.mass, 0, sizeof rows_.mass);
    for (int64_t r = 0; r < kTileRows; ++r) {
      rows_.first[r] = rows_.last[r] = 0;
      rows_.reference[r] = 0;
      rows_.limit[r] = rows_.product_limit[r] = __builtin_inff();  // rows of zeros that fill a group up
      if (r >= c_.rows) continue;
      rows_.seen[r] = c_.max[r] > kMasked;
      if (!rows_.seen[r]) {
        rows_.limit[r] = kMasked / 2, rows_.product_limit[r] = kMasked / 2 * inverse_scale_;
        continue;
      }
      const float reference = __builtin_ceilf(c_.max[r]);
      rows_.mass[r][0] = c_.mass[r];
      if (reference != c_.max[r]) {  // a state made elsewhere
        const float factor = __builtin_exp2f(c_.max[r] - reference);
        rows_.mass[r][0] *= factor;
        ScaleSums(r, factor);
      }
      SetReference(r, reference);
    }
    Enter(call);
  }
  // What follows is about these keys; the range must outlive it.
  void Enter(const TileRange& range) {
    range_ = &range;
    for (int64_t r = range.row_begin; r < Min(c_.rows, range.row_end); ++r) {
      rows_.first[r] = int32_t(Max(range.begin, range.first != nullptr ? range.first[r] : range.begin));
      rows_.last[r] = int32_t(Min(range.end, range.last != nullptr ? range.last[r] : range.end));
    }
  }
  // Gives the state back.
  void Finish() {
    for (int64_t r = 0; r < c_.rows; ++r) {
      c_.max[r] = rows_.seen[r] ? rows_.reference[r] : kMasked;
      c_.mass[r] = V::Sum(V::Load(rows_.mass[r]));
    }
  }

  // Keys that rows [begin, end) see: some row, and every row.
  struct Sight {
    int64_t some_first, some_last, all_first, all_last;
    bool Sees(int64_t block) const { return block < some_last && block + kTileKeys > some_first; }
    bool SeesAll(int64_t block) const { return block >= all_first && block + kTileKeys <= all_last; }
  };
  Sight Of(int64_t begin, int64_t end) const {
    if (range_->first == nullptr) return {range_->begin, range_->end, range_->begin, range_->end};
    Sight s{range_->end, range_->begin, range_->begin, range_->end};
    for (int64_t r = begin; r < end; ++r) {
      s.all_first = Max(s.all_first, rows_.first[r]), s.all_last = Min(s.all_last, rows_.last[r]);
      if (rows_.first[r] >= rows_.last[r]) continue;
      s.some_first = Min(s.some_first, rows_.first[r]), s.some_last = Max(s.some_last, rows_.last[r]);
    }
    return s;
  }
  // Whether logits of a block that all rows see are just products times the scale.
  bool Plain() const { return range_->bias == nullptr && range_->row_factor == nullptr; }

  // Products [kGroup][64] of rows row .. row + kGroup with the keys of a block become weights: in place, or as bf16 in
  // rows of p, which may be where the products stood. kPrepare: masks and biases apply.
  template <bool kBf16, bool kPrepare>
  [[gnu::always_inline]] void Group(int64_t row, int64_t block, float* s, uint16_t* p, int64_t weight_stride) {
    const F scale = V::Set(kPrepare ? 1.f : c_.scale);
    if constexpr (kPrepare)
      for (int r = 0; r < kGroup; ++r) Prepare(row + r, block, s + r * kTileKeys);
    F top[kGroup];
    bool grows = false;
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) {
      top[r] = TopOf(s + r * kTileKeys);
      grows |= V::AnyAbove(top[r], V::Set((kPrepare ? rows_.limit : rows_.product_limit)[row + r]));
    }
    if (grows) [[unlikely]] {
      for (int r = 0; r < kGroup; ++r) Grow(row + r, V::MaxOf(top[r]) * (kPrepare ? 1.f : c_.scale));
    }
#pragma GCC unroll 4
    for (int r = 0; r < kGroup; ++r) {
      const F reference = V::Set(rows_.reference[row + r]);
      float* const at = s + r * kTileKeys;
      F sum = V::Load(rows_.mass[row + r]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j += 2) {
        const F a = Weight<kBf16>(V::Load(at + j * kW), scale, reference);
        const F b = Weight<kBf16>(V::Load(at + (j + 1) * kW), scale, reference);
        sum = V::Add(sum, V::Add(a, b));
        if constexpr (kBf16) {
          V::StoreBf16(p + r * weight_stride + j * kW, a, b);
        } else {
          V::Store(at + j * kW, a);
          V::Store(at + (j + 1) * kW, b);
        }
      }
      V::Store(rows_.mass[row + r], sum);
    }
  }

  // The reference of a row follows a logit above its limit.
  [[gnu::noinline]] void Grow(int64_t row, float top) {
    if (!(top > rows_.limit[row])) return;
    const float reference = __builtin_ceilf(top), old = rows_.reference[row];
    if (rows_.seen[row]) {
      const float factor = PowerOfTwo(old - reference);
      V::Store(rows_.mass[row], V::Mul(V::Load(rows_.mass[row]), V::Set(factor)));
      ScaleSums(row, factor);
    }
    SetReference(row, reference);
  }

 private:
  [[gnu::always_inline]] static F TopOf(const float* s) {
    F top = V::Max(V::Load(s), V::Load(s + kW));
#pragma GCC unroll 8
    for (int j = 2; j < kVectors; j += 2) top = V::Max(top, V::Max(V::Load(s + j * kW), V::Load(s + (j + 1) * kW)));
    return top;
  }
  // Products become logits.
  [[gnu::noinline]] void Prepare(int64_t row, int64_t block, float* s) const {
    const F scale = V::Set(c_.scale);
    const float* const bias = range_->bias != nullptr ? range_->bias + block : nullptr;
    const float* const key_factor =
        range_->key_factor != nullptr && row < c_.rows ? range_->key_factor + block : nullptr;
    const F row_factor = V::Set(key_factor != nullptr ? range_->row_factor[row] : 0.f);
    const int64_t first = rows_.first[row] - block, last = rows_.last[row] - block;
    const bool all = first <= 0 && last >= kTileKeys;
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      F x = V::Mul(V::Load(s + j * kW), scale);
      if (bias != nullptr) x = V::Add(x, V::Load(bias + j * kW));
      if (key_factor != nullptr) x = V::Fma(row_factor, V::Load(key_factor + j * kW), x);
      if (!all) x = V::Within(x, first - j * kW, last - j * kW);
      V::Store(s + j * kW, x);
    }
  }
  void ScaleSums(int64_t row, float factor) {
    float* const sums = c_.sums.data + row * c_.sums.stride;
    const int64_t width = RoundUp(c_.layout.value_dim, 16);
    for (int64_t i = 0; i < width; i += kW) V::Store(sums + i, V::Mul(V::Load(sums + i), V::Set(factor)));
  }
  void SetReference(int64_t row, float reference) {
    rows_.seen[row] = true;
    rows_.reference[row] = reference;
    rows_.limit[row] = reference + kSlack;
    rows_.product_limit[row] = rows_.limit[row] * inverse_scale_;
  }

  const TileCall& c_;
  Rows& rows_;
  const TileRange* range_ = nullptr;
  float inverse_scale_;
};
