// What AMX kernels on pages are made of: tile instructions with tile numbers as template arguments, the shape that the
// tiles of a thread have, and pages expanded to bytes. Included by pages_amx.cc alone, which keeps the state of a
// thread.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"
#include "croquis/simd/pages_quantise_avx512.h"

namespace croquis::simd::amx {
namespace {

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
inline void StoreTile(void* to) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(int64_t{64}), "i"(T) : "memory");
}
// C += A B; A of signed or unsigned bytes, B of signed ones.
template <int C, int A, int B>
inline void MultiplyTiles(bool a_is_signed) {
  if (a_is_signed)
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  else
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// Tiles 0-3 are sums and 4-5 A tiles of `rows` rows, 6-7 B tiles. `inner`: bytes of an A row that are multiplied, 64
// or 32.
struct TileShape {
  int rows = 0, inner = 0;
};

// What this thread's tiles are set up for. Setting them up takes as long as a tenth of a page's work, so within a
// PageScope they stay set up from call to call.
struct ThreadTiles {
  TileShape shape;  // rows 0: not set up
  int scopes = 0;
};
inline ThreadTiles& Mine() {
  static thread_local constinit ThreadTiles tiles;
  return tiles;
}

inline void ReleaseTiles(ThreadTiles& mine) {
  if (mine.shape.rows > 0) _tile_release();
  mine.shape = {};
}

// Tiles of a shape, for as long as this object or an enclosing PageScope lives.
class Tiles {
 public:
  explicit Tiles(TileShape shape) : mine_(Mine()) {
    if (mine_.shape.rows == shape.rows && mine_.shape.inner == shape.inner) return;
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = uint16_t(i == 4 || i == 5 ? shape.inner : 64);
      config.rows[i] = uint8_t(i >= 6 ? shape.inner / 4 : shape.rows);
    }
    asm volatile("" ::"r"(&config) : "memory");  // _tile_loadconfig names only its first eight bytes as read
    _tile_loadconfig(&config);
    mine_.shape = shape;
  }
  ~Tiles() {
    if (mine_.scopes == 0) ReleaseTiles(mine_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  ThreadTiles& mine_;
};

constexpr size_t kTile = 1024;
constexpr int kExpanded = 0;  // a form beside those of pages_codes_avx512.h: the levels stand there as bytes

// How `rows` query rows are laid out in A tiles.
struct Groups {
  int tile_rows;  // 8 or 16
  int rows;       // query rows of a tile
  int64_t count;  // tiles
  Groups(int64_t all, bool fine)
      : tile_rows(all * (fine ? 2 : 1) <= 8 ? 8 : 16),
        rows(fine ? tile_rows / 2 : tile_rows),
        count((all + rows - 1) / rows) {}
};
// One atom's byte levels, eight lines.
template <int F>
[[gnu::always_inline]] inline void ExpandAtom(const uint8_t* codes, const Tables& tables, uint8_t* out) {
  Unroll<8>([&](auto k) __attribute__((always_inline)) {
    _mm512_store_si512(out + 64 * k.value, Unit<F, k.value>(codes, tables));
  });
}

using Sums = int32_t[16][16];

// Row g of a stored C tile, high and low parts put together.
template <bool kFine>
inline __m512i Combine(const Sums& c, int g, int low) {
  const __m512i high = _mm512_load_si512(c[g]);
  return kFine ? _mm512_add_epi32(_mm512_slli_epi32(high, 8), _mm512_load_si512(c[low + g])) : high;
}

// Calls fn(Index<form>).
template <class Fn>
void WithForm(int form, const Fn& fn) {
  switch (form) {
    case 1:
      return fn(Index<1>{});
    case 2:
      return fn(Index<2>{});
    case 3:
      return fn(Index<3>{});
    case 4:
      return fn(Index<4>{});
    case 5:
      return fn(Index<5>{});
    case 6:
      return fn(Index<6>{});
    case 7:
      return fn(Index<7>{});
    case 8:
      return fn(Index<8>{});
    case kLooked8:
      return fn(Index<kLooked8>{});
    default:
      return fn(Index<kExpanded>{});
  }
}

// One plane of a page as one group of rows meets it: the first expands it, if it needs to be.
struct PlaneCodes {
  const uint8_t* codes;
  uint8_t* x;
  int form;
  PlaneCodes(const PageLayout& layout, const int8_t* level, const std::byte* page, int plane, bool first, bool keys,
             std::byte* scratch)
      : codes(reinterpret_cast<const uint8_t*>(page + avx512::CodesAt(layout))),
        x(reinterpret_cast<uint8_t*>(scratch) + size_t(plane) * 128 * size_t(layout.dim)),
        form(FormOf(layout.bits, level)) {
    // A step of 64 dims may not read past the page.
    const bool as_they_stand = form == 8 && level[0] == 0 && (!keys || layout.dim % 64 == 0);
    if (as_they_stand || !first) form = kExpanded;
    if (!first && !as_they_stand) codes = x;
  }
};

}  // namespace
}  // namespace croquis::simd::amx
