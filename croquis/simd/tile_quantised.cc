// Dispatch, and the reference in portable code.
#include "croquis/simd/tile_quantised.h"

#include <algorithm>
#include <cmath>

#include "croquis/simd/tile_quantised_internal.h"

namespace croquis::simd {
namespace {

int32_t Dot(const QuantisedCall& c, int64_t r, int64_t key) {
  const int64_t units = c.layout.Units();
  const uint8_t* q = c.queries + r * units * 4;
  const auto* k = reinterpret_cast<const int8_t*>(c.keys) + size_t(key / kTileKeys) * c.layout.KeyBlockBytes();
  int32_t sum = c.key_offset[key];
  for (int64_t i = 0; i < units * 4; ++i) sum += q[i] * k[(i / 4 * kTileKeys + key % kTileKeys) * 4 + i % 4];
  return sum;
}

int32_t Value(const QuantisedCall& c, int64_t key, int64_t i) {
  const std::byte* block = c.values + size_t(key / kTileKeys) * c.layout.ValueBlockBytes();
  const int64_t together = c.layout.narrow ? 4 : 2, slot = key % kTileKeys,
                at = (slot / together * c.layout.Width() + i) * together + slot % together;
  return c.layout.narrow ? reinterpret_cast<const int8_t*>(block)[at] : reinterpret_cast<const int16_t*>(block)[at];
}

void Attend(const QuantisedCall& c) {
  const float levels = c.layout.narrow ? 255 : 4095;
  float logits[kTileKeys];
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t first = std::max<int64_t>(c.begin, c.first != nullptr ? c.first[r] : c.begin),
                  last = std::min<int64_t>(c.end, c.last != nullptr ? c.last[r] : c.end);
    for (int64_t block = first / kTileKeys * kTileKeys; block < last; block += kTileKeys) {
      const int64_t from = std::max(first, block), to = std::min(last, block + kTileKeys);
      float top = kMasked;
      for (int64_t key = from; key < to; ++key) {
        float& x = logits[key - block] = float(Dot(c, r, key)) * (c.row_scale[r] * c.key_scale[key]);
        if (c.bias != nullptr) x += c.bias[key - c.bias_first];
        top = std::max(top, x);
      }
      if (top <= kMasked / 2) continue;
      const float local = std::ceil(top);
      if (local > c.max[r]) {
        const float keep = std::exp2(c.max[r] - local);
        c.max[r] = local;
        c.mass[r] *= keep;
        for (int64_t i = 0; i < c.layout.value_dim; ++i) c.sums.Row(r)[i] *= keep;
      }
      const float unit = std::exp2(local - c.max[r]) / levels;
      for (int64_t key = from; key < to; ++key) {
        const float w = unit * std::nearbyint(std::exp2(logits[key - block] - local) * levels);
        c.mass[r] += w;
        for (int64_t i = 0; i < c.layout.value_dim; ++i) c.sums.Row(r)[i] += w * float(Value(c, key, i));
      }
    }
  }
}

}  // namespace

const QuantisedKernels& QuantisedScalar() {
  static constexpr QuantisedKernels kKernels = {"scalar", Target::kScalar, Attend};
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
