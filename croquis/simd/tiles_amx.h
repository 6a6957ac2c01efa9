// What AMX kernels on codes are made of: how query rows lie in A tiles, and pages expanded to bytes. Included by
// pages_amx.cc, pages_score_amx.cc and pages_sum_amx.cc alone.
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

// How query rows are laid out in A tiles, and sums in C tiles.
//
// A group of query rows takes 4, 8 or 16 rows of a tile: their high bytes, then, with fine precision, their low ones.
// Storing a C tile takes as long as storing sixteen lines, whatever it holds. So where a group takes 4 or 8 rows, two B
// tiles' products share a C tile of twice as many: the A tile that meets the first has its rows on top and zeros
// below, the A tile that meets the second the other way round.
struct Groups {
  int height;     // tile rows of a group
  int share;      // B tiles whose products share a C tile: 1 or 2
  int rows;       // query rows of a group, of which the last group may have fewer
  int64_t count;  // groups
  // one_run: one scale a vector; with more nothing is shared.
  Groups(int64_t all, bool fine, bool one_run) {
    const int64_t need = all * (fine ? 2 : 1);
    height = need > 8 || !one_run ? 16 : need > 4 ? 8 : 4;
    share = Share(height);
    rows = fine ? height / 2 : height;
    count = (all + rows - 1) / rows;
  }
  int tile_rows() const { return height * share; }
  static constexpr int Share(int height) { return height < 16 ? 2 : 1; }
};

// How far the expanding of codes runs ahead of the products, in blocks of 16 tokens (half blocks of 16 dims for
// values): two where products take as long as expanding, one with twice the products (2 % faster there, measured).
constexpr int BlocksAhead(bool fine) { return fine ? 1 : 2; }

inline int Steps(const PageLayout& x) { return (x.dim + 63) / 64; }

// A prepared query: A tiles [group][share][step of 64 dims], then f32 s [rows], then f32 m [rows][runs] with mins.
struct QueryAt {
  size_t group, s, m, end;  // group: bytes of one
  QueryAt(const PageLayout& x, const Groups& groups, int64_t rows) {
    group = size_t(groups.share) * size_t(Steps(x)) * kTile;
    s = size_t(groups.count) * group;
    m = s + size_t(rows) * 4;
    end = (m + (x.mins ? size_t(rows) * size_t(x.runs) * 4 : 0) + 63) / 64 * 64;
  }
};

// Quantised weights of one group and run, for both halves of the tokens. Not shared, rows 0.. are an A tile. Shared,
// the group's rows stand between two stretches of as many zeros: the A tile with the group on top begins in the middle,
// the other one at row 0.
struct Weights {
  alignas(64) uint8_t line[2][24][64];
  float unit[16];
};
static_assert(sizeof(Weights) % 64 == 0);

// The planes of the page expanded, a tile's worth of slack (a step of 64 may read past the last 32 dims, against
// zeros of the query), then the weights of one group of rows for every run.
struct ScratchAt {
  size_t plane, weights, end;
  ScratchAt(const PageLayout& x, const Levels& levels) {
    plane = 128 * size_t(x.dim);
    weights = plane * size_t(levels.planes) + kTile;
    end = weights + sizeof(Weights) * size_t(x.runs);
  }
};

// One atom's byte levels, eight lines.
template <int F>
[[gnu::always_inline]] inline void ExpandAtom(const uint8_t* codes, const Tables<F>& tables, uint8_t* out) {
  Unroll<8>([&](auto k) __attribute__((always_inline)) {
    _mm512_store_si512(out + 64 * k.value, Unit<F, k.value>(codes, tables));
  });
}

using Sums = int32_t[16][16];

// Row g of a group whose rows of a stored C tile begin at c, high and low parts put together; low: rows before these.
template <bool kFine>
inline __m512i Combine(const int32_t (*c)[16], int g, int low) {
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

// Calls fn(Index<dim>, Index<height>), with dim 0 where it is not one of the usual ones.
template <bool kFine, class Fn>
void WithSizes(int dim, int height, const Fn& fn) {
  const auto with_dim = [&](auto h) {
    switch (dim) {
      case 64:
        return fn(Index<64>{}, h);
      case 128:
        return fn(Index<128>{}, h);
      default:
        return fn(Index<0>{}, h);
    }
  };
  if (height == 16) return with_dim(Index<16>{});
  if (kFine || height == 8) return with_dim(Index<8>{});
  if constexpr (!kFine) with_dim(Index<4>{});
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
