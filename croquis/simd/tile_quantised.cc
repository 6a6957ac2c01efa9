// Dispatch, and the reference in portable code.
#include "croquis/simd/tile_quantised.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "croquis/simd/tile_quantised_internal.h"

namespace croquis::simd {
namespace {

float RoundRow(const float* x, int64_t n, bool wide, int most, std::byte* out) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  std::memset(out, 0, size_t((n + 15) / 16 * 16 * (wide ? 2 : 1)));
  if (largest < kQuantisedSmallest) return 0;
  const float inverse = float(most) / largest;
  for (int64_t i = 0; i < n; ++i) {
    const int number = int(std::nearbyint(x[i] * inverse));
    if (wide)
      reinterpret_cast<int16_t*>(out)[i] = int16_t(number);
    else
      reinterpret_cast<int8_t*>(out)[i] = int8_t(number);
  }
  return largest / float(most);
}

void PackValues(const QuantisedLayout& layout, const float* v, const float* center, int64_t keys, float* scale,
                std::byte* values) {
  const int64_t width = layout.Width(), together = layout.narrow ? 4 : 2;
  std::memset(values, 0, layout.ValueBlockBytes());
  for (int64_t i = 0; i < width; ++i) {
    float largest = 0;
    for (int64_t t = 0; t < keys; ++t) largest = std::max(largest, std::abs(v[t * width + i] - center[i]));
    const bool zeros = largest < kQuantisedSmallest;
    const float most = float(layout.ValueLevels()), inverse = zeros ? 0 : most / largest;
    scale[i] = zeros ? 0 : largest / most;
    for (int64_t t = 0; t < keys; ++t) {
      const int number = int(std::nearbyint((v[t * width + i] - center[i]) * inverse));
      const int64_t at = (t / together * width + i) * together + t % together;
      if (layout.narrow)
        reinterpret_cast<int8_t*>(values)[at] = int8_t(number);
      else
        reinterpret_cast<int16_t*>(values)[at] = int16_t(number);
    }
  }
}

int32_t Dot(const QuantisedCall& c, int64_t r, int64_t key) {
  const int64_t units = c.layout.Units(), n = c.layout.UnitNumbers();
  const std::byte *q = c.queries + r * units * 4, *k = c.keys + size_t(key / kTileKeys) * c.layout.KeyBlockBytes();
  int32_t sum = c.layout.wide ? 0 : c.key_offset[key];
  for (int64_t i = 0; i < units * n; ++i) {
    const int64_t at = (i / n * kTileKeys + key % kTileKeys) * n + i % n;
    if (c.layout.wide)
      sum += reinterpret_cast<const int16_t*>(q)[i] * reinterpret_cast<const int16_t*>(k)[at];
    else
      sum += reinterpret_cast<const uint8_t*>(q)[i] * reinterpret_cast<const int8_t*>(k)[at];
  }
  return sum;
}

int32_t Value(const QuantisedCall& c, int64_t key, int64_t i) {
  const std::byte* block = c.values + size_t(key / kTileKeys) * c.layout.ValueBlockBytes();
  const int64_t together = c.layout.narrow ? 4 : 2, slot = key % kTileKeys,
                at = (slot / together * c.layout.Width() + i) * together + slot % together;
  return c.layout.narrow ? reinterpret_cast<const int8_t*>(block)[at] : reinterpret_cast<const int16_t*>(block)[at];
}

// 2^(x / 2048) / kQuantisedExp[0] with 15 bits after the point; x <= 0.
uint32_t Power(float x) {
  const auto fixed = [](double c) { return uint32_t(c * 65536); };
  const int u = std::max(int(std::nearbyint(std::max(x, -40000.f))) - 1, -32768);
  const auto f = uint32_t(u & 2047) << 5;
  uint32_t rest = (f * fixed(kQuantisedExp[3]) >> 16) + fixed(kQuantisedExp[2]);
  rest = ((rest * f >> 16) + fixed(kQuantisedExp[1])) * f >> 16;
  return ((rest + 65536) >> 1) >> -(u >> 11);
}

// The levels of the weights that a row's powers [64] become.
int Levels(const QuantisedLayout& layout, const uint32_t* powers) {
  if (!layout.AddsFour()) return layout.WeightLevels();
  uint32_t four = 0;
  for (int64_t j = 0; j < kTileKeys / 2; j += 2)
    four = std::max(four, powers[j] + powers[j + 1] + powers[j + 32] + powers[j + 33]);
  const float allowed = float((kQuantisedFour - 4) * 32768) / float(four);
  return int(std::nearbyint(std::min(allowed, float(layout.WeightLevels()))));
}

void Attend(const QuantisedCall& c) {
  const float worth = std::exp2(1 / kQuantisedStep) * float(kQuantisedExp[0]);
  float logits[kTileKeys];
  uint32_t powers[kTileKeys];
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t first = std::max<int64_t>(c.begin, c.first != nullptr ? c.first[r] : c.begin),
                  last = std::min<int64_t>(c.end, c.last != nullptr ? c.last[r] : c.end);
    for (int64_t block = first / kTileKeys * kTileKeys; block < last; block += kTileKeys) {
      const int64_t from = std::max(first, block), to = std::min(last, block + kTileKeys);
      float top = kMasked * kQuantisedStep;
      for (int64_t key = from; key < to; ++key) {
        const float bias = c.bias != nullptr ? c.bias[key - c.bias_first] * kQuantisedStep : 0;
        logits[key - block] = std::fma(float(Dot(c, r, key)) * c.key_scale[key], c.row_scale[r] * kQuantisedStep, bias);
        top = std::max(top, logits[key - block]);
      }
      const float local = top / kQuantisedStep;
      if (local <= kMasked / 2) continue;
      if (local > c.max[r]) {
        const float reference = std::ceil(local), keep = std::exp2(c.max[r] - reference);
        c.max[r] = reference;
        c.mass[r] *= keep;
        for (int64_t i = 0; i < c.layout.value_dim; ++i) c.sums.Row(r)[i] *= keep;
      }
      std::fill(std::begin(powers), std::end(powers), 0);
      for (int64_t key = from; key < to; ++key) powers[key - block] = Power(logits[key - block] - top);
      const int levels = Levels(c.layout, powers);
      const float unit = std::exp2(local - c.max[r]) * worth;
      const float* scale = c.value_scale + block / kTileKeys * c.layout.Width();
      for (int64_t key = from; key < to; ++key) {
        const uint32_t power = powers[key - block];
        const float w = unit / float(levels) * float((power * uint32_t(levels) + 16384) >> 15);
        c.mass[r] += unit * float(power) / 32768;
        for (int64_t i = 0; i < c.layout.value_dim; ++i) c.sums.Row(r)[i] += w * (scale[i] * float(Value(c, key, i)));
      }
    }
  }
}

}  // namespace

const QuantisedKernels& QuantisedScalar() {
  static constexpr QuantisedKernels kKernels = {"scalar", Target::kScalar, false, RoundRow, PackValues, Attend};
  return kKernels;
}

const QuantisedKernels& QuantisedTiles(Target target) {
#if defined(__x86_64__)
  if (target >= Target::kAvx512) return QuantisedAvx512();
  if (target >= Target::kAvxVnni) return QuantisedAvxVnni();
  if (target >= Target::kAvx2) return QuantisedAvx2();
#endif
  (void)target;
  return QuantisedScalar();
}

const QuantisedKernels& QuantisedTiles() { return QuantisedTiles(Active()); }

}  // namespace croquis::simd
