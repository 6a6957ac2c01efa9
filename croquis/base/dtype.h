// 16-bit floats as plain integers, converted in portable code. The hot loops convert with
// instructions (simd); both round to nearest even and agree on every input but NaN payloads.
#pragma once

#include <bit>
#include <cstdint>

namespace croquis {

using f16 = uint16_t;   // IEEE binary16 bits
using bf16 = uint16_t;  // upper half of a binary32

inline float Bf16ToFloat(bf16 h) { return std::bit_cast<float>(uint32_t(h) << 16); }
inline bf16 FloatToBf16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16((u >> 16) | 0x40);  // quiet NaN
  return bf16((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline float F16ToFloat(f16 h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest < 0x0400u) {  // zero or subnormal: rest * 2^-24, exact
    const float v = float(rest) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(v) | sign);
  }
  return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000u));
}
inline f16 FloatToF16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return f16(sign | 0x7e00u);   // NaN
  if (a >= 0x477ff000u) return f16(sign | 0x7c00u);  // rounds to infinity
  if (a < 0x38800000u) {                             // subnormal: add at 2^-14's ulp
    const float r = std::bit_cast<float>(a) + 0.5f;
    return f16(sign | (std::bit_cast<uint32_t>(r) - 0x3f000000u));
  }
  return f16(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1)) >> 13));
}

}  // namespace croquis
