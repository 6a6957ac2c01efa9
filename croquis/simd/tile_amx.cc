// Tile kernels for AMX: bf16 products by tdpbf16ps, softmax in AVX-512. The two take turns, block by block: put between
// each other's instructions they gained nothing, since 512-bit vectors ran at half speed beside tile instructions
// (64 FMAs: 34 cycles alone, 67 beside two tilestored; Sapphire Rapids class).
#include <immintrin.h>

#include "croquis/simd/amx_state.h"
#include "croquis/simd/tile_internal.h"
#include "croquis/simd/vector_avx512.h"

namespace croquis::simd {
namespace {

#include "croquis/simd/tile_avx512.h"
#include "croquis/simd/tile_inl.h"

constexpr int64_t kTile = 16;   // rows of an AMX tile
constexpr int64_t kInner = 32;  // bf16 numbers of a tile's row
// Half a tile's rows go over 8 blocks of keys before the other half does: their logits and sums stay in the first
// cache.
constexpr int64_t kStepRows = 32, kStepKeys = 8 * kTileKeys;
constexpr int64_t kTileBytes = 64;  // of a tile's row

// ---- tile instructions; tiles 0-3 are sums, 4-5 rows of queries or weights, 6-7 keys or values ----

using amx::LoadTile;
using amx::MultiplyBf16;
using amx::StoreTile;
using amx::ZeroTile;

// All tiles 16 rows of 64 bytes, for as long as this lives; then as they were set up before.
class TileSetup {
 public:
  TileSetup() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    Config mine;
    mine.palette = 1;
    for (int i = 0; i < 8; ++i) mine.row_bytes[i] = 64, mine.rows[i] = kTile;
    asm volatile("ldtilecfg %0" ::"m"(mine));
  }
  ~TileSetup() {
    if (before_.palette == 0)
      _tile_release();
    else
      asm volatile("ldtilecfg %0" ::"m"(before_));
  }
  TileSetup(const TileSetup&) = delete;
  TileSetup& operator=(const TileSetup&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 0, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[8] = {}, reserved2[8] = {};
    uint8_t rows[8] = {}, reserved3[8] = {};
  };
  Config before_;
};

// ---- products ----

// C[16 row_tiles][16 columns] = (add ? C : 0) + A B for 32 `inner` numbers. A row-major, B in pairs of rows.
struct Product {
  const std::byte* a;
  int64_t a_stride;  // of all three, in bytes
  const std::byte* b;
  int64_t b_stride;
  std::byte* c;
  int64_t c_stride;
  int64_t row_tiles, columns, inner;  // in tiles
};

template <int kSet, int N>
[[gnu::always_inline]] inline void StoreSums(std::byte* c, int64_t stride) {
  StoreTile<2 * kSet>(c, stride);
  if constexpr (N > 1) StoreTile<2 * kSet + 1>(c + kTileBytes, stride);
}

template <int kC, int kA, int N>
[[gnu::always_inline]] inline void Slice(const std::byte* a, int64_t a_stride, const std::byte* b, int64_t b_stride) {
  LoadTile<kA>(a, a_stride);
  LoadTile<6>(b, b_stride);
  MultiplyBf16<kC, kA, 6>();
  if constexpr (N > 1) {
    LoadTile<7>(b + kTileBytes, b_stride);
    MultiplyBf16<kC + 1, kA, 7>();
  }
}

// One by N tiles of C. Tile registers are not renamed: sums that were stored at once would hold the next job up until
// their last product is there. So jobs take turns with two sets of sums, and a job's sums are stored after the first
// products of the next, at `waiting` (null: nothing). Likewise successive slices of 32 inner numbers load their rows
// into different registers. K: slices, 0 for `inner`.
template <int kSet, int N, int K, bool kAdd>
[[gnu::always_inline]] inline void Job(const std::byte* a, int64_t a_stride, const std::byte* b, int64_t b_stride,
                                       std::byte* c, int64_t c_stride, int64_t inner, std::byte* waiting) {
  constexpr int kC = 2 * kSet;
  if constexpr (kAdd) {
    LoadTile<kC>(c, c_stride);
    if constexpr (N > 1) LoadTile<kC + 1>(c + kTileBytes, c_stride);
  } else {
    ZeroTile<kC>();
    if constexpr (N > 1) ZeroTile<kC + 1>();
  }
  const int64_t b_step = kTile * b_stride, slices = K > 0 ? K : inner;
  Slice<kC, 4, N>(a, a_stride, b, b_stride);
  if (waiting != nullptr) StoreSums<1 - kSet, N>(waiting, c_stride);
  for (int64_t k = 1; k < slices; k += 2) {
    a += kTileBytes, b += b_step;
    Slice<kC, 5, N>(a, a_stride, b, b_stride);
    if (k + 1 == slices) break;
    a += kTileBytes, b += b_step;
    Slice<kC, 4, N>(a, a_stride, b, b_stride);
  }
}

// N columns of tiles, all rows.
template <int N, int K, bool kAdd>
[[gnu::noinline]] void Columns(const std::byte* a, int64_t a_stride, const std::byte* b, int64_t b_stride, std::byte* c,
                               int64_t c_stride, int64_t row_tiles, int64_t inner) {
  const int64_t a_step = kTile * a_stride, c_step = kTile * c_stride;
  std::byte* waiting = nullptr;
  for (; row_tiles >= 2; row_tiles -= 2) {
    Job<0, N, K, kAdd>(a, a_stride, b, b_stride, c, c_stride, inner, waiting);
    a += a_step, waiting = c, c += c_step;
    Job<1, N, K, kAdd>(a, a_stride, b, b_stride, c, c_stride, inner, waiting);
    a += a_step, waiting = c, c += c_step;
  }
  if (row_tiles > 0) {
    Job<0, N, K, kAdd>(a, a_stride, b, b_stride, c, c_stride, inner, waiting);
    StoreSums<0, N>(c, c_stride);
  } else {
    StoreSums<1, N>(waiting, c_stride);
  }
}

template <int K, bool kAdd>
void Multiply(const Product& p) {
  int64_t column = 0;
  for (; column + 2 <= p.columns; column += 2)
    Columns<2, K, kAdd>(p.a, p.a_stride, p.b + column * kTileBytes, p.b_stride, p.c + column * kTileBytes, p.c_stride,
                        p.row_tiles, p.inner);
  if (column < p.columns)
    Columns<1, K, kAdd>(p.a, p.a_stride, p.b + column * kTileBytes, p.b_stride, p.c + column * kTileBytes, p.c_stride,
                        p.row_tiles, p.inner);
}

struct Scratch {
  Rows rows;
  alignas(64) float logits[kStepRows][kTileKeys];  // weights take their places
};
static_assert(kStepRows * 2 == kTileKeys);  // products of half as many columns for twice as many rows

// Rows [begin, end) of the tile against keys [first, last) of a range, which are whole blocks.
void AttendRows(const TileCall& c, const TileRange& range, Softmax& softmax, Scratch& scratch, int64_t begin,
                int64_t end, int64_t first, int64_t last) {
  const Sizes<TileType::kBf16> sizes(c.layout);
  const Softmax::Sight sight = softmax.Of(begin, end);
  const int64_t row_tiles = (end - begin + kTile - 1) / kTile, key_bytes = sizes.KeyBlock() * 4,
                value_bytes = sizes.ValueBlock() * 4, groups = (end - begin + kGroup - 1) / kGroup;
  std::byte* const logits = (std::byte*)scratch.logits;
  const std::byte* keys = range.keys + first / kTileKeys * key_bytes;
  const std::byte* values = range.values + first / kTileKeys * value_bytes;
  for (int64_t block = first; block < last; block += kTileKeys, keys += key_bytes, values += value_bytes) {
    if (!sight.Sees(block)) continue;
    const Product scores = {c.queries + begin * sizes.units * 4,
                            sizes.units * 4,
                            keys,
                            kTileKeys * 4,
                            logits,
                            kTileKeys * 4,
                            row_tiles,
                            kTileKeys / kTile,
                            sizes.units / kTile};
    if (scores.inner == 2)
      Multiply<2, false>(scores);
    else if (scores.inner == 4)
      Multiply<4, false>(scores);
    else
      Multiply<0, false>(scores);
    const bool plain = softmax.Plain() && sight.SeesAll(block);
    for (int64_t g = 0; g < groups; ++g) {
      float* const s = scratch.logits[g * kGroup];
      const int64_t row = begin + g * kGroup;
      if (plain)
        softmax.Group<true, false>(row, block, s, (uint16_t*)s, 2 * kTileKeys);
      else
        softmax.Group<true, true>(row, block, s, (uint16_t*)s, 2 * kTileKeys);
    }
    Multiply<kTileKeys / kInner, true>({logits, kTileKeys * 4, values, sizes.value_width * 4,
                                        (std::byte*)(c.sums.data + begin * c.sums.stride), c.sums.stride * 4, row_tiles,
                                        sizes.value_width / kTile, kTileKeys / kInner});
  }
}

void Attend(const TileCall& c) {
  const FlushToZero flush;
  const TileSetup setup;
  auto& scratch = *reinterpret_cast<Scratch*>(c.scratch);
  Softmax softmax(c, scratch.rows);
  EachRange(c, [&](const TileRange& range) {
    softmax.Enter(range);
    const int64_t rows = Min(c.rows, range.row_end);
    for (int64_t key = range.begin / kTileKeys * kTileKeys; key < range.end; key += kStepKeys)
      for (int64_t row = range.row_begin; row < rows; row += kStepRows)
        AttendRows(c, range, softmax, scratch, row, Min(rows, row + kStepRows), key, Min(range.end, key + kStepKeys));
  });
  softmax.Finish();
}

void AddProducts(const TileProducts& c) {
  constexpr int64_t kColumns = kStepRows;  // of products that take the place of a step's logits
  const TileSetup setup;
  const Sizes<TileType::kBf16> sizes(c.layout);
  float* const products = reinterpret_cast<Scratch*>(c.scratch)->logits[0];
  for (int64_t i = 0; i < sizes.value_width; i += kColumns) {
    const int64_t n = Min(kColumns, sizes.value_width - i);
    Multiply<0, false>({c.queries, sizes.units * 4, c.matrix + i * 4, sizes.value_width * 4, (std::byte*)products,
                        kColumns * 4, (c.rows + kTile - 1) / kTile, n / kTile, sizes.units / kTile});
    AddWeighted(products, kColumns, c.rows, n, c.weights, c.sums.data + i, c.sums.stride);
  }
}

size_t ScratchBytes(const TileLayout&) { return sizeof(Scratch); }

}  // namespace

const TileKernels& TilesAmx() {
  static constexpr TileKernels kKernels = {
      "amx-bf16",  Target::kAmx, PackBlock<TileType::kBf16>, PackQueries<TileType::kBf16>, Attend,
      AddProducts, ScratchBytes};
  return kKernels;
}

}  // namespace croquis::simd
