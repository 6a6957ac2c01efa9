// The plain form of every page kernel: the arithmetic of pages_internal.h, written as it is stated.
#include <algorithm>
#include <cmath>

#include "croquis/base/dtype.h"
#include "croquis/simd/pages_internal.h"

namespace croquis::simd {
namespace {

size_t Align64(size_t n) { return (n + 63) / 64 * 64; }

float TreeSum(float* part) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}

// Rounds to nearest even into [-top, top]; what is not a number becomes 0.
int32_t Quantise(float x, float top) {
  const float r = std::nearbyint(x);
  return std::abs(r) <= top ? int32_t(r) : (r > 0 ? int32_t(top) : (r < 0 ? -int32_t(top) : 0));
}

float PlaneWeight(const Levels& levels, int plane) { return levels.planes == 2 && plane == 0 ? 128.f : 1.f; }

// A prepared query: int16 values [rows][dim], then f32 s [rows], then f32 m [rows][runs] if the layout has mins.
struct QueryAt {
  size_t s, m, end;
  QueryAt(const PageLayout& layout, int64_t rows) {
    s = Align64(size_t(rows) * size_t(layout.dim) * 2);
    m = Align64(s + size_t(rows) * 4);
    end = Align64(m + (layout.mins ? size_t(rows) * size_t(layout.runs) * 4 : 0));
  }
};

size_t QueryBytes(const PageLayout& layout, const Levels&, Precision, int64_t rows) {
  return QueryAt(layout, rows).end;
}

size_t ScratchBytes(const PageLayout& layout, const Levels& levels, Precision, int64_t) {
  return size_t(levels.planes) * size_t(kPageTokens) * size_t(layout.dim);
}

void Prepare(const PageLayout& layout, const Levels& levels, Precision precision, MatView<const float> q, float scale,
             std::byte* query) {
  const QueryAt at(layout, q.rows);
  auto* v = reinterpret_cast<int16_t*>(query);
  auto* s = reinterpret_cast<float*>(query + at.s);
  auto* m = reinterpret_cast<float*>(query + at.m);
  const float top = precision == Precision::kFine ? 32639.f : 127.f;
  const int64_t dim = layout.dim, run_dims = dim / layout.runs;
  for (int64_t row = 0; row < q.rows; ++row) {
    const float* x = q.Row(row);
    float max = 0;
    for (int64_t i = 0; i < dim; ++i) max = std::max(max, std::abs(x[i]));
    const float inverse = max < kTiny ? 0.f : top / max;
    for (int64_t i = 0; i < dim; ++i) v[row * dim + i] = int16_t(Quantise(x[i] * inverse, top));
    s[row] = max < kTiny ? 0.f : (max / top) * (scale * levels.step);
    for (int64_t r = 0; layout.mins && r < layout.runs; ++r) {
      float part[16] = {};
      for (int64_t i = 0; i < run_dims; ++i) part[i % 16] += x[r * run_dims + i];
      m[row * layout.runs + r] = scale * TreeSum(part);
    }
  }
}

// Levels of a whole page as [plane][token][dim].
void Expand(const PageLayout& layout, const Levels& levels, bool values, const std::byte* page, int8_t* out) {
  const int64_t dim = layout.dim;
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t i = 0; i < dim; ++i) {
      const auto code = size_t(GetCode(layout, values, page, t, i));
      for (int plane = 0; plane < levels.planes; ++plane) {
        out[(plane * kPageTokens + t) * dim + i] = levels.level[size_t(plane)][code];
      }
    }
  }
}

void Score(const PageLayout& layout, const Levels& levels, Precision, const std::byte* page, const std::byte* query,
           int64_t rows, const Upcoming&, float* logits, std::byte* scratch) {
  const QueryAt at(layout, rows);
  const auto* v = reinterpret_cast<const int16_t*>(query);
  const auto* s = reinterpret_cast<const float*>(query + at.s);
  const auto* m = reinterpret_cast<const float*>(query + at.m);
  const auto* scales = reinterpret_cast<const f16*>(page);
  const auto* mins = reinterpret_cast<const f16*>(page + layout.MinsAt());
  auto* level = reinterpret_cast<int8_t*>(scratch);
  Expand(layout, levels, false, page, level);
  const int64_t dim = layout.dim, run_dims = dim / layout.runs;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t t = 0; t < kPageTokens; ++t) {
      float logit = 0;
      for (int plane = 0; plane < levels.planes; ++plane) {
        float f = 0;
        for (int64_t r = 0; r < layout.runs; ++r) {
          const int8_t* l = level + (plane * kPageTokens + t) * dim + r * run_dims;
          int32_t sum = 0;
          for (int64_t i = 0; i < run_dims; ++i) sum += v[row * dim + r * run_dims + i] * l[i];
          f = std::fma(float(sum), F16ToFloat(scales[r * kPageTokens + t]), f);
        }
        logit += f * (s[row] * PlaneWeight(levels, plane));
      }
      for (int64_t r = 0; layout.mins && r < layout.runs; ++r) {
        logit = std::fma(F16ToFloat(mins[r * kPageTokens + t]), m[row * layout.runs + r], logit);
      }
      logits[row * kPageTokens + t] = logit;
    }
  }
}

// acc[0..run_dims) += one row's weighted sum over one run.
void AccumulateRun(const Levels& levels, const int8_t* level, int64_t dim, int64_t run_dims, const float* p,
                   const f16* scales, float top, float p_scale, float* acc) {
  float w[kPageTokens], max = 0;
  for (int64_t t = 0; t < kPageTokens; ++t) {
    w[t] = p[t] * F16ToFloat(scales[t]);
    max = std::max(max, std::abs(w[t]));
  }
  if (max < kTiny) return;
  int32_t v[kPageTokens];
  const float inverse = top / max;
  for (int64_t t = 0; t < kPageTokens; ++t) v[t] = Quantise(w[t] * inverse, top);
  for (int plane = 0; plane < levels.planes; ++plane) {
    const float unit = ((max / top) * (levels.step * PlaneWeight(levels, plane))) * p_scale;
    for (int64_t i = 0; i < run_dims; ++i) {
      int32_t sum = 0;
      for (int64_t t = 0; t < kPageTokens; ++t) sum += v[t] * level[(plane * kPageTokens + t) * dim + i];
      acc[i] = std::fma(float(sum), unit, acc[i]);
    }
  }
}

void Accumulate(const PageLayout& layout, const Levels& levels, Precision precision, const std::byte* page,
                const float* p, const float* p_scale, int64_t rows, const Upcoming&, MatView<float> acc,
                std::byte* scratch) {
  const auto* scales = reinterpret_cast<const f16*>(page);
  const auto* mins = reinterpret_cast<const f16*>(page + layout.MinsAt());
  auto* level = reinterpret_cast<int8_t*>(scratch);
  Expand(layout, levels, true, page, level);
  const int64_t dim = layout.dim, run_dims = dim / layout.runs;
  const bool negative =
      std::any_of(scales, scales + layout.runs * kPageTokens, [](f16 s) { return (s & 0x8000u) != 0; });
  const float top = precision == Precision::kFine ? (negative ? 32639.f : 65535.f) : (negative ? 127.f : 255.f);
  for (int64_t row = 0; row < rows; ++row) {
    const float* pr = p + row * kPageTokens;
    for (int64_t r = 0; r < layout.runs; ++r) {
      float* out = acc.Row(row) + r * run_dims;
      AccumulateRun(levels, level + r * run_dims, dim, run_dims, pr, scales + r * kPageTokens, top, p_scale[row], out);
      if (!layout.mins) continue;
      float part[16] = {};
      for (int64_t t = 0; t < kPageTokens; ++t) {
        part[t % 16] = std::fma(pr[t], F16ToFloat(mins[r * kPageTokens + t]), part[t % 16]);
      }
      const float sum = TreeSum(part);
      for (int64_t i = 0; i < run_dims; ++i) out[i] = std::fma(p_scale[row], sum, out[i]);
    }
  }
}

void Pack(const PageLayout& layout, bool values, const uint8_t* codes, int64_t block, std::byte* page) {
  for (int64_t t = 0; t < kPackTokens; ++t) {
    for (int64_t i = 0; i < layout.dim; ++i) {
      SetCode(layout, values, page, block * kPackTokens + t, i, codes[t * layout.dim + i]);
    }
  }
}
void PackKeys(const PageLayout& layout, const uint8_t* codes, int64_t block, std::byte* page) {
  Pack(layout, false, codes, block, page);
}
void PackValues(const PageLayout& layout, const uint8_t* codes, int64_t block, std::byte* page) {
  Pack(layout, true, codes, block, page);
}

void Fwht(float* x, int64_t n) {
  for (int64_t h = 1; h < n; h *= 2) {
    for (int64_t i = 0; i < n; i += 2 * h) {
      for (int64_t j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  }
}

float Nearest(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
              uint8_t* codes) {
  float part[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    const auto code = std::lower_bound(thresholds, thresholds + n_thresholds, z[i]) - thresholds;
    codes[i] = uint8_t(code);
    part[i % 16] = std::fma(z[i], value[code], part[i % 16]);
  }
  return TreeSum(part);
}

void F16ToF32(const uint16_t* x, int64_t n, float* y) { std::transform(x, x + n, y, F16ToFloat); }
void F32ToF16(const float* x, int64_t n, uint16_t* y) { std::transform(x, x + n, y, FloatToF16); }
void Bf16ToF32(const uint16_t* x, int64_t n, float* y) { std::transform(x, x + n, y, Bf16ToFloat); }
void F32ToBf16(const float* x, int64_t n, uint16_t* y) { std::transform(x, x + n, y, FloatToBf16); }

}  // namespace

const PageKernels& PagesScalar() {
  static constexpr PageKernels kKernels = {
      .name = "scalar",
      .target = Target::kScalar,
      .enter = NothingToKeep,
      .leave = NothingToKeep,
      .query_bytes = QueryBytes,
      .scratch_bytes = ScratchBytes,
      .prepare = Prepare,
      .score = Score,
      .accumulate = Accumulate,
      .pack_keys = PackKeys,
      .pack_values = PackValues,
      .fwht = Fwht,
      .nearest = Nearest,
      .f16_to_f32 = F16ToF32,
      .f32_to_f16 = F32ToF16,
      .bf16_to_f32 = Bf16ToF32,
      .f32_to_bf16 = F32ToBf16,
  };
  return kKernels;
}

}  // namespace croquis::simd
