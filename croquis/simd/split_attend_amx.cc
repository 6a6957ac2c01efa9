// Attention of many query rows to pages of plain rows, on split products: one streaming softmax.
//
// A unit is 32 query rows on one page. Its logits come out as [tokens][rows], so that softmax runs along vectors whose
// lanes are rows, and nothing is summed across a vector. Tiles and vectors work at the same time: between the steps of
// one unit's products stand pieces of the softmax of the unit before, of packing the next page, and of adding up what
// other tiles left. Sums stay in f32: tiles begin every page's sum at zero.
#include <immintrin.h>

#include "croquis/simd/split_internal.h"
#include "croquis/simd/split_parts_amx.h"

namespace croquis::simd {
namespace amx {
namespace {

using V = VectorAvx512;
constexpr int64_t kUnitRows = 2 * kRowTile;
constexpr int64_t kTokenTiles = kTokens / kRowTile, kTokenSteps = kTokens / kInner;
constexpr int64_t kNumbers = kTile / 4;  // of f32 in a tile

// How large what lies in the scratch of a call is.
struct Layout {
  int64_t rows, tiles, dim_tiles;  // rows padded to units; tiles of real rows
  size_t keys, values;
  static constexpr size_t kLogits = size_t(2 * kTokens * kRowTile) * 4;
  static constexpr size_t kWeights = 2 * kTokenSteps * kQueryParts * kTile;
  Layout(int64_t n, int64_t dim)
      : rows(Up(n, kUnitRows) * kUnitRows),
        tiles(Up(n, kRowTile)),
        dim_tiles(Up(dim, 16)),
        keys(KeyTilesBytes(dim)),
        values(ValueTilesBytes(dim)) {}
  size_t SumBytes() const { return size_t(rows * dim_tiles) * 64; }
  size_t Bytes() const {
    return 2 * (keys + values + kLogits) + kWeights + 10 * kTile + size_t(rows) * 5 * 4 + SumBytes();
  }
};

// Numbers of rows, sixteen a vector.
struct RowNumbers {
  float *max, *mass, *top, *down[2];  // top: what a unit's logits are taken from; down: what its sums are scaled by
};

using Pack = void (*)(const std::byte* page, int64_t dim, Packed& at, int64_t pieces, std::byte* tiles);

// Work in `pieces` that is spread over `turns` turns.
class Share {
 public:
  Share() = default;
  Share(int64_t pieces, int64_t turns) : rate_(Up(pieces << 20, turns)), pieces_(pieces) {}
  // Pieces done before the next turn, and after it.
  int64_t begin() const { return end_; }
  int64_t Next() {
    done_ += rate_;
    return end_ = Min(done_ >> 20, pieces_);
  }

 private:
  int64_t rate_ = 0, pieces_ = 0, done_ = 0, end_ = 0;  // rate and done: times 2^20
};

// The products of keys with queries, and of values with weights.
template <class KeyProducts, class ValueProducts>
class Attention {
 public:
  Attention(const SplitCall& call, Pack pack_keys, Pack pack_values)
      : call_(call),
        layout_(call.rows, call.sums.cols),
        pack_keys_(pack_keys),
        pack_values_(pack_values),
        dim_(call.sums.cols),
        steps_(Up(dim_, kInner)),
        groups_(layout_.rows / kUnitRows),
        score_turns_(kTokenTiles / 2 * steps_ * kBesides<KeyProducts>),
        sum_turns_(Up(layout_.dim_tiles, 2) * kTokenSteps * kBesides<ValueProducts>) {
    std::byte* at = call.scratch;
    const auto take = [&](size_t bytes) {
      std::byte* const from = at;
      at += bytes;
      return from;
    };
    for (auto& k : keys_) k = take(layout_.keys);
    for (auto& v : values_) v = take(layout_.values);
    for (auto& x : logits_) x = (float*)take(Layout::kLogits);
    parts_ = take(Layout::kWeights);
    for (auto& w : weights_) w = (float*)take(kTile);
    for (auto& c : products_) c = (float*)take(4 * kTile);
    for (float** x : {&of_.max, &of_.mass, &of_.top, &of_.down[0], &of_.down[1]})
      *x = (float*)take(size_t(layout_.rows) * 4);
    sums_ = (float*)take(layout_.SumBytes());
  }

  void Run() {
    MoveState<false>();
    Packing first_keys(call_.keys[0], KeyPieces(dim_), 1, keys_[0]),
        first_values(call_.values[0], ValuePieces(dim_), 1, values_[0]);
    PackNext(first_keys, pack_keys_);
    PackNext(first_values, pack_values_);
    // The products of unit u beside the weights of the one before; then that one's sums beside the maxima of unit u and
    // packing. The first and last time one of the two stands alone.
    Unit before;
    for (int64_t page = 0; page < call_.pages; ++page) {
      Ask(page + 2);
      for (int64_t group = 0; group < groups_; ++group) {
        const Unit unit = {page, group * 2, Min(2, layout_.tiles - group * 2), 1 - before.parity};
        Scores(unit, before);
        Sums(before, unit);
        before = unit;
      }
    }
    Scores({}, before);
    Sums(before, {});
    Flush(4);
    MoveState<true>();
  }

 private:
  // Its tiles of rows from `tile` on: one or two, or 0: no unit. Those that follow each other differ in parity. (Worked
  // out once: divisions beside the products held them up.)
  struct Unit {
    int64_t page = 0, tile = 0, tiles = 0, parity = 1;
    bool none() const { return tiles == 0; }
    bool begins_page() const { return tile == 0; }
  };

  // ---- products ----

  // The logits of `unit`, the weights of `before`.
  void Scores(const Unit& unit, const Unit& before) {
    Share weights(before.tiles * kTokenSteps * kWeightPieces, unit.none() ? 1 : score_turns_);
    const auto beside = [&] {
      Flush(1);
      ahead_.Step();
      for (int64_t p = weights.begin(), end = weights.Next(); p < end; ++p) WeightPiece(before, p);
    };
    if (unit.none()) return beside();
    const std::byte* const keys = keys_[unit.page % 2];
    const std::byte* const query = call_.query + unit.tile * steps_ * kQueryParts * kTile;
    for (int64_t i = 0; i < kTokenTiles; i += 2)
      BlockAt<KeyProducts, true>(keys, i, true, query, 0, unit.tiles > 1, steps_, logits_[unit.parity] + i * kNumbers,
                                 kNumbers, kTokenTiles * kNumbers, beside);
  }

  // The sums of `unit`; the maxima of `scored` and, while it has its turn, its share of packing.
  void Sums(const Unit& unit, const Unit& scored) {
    Share maxima(scored.tiles * kMaximumPieces, sum_turns_);
    // A page's keys are packed while the groups of the page before have their logits' maxima taken (the first time, in
    // one turn), its values while they are summed.
    if (!scored.none() && scored.begins_page())
      keys_next_ = NextPage(scored.page + 1, call_.keys, KeyPieces(dim_), groups_ * sum_turns_, keys_);
    if (!unit.none() && unit.begins_page())
      values_next_ = NextPage(unit.page + 1, call_.values, ValuePieces(dim_), groups_ * sum_turns_, values_);
    const auto beside = [&] {
      Flush(1);
      ahead_.Step();
      for (int64_t p = maxima.begin(), end = maxima.Next(); p < end; ++p) MaximumPiece(scored, p);
      if (!scored.none()) PackNext(keys_next_, pack_keys_);
      if (!unit.none()) PackNext(values_next_, pack_values_);
    };
    for (int64_t i = 0; unit.none() && i < sum_turns_; ++i) beside();
    if (unit.none()) return;
    for (int64_t d = 0; d < layout_.dim_tiles; d += 2) {
      float* const c = products_[d / 2 % 2];
      BlockAt<ValueProducts, false>(parts_, 0, unit.tiles > 1, values_[unit.page % 2], d, d + 1 < layout_.dim_tiles,
                                    kTokenSteps, c, 2 * kNumbers, kNumbers, beside);
      Flush(4);
      waiting_ = {c, unit, d, 0};
    }
  }

  // A page that is packed bit by bit.
  struct Packing {
    Packing() = default;
    Packing(const std::byte* from, int64_t pieces, int64_t turns, std::byte* to)
        : page(from), tiles(to), share(pieces, turns) {}
    const std::byte* page = nullptr;  // null: none
    std::byte* tiles = nullptr;
    Share share;
    Packed at;
  };
  Packing NextPage(int64_t page, const std::byte* const* pages, int64_t pieces, int64_t turns,
                   std::byte* const* tiles) {
    if (page >= call_.pages) return {};
    return {pages[page], pieces, turns, tiles[page % 2]};
  }
  void PackNext(Packing& p, Pack pack) {
    if (p.page == nullptr) return;
    const int64_t begin = p.share.begin(), pieces = p.share.Next() - begin;
    if (pieces > 0) pack(p.page, dim_, p.at, pieces, p.tiles);
  }

  // Adds products that wait to the sums, at most `tiles` tiles of them.
  void Flush(int64_t tiles) {
    for (; tiles > 0 && waiting_.at < 4; ++waiting_.at) {
      const int64_t i = waiting_.at / 2, dim_tile = waiting_.dim_tile + waiting_.at % 2;
      if (i >= waiting_.unit.tiles || dim_tile >= layout_.dim_tiles) continue;
      AddTile(waiting_.products + waiting_.at * kNumbers, waiting_.unit.tile + i, waiting_.unit.parity, dim_tile);
      --tiles;
    }
  }
  [[gnu::noinline]] void AddTile(const float* c, int64_t row_tile, int64_t parity, int64_t dim_tile) {
    const float* const down = of_.down[parity] + row_tile * kRowTile;
    float* const to = sums_ + (row_tile * layout_.dim_tiles + dim_tile) * kNumbers;
#pragma GCC unroll 16
    for (int64_t i = 0; i < kRowTile; ++i)
      V::Store(to + i * 16, V::Fma(V::Load(to + i * 16), V::Set(down[i]), V::Load(c + i * 16)));
  }

  // ---- softmax ----

  // A quarter of a row tile's 128 tokens each. The last one moves the maxima on.
  static constexpr int64_t kMaximumPieces = 4;
  [[gnu::noinline]] void MaximumPiece(const Unit& unit, int64_t piece) {
    const int64_t i = piece / kMaximumPieces, quarter = piece % kMaximumPieces;
    const int64_t row = (unit.tile + i) * kRowTile, first = quarter * (kTokens / kMaximumPieces);
    float* const x = logits_[unit.parity] + (i * kTokens + first) * 16;
    if (call_.first != nullptr) Mask(x, row, unit.page * kTokens + first);
    __m512 m[4];
    m[0] = quarter == 0 ? V::Set(kMasked) : V::Load(of_.top + row), m[1] = m[2] = m[3] = m[0];
#pragma GCC unroll 32
    for (int64_t t = 0; t < kTokens / kMaximumPieces; ++t) m[t % 4] = V::Max(m[t % 4], V::Load(x + t * 16));
    const __m512 top = V::Max(V::Max(m[0], m[1]), V::Max(m[2], m[3]));
    if (quarter + 1 < kMaximumPieces) return V::Store(of_.top + row, top);
    const __m512 old = V::Load(of_.max + row), now = V::Max(top, old), down = Exp2<V>(V::Sub(old, now));
    V::Store(of_.max + row, now);
    V::Store(of_.down[unit.parity] + row, down);
    V::Store(of_.mass + row, V::Mul(V::Load(of_.mass + row), down));
    // Everything masked: far above it, so that all weights are zero.
    const __mmask16 none = _mm512_cmp_ps_mask(now, V::Set(kMasked / 2), _CMP_LE_OQ);
    V::Store(of_.top + row, _mm512_mask_mov_ps(now, none, V::Zero()));
  }

  void Mask(float* x, int64_t row, int64_t first_token) const {
    const __mmask16 rows = First(call_.rows - row);
    const __m512i begin = _mm512_maskz_loadu_epi32(rows, call_.first + row),
                  end = _mm512_maskz_loadu_epi32(rows, call_.last + row);
    for (int64_t t = 0; t < kTokens / kMaximumPieces; ++t) {
      const __m512i token = _mm512_set1_epi32(int(first_token + t));
      const __mmask16 sees = _mm512_cmple_epi32_mask(begin, token) & _mm512_cmplt_epi32_mask(token, end);
      V::Store(x + t * 16, _mm512_mask_mov_ps(V::Set(kMasked), sees, V::Load(x + t * 16)));
    }
  }

  // 32 tokens of 16 rows: for each half, twice the weights of eight tokens, which are then turned around; at last,
  // twice eight rows cut into parts.
  static constexpr int64_t kWeightPieces = 8, kAtOnce = 8;
  void WeightPiece(const Unit& unit, int64_t piece) {
    const int64_t i = piece / (kTokenSteps * kWeightPieces), step = piece / kWeightPieces % kTokenSteps;
    const int64_t n = piece % kWeightPieces;
    if (n >= 6) return WeightParts((n - 6) * kAtOnce, parts_ + (i * kTokenSteps + step) * kQueryParts * kTile);
    const int64_t half = n / 3, third = n % 3;
    if (third == 2) return Turn(weights_[half]);
    const float* const x = logits_[unit.parity] + (i * kTokenTiles + step * 2 + half) * kNumbers;
    SomeWeights(x + third * kAtOnce * 16, (unit.tile + i) * kRowTile, weights_[half] + third * kAtOnce * 16);
  }
  [[gnu::noinline]] void SomeWeights(const float* x, int64_t row, float* weights) {
    const __m512 top = V::Load(of_.top + row);
    __m512 p[kAtOnce];
#pragma GCC unroll 8
    for (int t = 0; t < kAtOnce; ++t) p[t] = Exp2<V>(V::Sub(V::Load(x + t * 16), top));
#pragma GCC unroll 8
    for (int t = 0; t < kAtOnce; ++t) V::Store(weights + t * 16, p[t]);
    const __m512 low = V::Add(V::Add(p[0], p[1]), V::Add(p[2], p[3])),
                 high = V::Add(V::Add(p[4], p[5]), V::Add(p[6], p[7]));
    V::Store(of_.mass + row, V::Add(V::Load(of_.mass + row), V::Add(low, high)));
  }
  [[gnu::noinline]] static void Turn(float* x) {
    __m512 y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) y[i] = V::Load(x + i * 16);
    V::Transpose(y, y);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) V::Store(x + i * 16, y[i]);
  }
  // Two rounded parts where no product takes the third.
  static constexpr int kWeightParts = ValueProducts::kParts == 3 ? 3 : 2;
  [[gnu::noinline]] void WeightParts(int64_t row, std::byte* to) {
#pragma GCC unroll 8
    for (int64_t r = row; r < row + kAtOnce; ++r) {
      __m512 a = V::Load(weights_[0] + r * 16), b = V::Load(weights_[1] + r * 16);
#pragma GCC unroll 3
      for (int part = 0; part < kWeightParts; ++part)
        _mm512_store_si512(to + part * kTile + r * 64, TakePairs<kWeightParts == 2>(a, b));
    }
  }

  // ---- pages and state ----

  // Asks for a page in the turns that follow.
  void Ask(int64_t page) {
    if (page >= call_.pages + call_.ahead) return;
    const auto bytes = [&](RowType type) { return size_t(kTokens * dim_ * RowTypeBytes(type)); };
    ahead_ = {call_.keys[page], bytes(call_.key_type), call_.values[page], bytes(call_.value_type),
              groups_ * (score_turns_ + sum_turns_)};
  }
  struct TwoAhead {
    TwoAhead() : keys(nullptr, 0, 1), values(nullptr, 0, 1) {}
    TwoAhead(const std::byte* k, size_t k_bytes, const std::byte* v, size_t v_bytes, int64_t times)
        : keys(k, k_bytes, times), values(v, v_bytes, times) {}
    void Step() { keys.Step(), values.Step(); }
    Ahead keys, values;
  };

  // The caller's state to numbers of padded rows and tiles of sums [tiles of rows][tiles of dims][16][16], or back.
  template <bool kBack>
  void MoveState() {
    for (int64_t r = 0; r < layout_.rows; ++r) {
      if (kBack && r < call_.rows) call_.max[r] = of_.max[r], call_.mass[r] = of_.mass[r];
      if (!kBack) of_.max[r] = r < call_.rows ? call_.max[r] : kMasked;
      if (!kBack) of_.mass[r] = r < call_.rows ? call_.mass[r] : 0;
      for (int64_t d = 0; d < layout_.dim_tiles; ++d) {
        float* const mine = sums_ + (r / 16 * layout_.dim_tiles + d) * kNumbers + r % 16 * 16;
        float* const given = call_.sums.data + Min(r, call_.rows - 1) * call_.sums.stride + d * 16;
        const __mmask16 mask = r < call_.rows ? First(dim_ - d * 16) : __mmask16(0);
        if (kBack)
          _mm512_mask_storeu_ps(given, mask, V::Load(mine));
        else
          V::Store(mine, _mm512_maskz_loadu_ps(mask, given));
      }
    }
  }

  struct Waiting {
    const float* products = nullptr;  // [2 tiles of rows][2 tiles of dims]
    Unit unit;
    int64_t dim_tile = 0, at = 4;
  };

  const SplitCall& call_;
  const Layout layout_;
  const Pack pack_keys_, pack_values_;
  const int64_t dim_, steps_, groups_, score_turns_, sum_turns_;
  // Keys, values and logits of one page or unit while those of the next are made.
  std::byte *keys_[2], *values_[2], *parts_;
  float *logits_[2], *weights_[2], *products_[2], *sums_;
  RowNumbers of_;
  Waiting waiting_;
  TwoAhead ahead_;
  Packing keys_next_, values_next_;
};

template <class Fn>
void WithRows(RowType type, const Fn& fn) {
  switch (type) {
    case RowType::kF32:
      return fn.template operator()<F32Row>();
    case RowType::kF16:
      return fn.template operator()<F16Row>();
    case RowType::kBf16:
      return fn.template operator()<Bf16Row>();
  }
}

}  // namespace

size_t SplitAttendBytes(int64_t rows, int64_t dim) { return Layout(rows, dim).Bytes(); }

void SplitAttend(const SplitCall& call) {
  if (call.pages == 0) return;
  const Tiles tiles(kShape);
  const FlushToZero flush;
  WithRows(call.key_type, [&]<class K>() {
    WithRows(call.value_type, [&]<class W>() {
      Attention<FewPairs<K::kParts>, FewPairs<W::kParts>>(call, PackKeys<K>, PackValues<W>).Run();
    });
  });
}

}  // namespace amx
}  // namespace croquis::simd
