// What AMX kernels on codes are made of: pages expanded to bytes. Included by pages_amx.cc alone.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "croquis/simd/amx_state.h"
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"
#include "croquis/simd/pages_quantise_avx512.h"

namespace croquis::simd::amx {
namespace {

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
