// AMX int8 tiles: for many query rows a page is expanded to bytes once and multiplied in tiles of sixteen rows.
// Below kLeastRows the vector kernels of AVX-512 are faster and run instead.
//
// An A tile holds sixteen rows of 64 bytes: with fine precision the high bytes of eight query (or weight) rows and
// below them their low bytes, with fast precision sixteen rows. An expanded page is made of B tiles as they lie.
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"
#include "croquis/simd/pages_quantise_avx512.h"

namespace croquis::simd {
namespace amx {
namespace {

using avx512::CodesAt;
using avx512::HighByte;
using avx512::LevelOf;
using avx512::PlaneWeight;

// Fast, fine. Measured at dim 128 and 4 bits, ns a token for keys and values together, vectors against tiles, pages in
// cache: fine 5 rows 10.4 and 7.8, 8 rows 15.6 and 8.5, 16 rows 30.7 and 12.8; fast 8 rows equal, 12 rows 13.1 and 9.9,
// 16 rows 16.4 and 9.6. Four rows: 7.7 and 7.3 in cache, but no gain, or a loss, once pages come from memory.
constexpr int64_t kLeastRows[2] = {9, 5};
constexpr size_t kTile = 1024;

bool UsesTiles(Precision precision, int64_t rows) { return rows >= kLeastRows[precision == Precision::kFine]; }
int RowsOfTile(bool fine) { return fine ? 8 : 16; }
int64_t Tiles(int64_t rows, bool fine) { return (rows + RowsOfTile(fine) - 1) / RowsOfTile(fine); }
int Steps(const PageLayout& x) { return (x.dim + 63) / 64; }

// Tile instructions are assembler statements that do not name the memory they read.
inline void MemoryBarrier() { asm volatile("" ::: "memory"); }

// Tiles 0-3 are sums, 4-5 A and 6-7 B tiles. `inner`: bytes of an A row that are multiplied, 64 or 32.
class TileSession {
 public:
  explicit TileSession(int inner) {
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = uint16_t(i == 4 || i == 5 ? inner : 64);
      config.rows[i] = uint8_t(i >= 6 ? inner / 4 : 16);
    }
    asm volatile("" ::"r"(&config) : "memory");  // _tile_loadconfig names only its first eight bytes as read
    _tile_loadconfig(&config);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

// The byte levels of all atoms, eight lines an atom, in the order of the page.
template <int F>
void ExpandForm(const uint8_t* codes, const int8_t* level, int atoms, uint8_t* out) {
  const Tables tables = MakeTables<F>(level, false);
  for (int i = 0; i < atoms; ++i, codes += 64 * BitsOf(F), out += 512) {
    Unroll<8>([&](auto k) __attribute__((always_inline)) {
      _mm512_store_si512(out + 64 * k.value, Unit<F, k.value>(codes, tables));
    });
  }
}
void Expand(int bits, const uint8_t* codes, const int8_t* level, int atoms, uint8_t* out) {
  switch (FormOf(bits, level)) {
    case 1:
      return ExpandForm<1>(codes, level, atoms, out);
    case 2:
      return ExpandForm<2>(codes, level, atoms, out);
    case 3:
      return ExpandForm<3>(codes, level, atoms, out);
    case 4:
      return ExpandForm<4>(codes, level, atoms, out);
    case 5:
      return ExpandForm<5>(codes, level, atoms, out);
    case 6:
      return ExpandForm<6>(codes, level, atoms, out);
    case 7:
      return ExpandForm<7>(codes, level, atoms, out);
    case 8:
      return ExpandForm<8>(codes, level, atoms, out);
    default:
      return ExpandForm<kLooked8>(codes, level, atoms, out);
  }
}

// A prepared query: A tiles [tile][step of 64 dims], then f32 s [rows], then f32 m [rows][runs] with mins.
struct QueryAt {
  size_t s, m, end;
  QueryAt(const PageLayout& x, bool fine, int64_t rows) {
    s = size_t(Tiles(rows, fine)) * size_t(Steps(x)) * kTile;
    m = s + size_t(rows) * 4;
    end = (m + (x.mins ? size_t(rows) * size_t(x.runs) * 4 : 0) + 63) / 64 * 64;
  }
};

// The planes of the page expanded, a tile's worth of slack (a step of 64 may read past the last 32 dims, against
// zeros of the query), then the weights of one tile of rows for every run.
struct Weights {
  alignas(64) uint8_t tile[2][16][64];  // [half of the tokens][row]
  float unit[16];
};
struct ScratchAt {
  size_t plane, weights, end;
  ScratchAt(const PageLayout& x, const Levels& levels) {
    plane = 128 * size_t(x.dim);
    weights = plane * size_t(levels.planes) + kTile;
    end = weights + sizeof(Weights) * size_t(x.runs);
  }
};

void ExpandPlanes(const PageLayout& layout, const Levels& levels, const std::byte* page, std::byte* scratch) {
  for (int plane = 0; plane < levels.planes; ++plane) {
    Expand(layout.bits, reinterpret_cast<const uint8_t*>(page + CodesAt(layout)), LevelOf(levels, plane),
           layout.dim / 4, reinterpret_cast<uint8_t*>(scratch) + size_t(plane) * 128 * size_t(layout.dim));
  }
  MemoryBarrier();
}

size_t QueryBytes(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows) {
  if (!UsesTiles(precision, rows)) return avx512::QueryBytes(layout, levels, precision, rows);
  return QueryAt(layout, precision == Precision::kFine, rows).end;
}

size_t ScratchBytes(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows) {
  if (!UsesTiles(precision, rows)) return avx512::ScratchBytes(layout, levels, precision, rows);
  return ScratchAt(layout, levels).end;
}

void Prepare(const PageLayout& layout, const Levels& levels, Precision precision, MatView<const float> q, float scale,
             std::byte* query) {
  if (!UsesTiles(precision, q.rows)) return avx512::Prepare(layout, levels, precision, q, scale, query);
  const bool fine = precision == Precision::kFine;
  const QueryAt at(layout, fine, q.rows);
  __builtin_memset(query, 0, at.s);
  auto* s = reinterpret_cast<float*>(query + at.s);
  auto* m = reinterpret_cast<float*>(query + at.m);
  const float top = fine ? 32639.f : 127.f;
  const int in_tile = RowsOfTile(fine), steps = Steps(layout), run_dims = layout.dim / layout.runs;
  for (int64_t row = 0; row < q.rows; ++row) {
    const float* x = q.data + row * q.stride;
    std::byte* to = query + size_t(row / in_tile * steps) * kTile + size_t(row % in_tile) * 64;
    const float max = avx512::MaxAbs(x, layout.dim);
    const __m512 inverse = _mm512_set1_ps(max < kTiny ? 0.f : top / max);
    for (int i = 0; i < layout.dim; i += 16) {
      const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
      auto* bytes = reinterpret_cast<__m128i*>(to + size_t(i / 64) * kTile + i % 64);
      _mm_storeu_si128(bytes, _mm512_cvtepi32_epi8(fine ? HighByte(v) : v));
      if (fine) _mm_storeu_si128(bytes + 8 * 64 / 16, _mm512_cvtepi32_epi8(v));
    }
    s[row] = max < kTiny ? 0.f : (max / top) * (scale * levels.step);
    for (int r = 0; layout.mins && r < layout.runs; ++r) {
      m[row * layout.runs + r] = scale * avx512::SumOfRun(x + r * run_dims, run_dims);
    }
  }
}

using Sums = int32_t[16][16];

// Row g of a stored C tile, high and low parts put together.
template <bool kFine>
inline __m512i Combine(const Sums& c, int g) {
  const __m512i high = _mm512_load_si512(c[g]);
  return kFine ? _mm512_add_epi32(_mm512_slli_epi32(high, 8), _mm512_load_si512(c[8 + g])) : high;
}

struct ScoreTile {
  const std::byte* a;  // A tiles of the rows
  const uint8_t* x;    // expanded plane
  const uint16_t* scales;
  const float* s;
  float plane_weight;
  bool add;
  int rows, dim, runs;
  float* logits;
};

inline void StoreLogits(const ScoreTile& t, int g, int token, __m512 sum) {
  float* out = t.logits + g * kTokens + token;
  const __m512 v = _mm512_mul_ps(sum, _mm512_set1_ps(t.s[g] * t.plane_weight));
  _mm512_storeu_ps(out, t.add ? _mm512_add_ps(_mm512_loadu_ps(out), v) : v);
}

// One scale a token: four blocks of sixteen tokens at a time share each A tile.
template <bool kFine>
void ScoreOneRun(const ScoreTile& t, Ahead& ahead) {
  alignas(64) Sums c[4];
  const int64_t block = 16 * t.dim;
  for (int half = 0; half < 2; ++half) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < (t.dim + 63) / 64; ++k) {
      const uint8_t* b = t.x + 4 * half * block + k * int64_t(kTile);
      ahead.Step();
      _tile_loadd(4, t.a + size_t(k) * kTile, 64);
      _tile_loadd(6, b, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, b + block, 64);
      _tile_dpbssd(1, 4, 7);
      _tile_loadd(6, b + 2 * block, 64);
      _tile_dpbssd(2, 4, 6);
      _tile_loadd(7, b + 3 * block, 64);
      _tile_dpbssd(3, 4, 7);
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    _tile_stored(2, c[2], 64);
    _tile_stored(3, c[3], 64);
    MemoryBarrier();
    for (int i = 0; i < 4; ++i) {
      const int token = (4 * half + i) * 16;
      const __m512 scale = LoadHalf(t.scales + token);
      for (int g = 0; g < t.rows; ++g) {
        StoreLogits(t, g, token, _mm512_mul_ps(_mm512_cvtepi32_ps(Combine<kFine>(c[i], g)), scale));
      }
    }
  }
}

// A scale for each 32 dims: products of 32 dims (half of an A tile's columns), summed in f32.
template <bool kFine>
void ScoreRuns(const ScoreTile& t, Ahead& ahead) {
  alignas(64) Sums c[2];
  for (int tb = 0; tb < 8; ++tb) {
    __m512 sum[16];
    for (__m512& x : sum) x = _mm512_setzero_ps();
    for (int r = 0; r < t.runs; ++r) {
      ahead.Step();
      _tile_zero(0);
      _tile_loadd(4, t.a + size_t(r / 2) * kTile + r % 2 * 32, 64);
      _tile_loadd(6, t.x + (tb * t.runs + r) * 512, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_stored(0, c[r % 2], 64);
      MemoryBarrier();
      const __m512 scale = LoadHalf(t.scales + r * kTokens + tb * 16);
      for (int g = 0; g < t.rows; ++g) {
        sum[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(Combine<kFine>(c[r % 2], g)), scale, sum[g]);
      }
    }
    for (int g = 0; g < t.rows; ++g) StoreLogits(t, g, tb * 16, sum[g]);
  }
}

void Score(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
           const std::byte* query, int64_t rows, const std::byte* next, size_t next_bytes, float* logits,
           std::byte* scratch) {
  if (!UsesTiles(precision, rows)) {
    return avx512::Score(layout, levels, precision, page, query, rows, next, next_bytes, logits, scratch);
  }
  const bool fine = precision == Precision::kFine;
  const QueryAt at(layout, fine, rows);
  const auto* s = reinterpret_cast<const float*>(query + at.s);
  const auto* m = reinterpret_cast<const float*>(query + at.m);
  ExpandPlanes(layout, levels, page, scratch);
  const TileSession session(layout.runs > 1 ? 32 : 64);
  const int in_tile = RowsOfTile(fine), steps = Steps(layout);
  Ahead ahead(next, next == nullptr ? 0 : next_bytes, nullptr,
              int(Tiles(rows, fine)) * levels.planes * (layout.runs > 1 ? 8 * layout.runs : 2 * steps), 0);
  ScoreTile t;
  t.scales = reinterpret_cast<const uint16_t*>(page);
  t.dim = layout.dim;
  t.runs = layout.runs;
  for (int64_t first = 0; first < rows; first += in_tile) {
    t.a = query + size_t(first / in_tile * steps) * kTile;
    t.s = s + first;
    t.rows = int(rows - first < in_tile ? rows - first : in_tile);
    t.logits = logits + first * kTokens;
    for (int plane = 0; plane < levels.planes; ++plane) {
      t.x = reinterpret_cast<const uint8_t*>(scratch) + size_t(plane) * 128 * size_t(layout.dim);
      t.plane_weight = PlaneWeight(levels, plane);
      t.add = plane > 0;
      if (layout.runs > 1) {
        fine ? ScoreRuns<true>(t, ahead) : ScoreRuns<false>(t, ahead);
      } else {
        fine ? ScoreOneRun<true>(t, ahead) : ScoreOneRun<false>(t, ahead);
      }
    }
    for (int g = 0; layout.mins && g < t.rows; ++g) {
      avx512::AddKeyMins(t.scales + layout.runs * kTokens, layout.runs, m + (first + g) * layout.runs, 1,
                         t.logits + g * kTokens);
    }
  }
}

// Quantised weights of `rows` rows for one run, as the A tiles of both halves of the page.
template <bool kFine, bool kSigned>
void WeightTile(const float* p, const uint16_t* scales, int rows, Weights& w) {
  __m512 scale[8];
  CROQUIS_UNROLL for (int i = 0; i < 8; ++i) scale[i] = LoadHalf(scales + 16 * i);
  alignas(64) uint8_t hi[128], lo[128];
  for (int g = 0; g < rows; ++g) {
    int32_t total;
    w.unit[g] = avx512::QuantiseRow<kFine, kSigned>(p + g * kTokens, scale, hi, lo, &total);
    for (int half = 0; half < 2; ++half) {
      _mm512_store_si512(w.tile[half][g], _mm512_load_si512(hi + 64 * half));
      if constexpr (kFine) _mm512_store_si512(w.tile[half][8 + g], _mm512_load_si512(lo + 64 * half));
    }
  }
  const int in_tile = kFine ? 8 : 16;
  for (int g = rows; g < in_tile; ++g) {
    for (int half = 0; half < 2; ++half) {
      _mm512_store_si512(w.tile[half][g], _mm512_setzero_si512());
      if constexpr (kFine) _mm512_store_si512(w.tile[half][8 + g], _mm512_setzero_si512());
    }
  }
}

struct SumTile {
  const Weights* weights;  // [runs]
  const uint8_t* x;
  float step;
  const float* p_scale;
  int rows, dim, runs;
  float* acc;
  int64_t stride;
};

// 32 dims at a time: two blocks of sixteen, each over both halves of the tokens.
template <bool kFine, bool kSigned>
void SumTiles(const SumTile& t, Ahead& ahead) {
  alignas(64) Sums c[2];
  float scale[16];
  for (int block = 0; block < t.dim / 32; ++block) {
    const Weights& w = t.weights[t.runs > 1 ? block : 0];
    const uint8_t* b = t.x + block * 8 * 512;
    ahead.Step();
    if (block == 0 || t.runs > 1) {
      _tile_loadd(4, w.tile[0], 64);
      _tile_loadd(5, w.tile[1], 64);
      for (int g = 0; g < t.rows; ++g) scale[g] = (w.unit[g] * t.step) * t.p_scale[g];
    }
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, b, 128);
    _tile_loadd(7, b + 64, 128);
    if constexpr (kSigned) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
    } else {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
    }
    _tile_loadd(6, b + 4 * 512, 128);
    _tile_loadd(7, b + 4 * 512 + 64, 128);
    if constexpr (kSigned) {
      _tile_dpbssd(0, 5, 6);
      _tile_dpbssd(1, 5, 7);
    } else {
      _tile_dpbusd(0, 5, 6);
      _tile_dpbusd(1, 5, 7);
    }
    _tile_stored(0, c[0], 64);
    _tile_stored(1, c[1], 64);
    MemoryBarrier();
    for (int g = 0; g < t.rows; ++g) {
      for (int j = 0; j < 2; ++j) {
        float* out = t.acc + g * t.stride + 32 * block + 16 * j;
        const __m512 sum = _mm512_cvtepi32_ps(Combine<kFine>(c[j], g));
        _mm512_storeu_ps(out, _mm512_fmadd_ps(sum, _mm512_set1_ps(scale[g]), _mm512_loadu_ps(out)));
      }
    }
  }
}

template <bool kFine, bool kSigned>
void AccumulateTiles(const PageLayout& layout, const Levels& levels, const uint16_t* scales, const float* p,
                     const float* p_scale, int64_t rows, MatView<float> acc, std::byte* scratch, Ahead& ahead) {
  constexpr int kInTile = kFine ? 8 : 16;
  const ScratchAt at(layout, levels);
  auto* weights = reinterpret_cast<Weights*>(scratch + at.weights);
  SumTile t;
  t.weights = weights;
  t.dim = layout.dim;
  t.runs = layout.runs;
  t.stride = acc.stride;
  for (int64_t first = 0; first < rows; first += kInTile) {
    t.rows = int(rows - first < kInTile ? rows - first : kInTile);
    t.p_scale = p_scale + first;
    t.acc = acc.data + first * acc.stride;
    for (int r = 0; r < layout.runs; ++r) {
      WeightTile<kFine, kSigned>(p + first * kTokens, scales + r * kTokens, t.rows, weights[r]);
    }
    MemoryBarrier();
    for (int plane = 0; plane < levels.planes; ++plane) {
      t.x = reinterpret_cast<const uint8_t*>(scratch) + size_t(plane) * at.plane;
      t.step = levels.step * PlaneWeight(levels, plane);
      SumTiles<kFine, kSigned>(t, ahead);
    }
    for (int g = 0; layout.mins && g < t.rows; ++g) {
      avx512::AddValueMins(scales + layout.runs * kTokens, layout.runs, layout.dim / layout.runs,
                           p + (first + g) * kTokens, t.p_scale[g], t.acc + g * t.stride);
    }
  }
}

void Accumulate(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                const float* p, const float* p_scale, int64_t rows, const std::byte* next, size_t next_bytes,
                MatView<float> acc, std::byte* scratch) {
  if (!UsesTiles(precision, rows)) {
    return avx512::Accumulate(layout, levels, precision, page, p, p_scale, rows, next, next_bytes, acc, scratch);
  }
  const bool fine = precision == Precision::kFine;
  const auto* scales = reinterpret_cast<const uint16_t*>(page);
  const bool negative = avx512::AnyNegative(scales, int64_t(layout.runs) * kTokens);
  ExpandPlanes(layout, levels, page, scratch);
  const TileSession session(64);
  Ahead ahead(next, next == nullptr ? 0 : next_bytes, nullptr,
              int(Tiles(rows, fine)) * levels.planes * (layout.dim / 32), 0);
  const auto run = fine ? (negative ? AccumulateTiles<true, true> : AccumulateTiles<true, false>)
                        : (negative ? AccumulateTiles<false, true> : AccumulateTiles<false, false>);
  run(layout, levels, scales, p, p_scale, rows, acc, scratch, ahead);
}

}  // namespace
}  // namespace amx

const PageKernels& PagesAmx() {
  static constexpr PageKernels kKernels = {
      .name = "amx-int8 from 5 rows (fast: 9), avx512-vnni below",
      .target = Target::kAmx,
      .query_bytes = amx::QueryBytes,
      .scratch_bytes = amx::ScratchBytes,
      .prepare = amx::Prepare,
      .score = amx::Score,
      .accumulate = amx::Accumulate,
      .pack_keys = avx512::PackKeys,
      .pack_values = avx512::PackValues,
      .fwht = avx512::Fwht,
      .nearest = avx512::Nearest,
      .f16_to_f32 = avx512::F16ToF32,
      .f32_to_f16 = avx512::F32ToF16,
      .bf16_to_f32 = avx512::Bf16ToF32,
      .f32_to_bf16 = avx512::F32ToBf16,
  };
  return kKernels;
}

}  // namespace croquis::simd
