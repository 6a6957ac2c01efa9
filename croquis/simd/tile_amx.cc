// Tile kernels for AMX: bf16 products by tdpbf16ps, softmax in AVX-512. The two units run side by side: while the
// vectors work on the logits of one step (32 query rows, 64 keys), slices of two products are put between them, the
// weights of the step before times its values, and the logits of the step after.
#include <immintrin.h>

#include "croquis/simd/tile_internal.h"

namespace croquis::simd {
namespace {

#include "croquis/simd/tile_avx512.h"
#include "croquis/simd/tile_inl.h"

constexpr int64_t kTile = 16;   // rows of an AMX tile
constexpr int64_t kStep = 32;   // query rows of a step
constexpr int64_t kInner = 32;  // bf16 numbers of a tile's row

// ---- tile instructions; tiles 0-3 are sums, 4-5 rows of queries or weights, 6-7 keys or values ----

// The assembler statements name no memory operand: "memory" orders them among plain loads and stores.
template <int T>
inline void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void LoadTile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void StoreTile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
inline void MultiplyTiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

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

// ---- a product in slices ----

// C[row tiles][columns] = (add ? C : 0) + A B, two columns of tiles at a time, one slice of 32 inner numbers after
// the other. A row-major, B in pairs of rows.
struct TileProduct {
  const uint16_t* a = nullptr;
  int64_t lda = 0;  // numbers
  const uint32_t* b = nullptr;
  int64_t ldb = 0;  // pairs
  float* c = nullptr;
  int64_t ldc = 0;
  int row_tiles = 0;  // 1 or 2
  bool add = false;
  int64_t columns = 0, inner = 0;  // in tiles
  int64_t column = 0, slice = 0;   // the next one

  bool done() const { return column >= columns; }
  int64_t Slices() const { return (columns + 1) / 2 * inner; }

  template <int R, int N>
  void Run() {
    const int64_t c_stride = ldc * 4, b_stride = ldb * 4;
    float* const out = c + column * kTile;
    if (slice == 0) {
      if (add) {
        LoadTile<0>(out, c_stride);
        if constexpr (N > 1) LoadTile<1>(out + kTile, c_stride);
        if constexpr (R > 1) LoadTile<2>(out + kTile * ldc, c_stride);
        if constexpr (R > 1 && N > 1) LoadTile<3>(out + kTile * ldc + kTile, c_stride);
      } else {
        ZeroTile<0>();
        if constexpr (N > 1) ZeroTile<1>();
        if constexpr (R > 1) ZeroTile<2>();
        if constexpr (R > 1 && N > 1) ZeroTile<3>();
      }
    }
    const uint16_t* const left = a + slice * kInner;
    const uint32_t* const right = b + slice * (kInner / 2) * ldb + column * kTile;
    LoadTile<4>(left, lda * 2);
    LoadTile<6>(right, b_stride);
    MultiplyTiles<0, 4, 6>();
    if constexpr (N > 1) {
      LoadTile<7>(right + kTile, b_stride);
      MultiplyTiles<1, 4, 7>();
    }
    if constexpr (R > 1) {
      LoadTile<5>(left + kTile * lda, lda * 2);
      MultiplyTiles<2, 5, 6>();
      if constexpr (N > 1) MultiplyTiles<3, 5, 7>();
    }
    if (++slice < inner) return;
    StoreTile<0>(out, c_stride);
    if constexpr (N > 1) StoreTile<1>(out + kTile, c_stride);
    if constexpr (R > 1) StoreTile<2>(out + kTile * ldc, c_stride);
    if constexpr (R > 1 && N > 1) StoreTile<3>(out + kTile * ldc + kTile, c_stride);
    slice = 0;
    column += N;
  }
  void Step() {
    const bool pair = column + 1 < columns;
    if (row_tiles > 1)
      pair ? Run<2, 2>() : Run<2, 1>();
    else
      pair ? Run<1, 2>() : Run<1, 1>();
  }
};

struct Scratch {
  Rows rows;
  alignas(64) float logits[2][kStep][kTileKeys];
  alignas(64) uint16_t weights[2][kStep][kTileKeys];
};

class Attention {
 public:
  explicit Attention(const TileCall& c)
      : c_(c), scratch_(*reinterpret_cast<Scratch*>(c.scratch)), sizes_(c.layout), softmax_(c, scratch_.rows) {
    for (int64_t h = 0; h < 2; ++h) sight_[h] = softmax_.Of(Min(c.rows, h * kStep), Min(c.rows, (h + 1) * kStep));
    next_ = {c_.begin / kTileKeys * kTileKeys, -1};
  }

  void Run() {
    Step now, after;
    if (!Next(now)) return softmax_.Finish();
    StartLogits(now, 0);
    while (!logits_.done()) logits_.Step();
    for (int parity = 0;; parity ^= 1) {
      const bool more = Next(after);
      if (more) StartLogits(after, parity ^ 1);
      Weigh(now, parity);
      while (Slice()) {
      }
      StartValues(now, parity);
      if (!more) break;
      now = after;
    }
    while (Slice()) {
    }
    softmax_.Finish();
  }

 private:
  struct Step {
    int64_t block, half;
  };
  // The next step that some row sees.
  bool Next(Step& step) {
    const int64_t halves = c_.rows > kStep ? 2 : 1;
    do {
      if (++next_.half == halves) next_.half = 0, next_.block += kTileKeys;
      if (next_.block >= c_.end) return false;
    } while (!sight_[next_.half].Sees(next_.block));
    step = next_;
    return true;
  }
  int64_t RowsOf(const Step& step) const { return Min(kStep, c_.rows - step.half * kStep); }

  void StartLogits(const Step& step, int parity) {
    TileProduct& p = logits_;
    p.a = (const uint16_t*)c_.queries + step.half * kStep * 2 * sizes_.units, p.lda = 2 * sizes_.units;
    p.b = (const uint32_t*)c_.keys + step.block / kTileKeys * sizes_.KeyBlock(), p.ldb = kTileKeys;
    p.c = scratch_.logits[parity][0], p.ldc = kTileKeys;
    p.row_tiles = RowsOf(step) > kTile ? 2 : 1;
    p.add = false;
    p.columns = kTileKeys / kTile, p.inner = sizes_.units * 2 / kInner;
    p.column = p.slice = 0;
  }
  void StartValues(const Step& step, int parity) {
    TileProduct& p = values_;
    p.a = scratch_.weights[parity][0], p.lda = kTileKeys;
    p.b = (const uint32_t*)c_.values + step.block / kTileKeys * sizes_.ValueBlock(), p.ldb = sizes_.value_width;
    p.c = c_.sums.data + step.half * kStep * c_.sums.stride, p.ldc = c_.sums.stride;
    p.row_tiles = RowsOf(step) > kTile ? 2 : 1;
    p.add = true;
    p.columns = sizes_.value_width / kTile, p.inner = kTileKeys / kInner;
    p.column = p.slice = 0;
  }
  // The next slice of what runs beside the softmax.
  bool Slice() {
    if (!values_.done())
      values_.Step();
    else if (!logits_.done())
      logits_.Step();
    else
      return false;
    return true;
  }

  void Weigh(const Step& step, int parity) {
    const int64_t groups = (RowsOf(step) + kGroup - 1) / kGroup;
    const int64_t slices = (values_.done() ? 0 : values_.Slices()) + (logits_.done() ? 0 : logits_.Slices());
    const int64_t each = (slices + groups - 1) / groups;
    const bool plain = softmax_.Plain() && sight_[step.half].SeesAll(step.block);
    // Weights that are not in the sums yet are relative to the old reference.
    const auto values_first = [&] {
      while (!values_.done()) values_.Step();
    };
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t r = g * kGroup, row = step.half * kStep + r;
      float* const s = scratch_.logits[parity][r];
      uint16_t* const w = scratch_.weights[parity][r];
      for (int64_t i = 0; i < each; ++i) Slice();
      if (plain)
        softmax_.Group<true, false>(row, step.block, s, w, values_first);
      else
        softmax_.Group<true, true>(row, step.block, s, w, values_first);
    }
  }

  const TileCall& c_;
  Scratch& scratch_;
  const Sizes<TileType::kBf16> sizes_;
  Softmax softmax_;
  Softmax::Sight sight_[2];
  Step next_;
  TileProduct logits_, values_;
};

void Attend(const TileCall& call) {
  const TileSetup setup;
  Attention(call).Run();
}

size_t ScratchBytes(const TileLayout&) { return sizeof(Scratch); }

}  // namespace

const TileKernels& TilesAmx() {
  static constexpr TileKernels kKernels = {
      "amx-bf16", Target::kAmx, PackBlock<TileType::kBf16>, PackQueries<TileType::kBf16>, Attend, ScratchBytes};
  return kKernels;
}

}  // namespace croquis::simd
