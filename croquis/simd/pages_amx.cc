// AMX int8 tiles. Codes are expanded to bytes a block ahead of the tile products that use them; further groups of query
// rows find the page expanded. Below LeastRows the vector kernels of AVX-512 are faster and run instead.
//
// An A tile holds 8 or 16 rows of 64 bytes: with fine precision its first half holds the high bytes of query (or
// weight) rows and its second half their low bytes, with fast precision each row is one. An expanded page is made of B
// tiles as they lie.
#include "croquis/simd/pages_avx512.h"
#include "croquis/simd/pages_codes_avx512.h"
#include "croquis/simd/pages_quantise_avx512.h"
#include "croquis/simd/tiles_amx.h"

namespace croquis::simd {
namespace amx {

ThreadTiles& MyTiles() {
  static thread_local constinit ThreadTiles tiles;
  return tiles;
}

namespace {

using avx512::CodesAt;
using avx512::HighByte;
using avx512::LevelOf;
using avx512::PlaneWeight;

// Fewest rows for which tiles pay.
int64_t LeastRows(const PageLayout& layout, Precision precision) {
  const bool fine = precision == Precision::kFine;
  return layout.runs > 1 ? (fine ? 5 : 9) : 3;
}
bool UsesTiles(const PageLayout& layout, Precision precision, int64_t rows) {
  return rows >= LeastRows(layout, precision);
}

int Steps(const PageLayout& x) { return (x.dim + 63) / 64; }

// A prepared query: A tiles [group][step of 64 dims], then f32 s [rows], then f32 m [rows][runs] with mins.
struct QueryAt {
  size_t s, m, end;
  QueryAt(const PageLayout& x, bool fine, int64_t rows) {
    s = size_t(Groups(rows, fine).count) * size_t(Steps(x)) * kTile;
    m = s + size_t(rows) * 4;
    end = (m + (x.mins ? size_t(rows) * size_t(x.runs) * 4 : 0) + 63) / 64 * 64;
  }
};

// The planes of the page expanded, a tile's worth of slack (a step of 64 may read past the last 32 dims, against
// zeros of the query), then the weights of one group of rows for every run.
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

size_t QueryBytes(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows) {
  if (!UsesTiles(layout, precision, rows)) return avx512::QueryBytes(layout, levels, precision, rows);
  return QueryAt(layout, precision == Precision::kFine, rows).end;
}

size_t ScratchBytes(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows) {
  if (!UsesTiles(layout, precision, rows)) return avx512::ScratchBytes(layout, levels, precision, rows);
  return ScratchAt(layout, levels).end;
}

void Prepare(const PageLayout& layout, const Levels& levels, Precision precision, MatView<const float> q, float scale,
             std::byte* query) {
  if (!UsesTiles(layout, precision, q.rows)) return avx512::Prepare(layout, levels, precision, q, scale, query);
  const bool fine = precision == Precision::kFine;
  const QueryAt at(layout, fine, q.rows);
  const Groups groups(q.rows, fine);
  __builtin_memset(query, 0, at.s);
  auto* s = reinterpret_cast<float*>(query + at.s);
  auto* m = reinterpret_cast<float*>(query + at.m);
  const float top = fine ? 32639.f : 127.f;
  const int steps = Steps(layout), run_dims = layout.dim / layout.runs;
  for (int64_t row = 0; row < q.rows; ++row) {
    const float* x = q.data + row * q.stride;
    std::byte* to = query + size_t(row / groups.rows * steps) * kTile + size_t(row % groups.rows) * 64;
    const float max = avx512::MaxAbs(x, layout.dim);
    const __m512 inverse = _mm512_set1_ps(max < kTiny ? 0.f : top / max);
    for (int i = 0; i < layout.dim; i += 16) {
      const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
      std::byte* bytes = to + size_t(i / 64) * kTile + i % 64;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm512_cvtepi32_epi8(fine ? HighByte(v) : v));
      if (fine) _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 64 * groups.rows), _mm512_cvtepi32_epi8(v));
    }
    s[row] = max < kTiny ? 0.f : (max / top) * (scale * levels.step);
    for (int r = 0; layout.mins && r < layout.runs; ++r) {
      m[row * layout.runs + r] = scale * avx512::SumOfRun(x + r * run_dims, run_dims);
    }
  }
}

struct ScoreTile {
  const uint8_t* codes;  // of the plane; or its levels
  const int8_t* level;
  uint8_t* x;          // room for its levels, expanded
  const std::byte* a;  // A tiles of the group
  const uint16_t* scales;
  const float* s;
  float plane_weight;
  bool add;
  int rows, low, dim, runs;  // low: rows of the A tile before the low bytes
  float* logits;
};

inline void StoreLogits(const ScoreTile& t, int g, int token, __m512 sum) {
  float* out = t.logits + g * kTokens + token;
  const __m512 v = _mm512_mul_ps(sum, _mm512_set1_ps(t.s[g] * t.plane_weight));
  _mm512_storeu_ps(out, t.add ? _mm512_add_ps(_mm512_loadu_ps(out), v) : v);
}

// C tile = A * the sixteen tokens whose levels are at b. Two steps' A tiles stay loaded.
template <int C>
[[gnu::always_inline]] inline void ScoreBlock(const std::byte* a, int steps, const uint8_t* b, bool load) {
  ZeroTile<C>();
  for (int k = 0; k < steps; k += 2, a += 2 * kTile, b += 2 * kTile) {
    if (load || steps > 2) LoadTile<4>(a, 64);
    LoadTile<6>(b, 64);
    MultiplyTiles<C, 4, 6>(true);
    if (k + 1 == steps) break;
    if (load || steps > 2) LoadTile<5>(a + kTile, 64);
    LoadTile<7>(b + kTile, 64);
    MultiplyTiles<C, 5, 7>(true);
  }
}

// One scale a token. While the tiles multiply block tb, block tb + 1 is expanded, block tb - 2 leaves its tile and
// block tb - 3 becomes logits: what is stored is never read right after. kDim: the dim where known, or 0. What the
// loops need of t is copied: every tile instruction makes the compiler read memory again.
template <int F, bool kFine, int kDim>
void ScoreOneRun(const ScoreTile& t, Ahead& to_come) {
  alignas(64) Sums c[4];
  alignas(64) float s[16];
  Ahead ahead = to_come;
  const int dim = kDim > 0 ? kDim : t.dim, atoms = dim / 32, steps = (dim + 63) / 64, rows = t.rows, low = t.low;
  const uint8_t *const codes = t.codes, *const x = F == kExpanded ? t.codes : t.x;
  uint8_t* const out = t.x;
  float* const logits = t.logits;
  const uint16_t* const scales = t.scales;
  const bool add = t.add;
  const Tables tables = MakeTables < F == kExpanded ? 8 : F > (t.level, false);
  for (int g = 0; g < rows; ++g) s[g] = t.s[g] * t.plane_weight;
  const auto expand = [&](int tb) __attribute__((always_inline)) {
    for (int i = tb * atoms; i < (tb + 1) * atoms; ++i) {
      ahead.Step();
      if constexpr (F != kExpanded) ExpandAtom<F>(codes + i * (64 * BitsOf(F)), tables, out + i * 512);
    }
  };
  const auto finish = [&](int tb) __attribute__((always_inline)) {
    const __m512 scale = LoadHalf(scales + tb * 16);
    float* to = logits + tb * 16;
    for (int g = 0; g < rows; ++g, to += kTokens) {
      const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(Combine<kFine>(c[tb % 4], g, low)), scale);
      const __m512 v = _mm512_mul_ps(sum, _mm512_set1_ps(s[g]));
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), v) : v);
    }
  };
  expand(0);
  for (int half = 0; half < 8; half += 4) {
    Unroll<4>([&](auto index) __attribute__((always_inline)) {
      constexpr int i = index.value;
      const int tb = half + i;
      if (i < 3 || half == 0) expand(tb + 1);
      ScoreBlock<i>(t.a, steps, x + tb * 16 * dim, i == 0 && half == 0);
      if (i >= 2 || half > 0) StoreTile<(i + 2) % 4>(c[(i + 2) % 4]);
      if (i >= 3 || half > 0) finish(tb - 3);
    });
  }
  StoreTile<2>(c[2]);
  StoreTile<3>(c[3]);
  finish(5);
  finish(6);
  finish(7);
}

// A scale for each 32 dims: products of 32 dims (half of an A tile's columns), summed in f32.
template <int F, bool kFine>
void ScoreRuns(const ScoreTile& t, Ahead& ahead) {
  alignas(64) Sums c[2];
  const uint8_t* x = F == kExpanded ? t.codes : t.x;
  const Tables tables = MakeTables < F == kExpanded ? 8 : F > (t.level, false);
  const auto expand = [&](int atom) __attribute__((always_inline)) {
    ahead.Step();
    if constexpr (F != kExpanded) ExpandAtom<F>(t.codes + atom * (64 * BitsOf(F)), tables, t.x + atom * 512);
  };
  expand(0);
  for (int tb = 0; tb < 8; ++tb) {
    __m512 sum[16];
    for (__m512& v : sum) v = _mm512_setzero_ps();
    for (int r = 0; r < t.runs; ++r) {
      const int atom = tb * t.runs + r;
      if (atom + 1 < 8 * t.runs) expand(atom + 1);
      ZeroTile<0>();
      LoadTile<4>(t.a + size_t(r / 2) * kTile + r % 2 * 32, 64);
      LoadTile<6>(x + atom * 512, 64);
      MultiplyTiles<0, 4, 6>(true);
      StoreTile<0>(c[r % 2]);
      const __m512 scale = LoadHalf(t.scales + r * kTokens + tb * 16);
      for (int g = 0; g < t.rows; ++g) {
        sum[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(Combine<kFine>(c[r % 2], g, t.low)), scale, sum[g]);
      }
    }
    for (int g = 0; g < t.rows; ++g) StoreLogits(t, g, tb * 16, sum[g]);
  }
}

template <int F, bool kFine>
void ScoreForm(const ScoreTile& t, Ahead& ahead) {
  if (t.runs > 1) return ScoreRuns<F, kFine>(t, ahead);
  switch (t.dim) {
    case 64:
      return ScoreOneRun<F, kFine, 64>(t, ahead);
    case 128:
      return ScoreOneRun<F, kFine, 128>(t, ahead);
    default:
      return ScoreOneRun<F, kFine, 0>(t, ahead);
  }
}

void Score(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
           const std::byte* query, int64_t rows, const std::byte* next, size_t next_bytes, float* logits,
           std::byte* scratch) {
  if (!UsesTiles(layout, precision, rows)) {
    return avx512::Score(layout, levels, precision, page, query, rows, next, next_bytes, logits, scratch);
  }
  const bool fine = precision == Precision::kFine;
  const QueryAt at(layout, fine, rows);
  const Groups groups(rows, fine);
  const auto* s = reinterpret_cast<const float*>(query + at.s);
  const auto* m = reinterpret_cast<const float*>(query + at.m);
  const Tiles tiles({groups.tile_rows, layout.runs > 1 ? 32 : 64});
  Ahead ahead(page, layout.Bytes(), next, layout.dim / 4);
  ScoreTile t;
  t.scales = reinterpret_cast<const uint16_t*>(page);
  t.dim = layout.dim;
  t.runs = layout.runs;
  t.low = groups.rows;
  for (int64_t i = 0; i < groups.count; ++i) {
    const int64_t first = i * groups.rows;
    t.a = query + size_t(i) * size_t(Steps(layout)) * kTile;
    t.s = s + first;
    t.rows = int(rows - first < groups.rows ? rows - first : groups.rows);
    t.logits = logits + first * kTokens;
    for (int plane = 0; plane < levels.planes; ++plane) {
      t.level = LevelOf(levels, plane);
      const PlaneCodes codes(layout, t.level, page, plane, i == 0, true, scratch);
      t.codes = codes.codes;
      t.x = codes.x;
      t.plane_weight = PlaneWeight(levels, plane);
      t.add = plane > 0;
      WithForm(codes.form, [&](auto form) {
        fine ? ScoreForm<form.value, true>(t, ahead) : ScoreForm<form.value, false>(t, ahead);
      });
      ahead = Ahead(nullptr, 0, nullptr, 1);
    }
    for (int g = 0; layout.mins && g < t.rows; ++g) {
      avx512::AddKeyMins(t.scales + layout.runs * kTokens, layout.runs, m + (first + g) * layout.runs, 1,
                         t.logits + g * kTokens);
    }
  }
}

// Quantised weights of `rows` rows for one run, as the A tiles of both halves of the page.
template <bool kFine, bool kSigned>
void WeightTile(const float* p, const uint16_t* scales, int rows, int low, int tile_rows, Weights& w) {
  __m512 scale[8];
  CROQUIS_UNROLL for (int i = 0; i < 8; ++i) scale[i] = LoadHalf(scales + 16 * i);
  const auto put = [&](int row, const uint8_t* bytes) {
    _mm512_store_si512(w.tile[0][row], _mm512_load_si512(bytes));
    _mm512_store_si512(w.tile[1][row], _mm512_load_si512(bytes + 64));
  };
  alignas(64) uint8_t hi[128], lo[128];
  for (int g = 0; g < rows; ++g) {
    int32_t total;
    w.unit[g] = avx512::QuantiseRow<kFine, kSigned>(p + g * kTokens, scale, hi, lo, &total);
    put(g, hi);
    if constexpr (kFine) put(low + g, lo);
  }
  __builtin_memset(hi, 0, sizeof hi);
  for (int g = rows; g < (kFine ? low : tile_rows); ++g) {
    put(g, hi);
    if constexpr (kFine) put(low + g, hi);
  }
}

struct SumTile {
  const uint8_t* codes;
  const int8_t* level;
  uint8_t* x;
  const Weights* weights;  // [runs]
  bool is_signed;
  float step;
  const float* p_scale;
  int rows, low, dim, runs;
  float* acc;
  int64_t stride;
};

// C and C + 1 (dims 0-15 and 16-31 of the block) += the weights of half the tokens (tile A) * their levels at b.
template <int C, int A>
[[gnu::always_inline]] inline void SumHalf(bool is_signed, const uint8_t* b) {
  LoadTile<6>(b, 128);
  MultiplyTiles<C, A, 6>(is_signed);
  LoadTile<7>(b + 64, 128);
  MultiplyTiles<C + 1, A, 7>(is_signed);
}

// 32 dims at a time, each over both halves of the tokens. As in ScoreOneRun, expanding runs half a block ahead of the
// products, and what they give is read one block later.
template <int F, bool kFine, int kDim>
void SumBlocks(const SumTile& t, Ahead& to_come) {
  alignas(64) Sums c[4];
  alignas(64) float s[16];
  Ahead ahead = to_come;
  const int blocks = (kDim > 0 ? kDim : t.dim) / 32, rows = t.rows, low = t.low;
  const uint8_t *const codes = t.codes, *const x = F == kExpanded ? t.codes : t.x;
  uint8_t* const out = t.x;
  const Weights* const weights = t.weights;
  const bool runs = t.runs > 1, is_signed = t.is_signed;
  float* const acc = t.acc;
  const int64_t stride = t.stride;
  const Tables tables = MakeTables < F == kExpanded ? 8 : F > (t.level, false);
  const auto scale_of = [&](const Weights& w) {
    for (int g = 0; g < rows; ++g) s[g] = (w.unit[g] * t.step) * t.p_scale[g];
  };
  const auto expand = [&](int half_block) __attribute__((always_inline)) {
    for (int i = 4 * half_block; i < 4 * half_block + 4; ++i) {
      ahead.Step();
      if constexpr (F != kExpanded) ExpandAtom<F>(codes + i * (64 * BitsOf(F)), tables, out + i * 512);
    }
  };
  const auto finish = [&](int block) __attribute__((always_inline)) {
    if (runs) scale_of(weights[block]);
    float* to = acc + 32 * block;
    for (int g = 0; g < rows; ++g, to += stride) {
      const __m512 scale = _mm512_set1_ps(s[g]);
      for (int j = 0; j < 2; ++j) {
        const __m512 sum = _mm512_cvtepi32_ps(Combine<kFine>(c[block % 2 * 2 + j], g, low));
        _mm512_storeu_ps(to + 16 * j, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(to + 16 * j)));
      }
    }
  };
  if (!runs) scale_of(weights[0]);
  expand(0);
  for (int pair = 0; pair < blocks; pair += 2) {
    Unroll<2>([&](auto index) __attribute__((always_inline)) {
      constexpr int C = 2 * index.value, P = 2 - C;  // tiles of this block, of the one before
      const int block = pair + index.value;
      if (block >= blocks) return;
      const uint8_t* b = x + block * 8 * 512;
      expand(2 * block + 1);
      if (block == 0 || runs) {
        LoadTile<4>(weights[runs ? block : 0].tile[0], 64);
        LoadTile<5>(weights[runs ? block : 0].tile[1], 64);
      }
      ZeroTile<C>();
      ZeroTile<C + 1>();
      SumHalf<C, 4>(is_signed, b);
      if (block + 1 < blocks) expand(2 * block + 2);
      SumHalf<C, 5>(is_signed, b + 4 * 512);
      if (block > 0) {
        StoreTile<P>(c[P]);
        StoreTile<P + 1>(c[P + 1]);
      }
      if (block > 1) finish(block - 2);
    });
  }
  if (blocks % 2 == 0) {
    StoreTile<2>(c[2]);
    StoreTile<3>(c[3]);
  } else {
    StoreTile<0>(c[0]);
    StoreTile<1>(c[1]);
  }
  if (blocks > 1) finish(blocks - 2);
  finish(blocks - 1);
}

template <int F, bool kFine>
void SumForm(const SumTile& t, Ahead& ahead) {
  switch (t.dim) {
    case 64:
      return SumBlocks<F, kFine, 64>(t, ahead);
    case 128:
      return SumBlocks<F, kFine, 128>(t, ahead);
    default:
      return SumBlocks<F, kFine, 0>(t, ahead);
  }
}

void MakeWeights(const float* p, const uint16_t* scales, const SumTile& t, bool fine, int tile_rows, Weights* weights) {
  const auto make = fine ? (t.is_signed ? WeightTile<true, true> : WeightTile<true, false>)
                         : (t.is_signed ? WeightTile<false, true> : WeightTile<false, false>);
  for (int r = 0; r < t.runs; ++r) make(p, scales + r * kTokens, t.rows, t.low, tile_rows, weights[r]);
}

void Accumulate(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                const float* p, const float* p_scale, int64_t rows, const std::byte* next, size_t next_bytes,
                MatView<float> acc, std::byte* scratch) {
  if (!UsesTiles(layout, precision, rows)) {
    return avx512::Accumulate(layout, levels, precision, page, p, p_scale, rows, next, next_bytes, acc, scratch);
  }
  const bool fine = precision == Precision::kFine;
  const auto* scales = reinterpret_cast<const uint16_t*>(page);
  const Groups groups(rows, fine);
  const Tiles tiles({groups.tile_rows, 64});
  auto* weights = reinterpret_cast<Weights*>(scratch + ScratchAt(layout, levels).weights);
  Ahead ahead(page, layout.Bytes(), next, layout.dim / 4);
  SumTile t;
  t.is_signed = avx512::AnyNegative(scales, int64_t(layout.runs) * kTokens);
  t.weights = weights;
  t.dim = layout.dim;
  t.runs = layout.runs;
  t.low = groups.rows;
  t.stride = acc.stride;
  for (int64_t i = 0; i < groups.count; ++i) {
    const int64_t first = i * groups.rows;
    const float* group_p = p + first * kTokens;
    t.rows = int(rows - first < groups.rows ? rows - first : groups.rows);
    t.p_scale = p_scale + first;
    t.acc = acc.data + first * acc.stride;
    MakeWeights(group_p, scales, t, fine, groups.tile_rows, weights);
    for (int plane = 0; plane < levels.planes; ++plane) {
      t.level = LevelOf(levels, plane);
      const PlaneCodes codes(layout, t.level, page, plane, i == 0, false, scratch);
      t.codes = codes.codes;
      t.x = codes.x;
      t.step = levels.step * PlaneWeight(levels, plane);
      WithForm(codes.form,
               [&](auto form) { fine ? SumForm<form.value, true>(t, ahead) : SumForm<form.value, false>(t, ahead); });
      ahead = Ahead(nullptr, 0, nullptr, 1);
    }
    for (int g = 0; layout.mins && g < t.rows; ++g) {
      avx512::AddValueMins(scales + layout.runs * kTokens, layout.runs, layout.dim / layout.runs, group_p + g * kTokens,
                           t.p_scale[g], t.acc + g * t.stride);
    }
  }
}

void Enter() { ++MyTiles().scopes; }
void Leave() {
  if (--MyTiles().scopes == 0) ReleaseTiles(MyTiles());
}

}  // namespace
}  // namespace amx

const PageKernels& PagesAmx() {
  static constexpr PageKernels kKernels = {
      .name = "amx-int8 from 3 rows, avx512-vnni below",
      .target = Target::kAmx,
      .enter = amx::Enter,
      .leave = amx::Leave,
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
