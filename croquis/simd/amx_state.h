// AMX tiles: instructions with tile numbers as template arguments, and what the tiles of a thread are set up for, which
// all AMX kernels share. For files with AMX flags only.
#pragma once

#include <immintrin.h>

#include <cstdint>

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
inline void StoreTile(void* to, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C += A B; A of signed or unsigned bytes, B of signed ones.
template <int C, int A, int B>
inline void MultiplyTiles(bool a_is_signed) {
  if (a_is_signed)
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  else
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// C += A B; pairs of bf16 into f32.
template <int C, int A, int B>
inline void MultiplyBf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace

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
ThreadTiles& MyTiles();  // this thread's, kept by pages_amx.cc
namespace {

inline void ReleaseTiles(ThreadTiles& mine) {
  if (mine.shape.rows > 0) _tile_release();
  mine.shape = {};
}

// Tiles of a shape, for as long as this object or an enclosing PageScope lives.
class Tiles {
 public:
  explicit Tiles(TileShape shape) : mine_(MyTiles()) {
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

}  // namespace
}  // namespace croquis::simd::amx
