// AVX-512 with VBMI and VNNI: preparing queries, quantising weights, and the walk over groups of rows and planes.
#include "croquis/simd/pages_avx512.h"

#include "croquis/simd/pages_codes_avx512.h"
#include "croquis/simd/pages_quantise_avx512.h"

namespace croquis::simd {
namespace avx512 {
namespace {

// Rows first .. first + rows run in registers for `width` rows: 8, 4, 2 or 1, padded by at most one row.
struct Group {
  int64_t first = 0;
  int rows = 0, width = 0;
};
bool Next(int64_t total, Group& g) {
  g.first += g.rows;
  const int64_t left = total - g.first;
  g.width = left >= 7 ? 8 : left >= 3 ? 4 : int(left);
  g.rows = left < g.width ? int(left) : g.width;
  return left > 0;
}

// Where the parts of a prepared group lie (ScoreArgs in pages_avx512.h).
struct GroupAt {
  size_t off, s, m, end;
  GroupAt(const PageLayout& x, bool fine, int width) {
    const size_t w = size_t(width) * 4;
    off = size_t(x.dim) / 4 * (fine ? 2 : 1) * w;
    s = off + size_t(x.runs) * w;
    m = s + w;
    end = (m + (x.mins ? size_t(x.runs) * w : 0) + 63) / 64 * 64;
  }
};

// One row into its place g of a group.
void PrepareRow(const PageLayout& layout, bool fine, const float* x, float scale, float step, int width, int g,
                std::byte* group) {
  const GroupAt at(layout, fine, width);
  const int dim = layout.dim, run_dims = dim / layout.runs, parts = fine ? 2 : 1;
  auto* q = reinterpret_cast<int32_t*>(group);
  auto* off = reinterpret_cast<int32_t*>(group + at.off);
  auto* m = reinterpret_cast<float*>(group + at.m);
  const float top = fine ? 32639.f : 127.f, max = MaxAbs(x, dim);
  const __m512 inverse = _mm512_set1_ps(max < kTiny ? 0.f : top / max);
  alignas(64) int32_t high[4], low[4];
  for (int r = 0; r < layout.runs; ++r) {
    __m512i sum = _mm512_setzero_si512();
    for (int i = r * run_dims; i < (r + 1) * run_dims; i += 16) {
      const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
      sum = _mm512_add_epi32(sum, v);
      _mm_store_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(v));
      _mm_store_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(HighByte(v)));
      for (int k = 0; k < 4; ++k) {
        int32_t* to = q + (i / 4 + k) * parts * width + g;
        to[0] = fine ? high[k] : low[k];
        if (fine) to[width] = low[k];
      }
    }
    off[r * width + g] = -128 * _mm512_reduce_add_epi32(sum);
    if (layout.mins) m[r * width + g] = scale * SumOfRun(x + r * run_dims, run_dims);
  }
  reinterpret_cast<float*>(group + at.s)[g] = max < kTiny ? 0.f : (max / top) * (scale * step);
}

}  // namespace

size_t QueryBytes(const PageLayout& layout, const Levels&, Precision precision, int64_t rows) {
  size_t bytes = 0;
  for (Group g; Next(rows, g);) bytes += GroupAt(layout, precision == Precision::kFine, g.width).end;
  return bytes;
}

size_t ScratchBytes(const PageLayout& layout, const Levels&, Precision, int64_t) {
  return sizeof(RunWeights) * size_t(layout.runs);
}

void Prepare(const PageLayout& layout, const Levels& levels, Precision precision, MatView<const float> q, float scale,
             std::byte* query) {
  const bool fine = precision == Precision::kFine;
  for (Group g; Next(q.rows, g);) {
    const size_t bytes = GroupAt(layout, fine, g.width).end;
    if (g.rows < g.width) __builtin_memset(query, 0, bytes);
    for (int row = 0; row < g.rows; ++row) {
      PrepareRow(layout, fine, q.data + (g.first + row) * q.stride, scale, levels.step, g.width, row, query);
    }
    query += bytes;
  }
}

void Score(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
           const std::byte* query, int64_t rows, const Upcoming& next, float* logits, std::byte*) {
  const bool fine = precision == Precision::kFine;
  ScoreArgs a;
  a.scales = reinterpret_cast<const uint16_t*>(page);
  a.codes = reinterpret_cast<const uint8_t*>(page + CodesAt(layout));
  a.blocks = layout.dim / 32;
  a.next = next;
  for (Group g; Next(rows, g);) {
    const GroupAt at(layout, fine, g.width);
    a.q = reinterpret_cast<const int32_t*>(query);
    a.off = reinterpret_cast<const int32_t*>(query + at.off);
    a.s = reinterpret_cast<const float*>(query + at.s);
    a.rows = g.rows;
    a.logits = logits + g.first * kTokens;
    for (int plane = 0; plane < levels.planes; ++plane) {
      a.level = LevelOf(levels, plane);
      a.plane_weight = PlaneWeight(levels, plane);
      a.add = plane > 0;
      ScoreOf(FormOf(layout.bits, a.level), g.width, fine, layout.runs > 1)(a);
      a.next = {};
    }
    if (layout.mins) {
      const auto* m = reinterpret_cast<const float*>(query + at.m);
      for (int row = 0; row < g.rows; ++row) {
        AddKeyMins(a.scales + layout.runs * kTokens, layout.runs, m + row, g.width, a.logits + row * kTokens);
      }
    }
    query += at.end;
  }
}

void Accumulate(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                const float* p, const float* p_scale, int64_t rows, const Upcoming& next, MatView<float> acc,
                std::byte* scratch) {
  const bool fine = precision == Precision::kFine;
  const auto* scales = reinterpret_cast<const uint16_t*>(page);
  const bool negative = AnyNegative(scales, int64_t(layout.runs) * kTokens);
  auto* weights = reinterpret_cast<RunWeights*>(scratch);
  SumArgs a;
  a.codes = reinterpret_cast<const uint8_t*>(page + CodesAt(layout));
  a.weights = weights;
  a.runs = layout.runs;
  a.blocks = layout.dim / 32;
  a.next = next;
  a.stride = acc.stride;
  for (Group g; Next(rows, g);) {
    const float* group_p = p + g.first * kTokens;
    a.rows = g.rows;
    a.p_scale = p_scale + g.first;
    a.acc = acc.data + g.first * acc.stride;
    for (int r = 0; r < layout.runs; ++r) {
      QuantiseRun(group_p, scales + r * kTokens, g.rows, g.width, fine, negative, weights[r]);
    }
    for (int plane = 0; plane < levels.planes; ++plane) {
      a.level = LevelOf(levels, plane);
      a.step = levels.step * PlaneWeight(levels, plane);
      SumOf(FormOf(layout.bits, a.level), g.width, fine, negative)(a);
      a.next = {};
    }
    for (int row = 0; layout.mins && row < g.rows; ++row) {
      AddValueMins(scales + layout.runs * kTokens, layout.runs, layout.dim / layout.runs, group_p + row * kTokens,
                   a.p_scale[row], a.acc + row * a.stride);
    }
  }
}

}  // namespace avx512

const PageKernels& PagesAvx512() {
  static constexpr PageKernels kKernels = {
      .name = "avx512-vnni",
      .target = Target::kAvx512,
      .enter = NothingToKeep,
      .leave = NothingToKeep,
      .query_bytes = avx512::QueryBytes,
      .scratch_bytes = avx512::ScratchBytes,
      .prepare = avx512::Prepare,
      .score = avx512::Score,
      .accumulate = avx512::Accumulate,
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
