#include "croquis/codecs/ggml/blocks.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

namespace croquis::codecs {
namespace {

constexpr int kSmall = 32, kSuper = 256;
constexpr std::array<int8_t, 16> kIq4Levels = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

struct Format {
  GgmlType type;
  std::string_view name;
  int64_t block;
  size_t bytes;
  int code_bits;  // of the six small formats
  bool min;
};
constexpr Format kFormats[] = {
    {GgmlType::kF32, "F32", 1, 4, 0, false},         {GgmlType::kF16, "F16", 1, 2, 0, false},
    {GgmlType::kQ4_0, "Q4_0", kSmall, 18, 4, false}, {GgmlType::kQ4_1, "Q4_1", kSmall, 20, 4, true},
    {GgmlType::kQ5_0, "Q5_0", kSmall, 22, 5, false}, {GgmlType::kQ5_1, "Q5_1", kSmall, 24, 5, true},
    {GgmlType::kQ8_0, "Q8_0", kSmall, 34, 8, false}, {GgmlType::kQ4K, "Q4_K", kSuper, 144, 0, false},
    {GgmlType::kQ6K, "Q6_K", kSuper, 210, 0, false}, {GgmlType::kIq4Nl, "IQ4_NL", kSmall, 18, 4, false},
    {GgmlType::kBf16, "BF16", 1, 2, 0, false},
};

const Format* Find(GgmlType type) {
  for (const Format& f : kFormats) {
    if (f.type == type) return &f;
  }
  return nullptr;
}

f16 LoadF16(const std::byte* p) {
  f16 h;
  std::memcpy(&h, p, 2);
  return h;
}
int Byte(const std::byte* p, int i) { return std::to_integer<int>(p[i]); }

float Inverse(float d) { return d == 0 ? 0.f : 1.f / d; }

// The number of largest magnitude, the first of several. Compared as integers, which vectorises and orders alike.
float Largest(const float* x) {
  int32_t top = 0;
  for (int i = 0; i < kSmall; ++i) top = std::max(top, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
  for (int i = 0; i < kSmall; ++i) {
    if ((std::bit_cast<int32_t>(x[i]) & 0x7fffffff) == top) return x[i];
  }
  return 0;
}

// False where codes cannot be computed: a number is not finite, or the step is so small that its inverse
// overflows. Codes are then those of 0, as in the reference, and the step is 0 in f16 in the second case.
bool Usable(float top, float inverse) { return std::isfinite(top) && std::isfinite(inverse); }

// Symmetric formats: the number of largest magnitude takes the end of the negative half exactly.
void EncodeSymmetric(const float* x, int half, SmallBlock* b) {
  const float top = Largest(x), d = top / float(-half), inverse = Inverse(d), middle = float(half) + 0.5f;
  b->scale = FloatToF16(d);
  b->min = 0;
  b->code.fill(0);
  if (!Usable(top, inverse)) return;
  for (int i = 0; i < kSmall; ++i) b->code[size_t(i)] = uint8_t(std::min(int(x[i] * inverse + middle), 2 * half - 1));
}

void EncodeAsymmetric(const float* x, int top_code, SmallBlock* b) {
  float lo = x[0], hi = x[0];
  for (int i = 1; i < kSmall; ++i) lo = std::min(lo, x[i]), hi = std::max(hi, x[i]);
  const float d = (hi - lo) / float(top_code), inverse = Inverse(d);
  b->scale = FloatToF16(d);
  b->min = FloatToF16(lo);
  b->code.fill(0);
  if (!Usable(d, inverse) || !std::isfinite(Largest(x))) return;
  // NOLINTNEXTLINE(bugprone-incorrect-roundings): as ggml rounds, and never negative
  for (int i = 0; i < kSmall; ++i) b->code[size_t(i)] = uint8_t(std::min(int((x[i] - lo) * inverse + 0.5f), top_code));
}

void EncodeQ8(const float* x, SmallBlock* b) {
  const float top = Largest(x), d = std::abs(top) / 127, inverse = Inverse(d);
  b->scale = FloatToF16(d);
  b->min = 0;
  b->code.fill(128);
  if (!Usable(top, inverse)) return;
  for (int i = 0; i < kSmall; ++i) {
    const float v = x[i] * inverse;
    const int t = int(v);
    const float rest = v - float(t);  // exact; rounds half away from zero
    b->code[size_t(i)] = uint8_t(t + (rest >= 0.5f) - (rest <= -0.5f) + 128);
  }
}

// ---- IQ4_NL ----

// Code of the level nearest to v, the upper one of two at the same distance. A table over half units, because every
// midpoint between levels is a multiple of 1/2; 2 v + 256 may round up to one, never down past one.
struct NearestIq4 {
  std::array<uint8_t, 512> code{};
  std::array<float, 16> from{};  // the least number of a code
  constexpr NearestIq4() {
    from[0] = -1e30f;
    for (size_t c = 1; c < 16; ++c) from[c] = float(kIq4Levels[c - 1] + kIq4Levels[c]) / 2;
    for (int i = 0; i < 512; ++i) {
      const int twice = i - 256;  // v in [twice / 2, twice / 2 + 1/2)
      uint8_t c = 0;
      while (c < 15 && twice >= kIq4Levels[c] + kIq4Levels[size_t(c) + 1]) ++c;
      code[size_t(i)] = c;
    }
  }
  // -128 <= v < 128.
  uint8_t operator()(float v) const {
    const uint8_t c = code[size_t(int(2 * v + 256))];
    return uint8_t(c - (v < from[c]));
  }
};
constexpr NearestIq4 kNearestIq4;

// As llama.cpp writes a cache: codes with the number of largest magnitude at -127, then the scale of least squared
// error under weights x^2 for these codes. The sums are rounded at each step and taken in order, so that the bytes are
// ggml's.
void EncodeIq4(const float* x, SmallBlock* b) {
  constexpr float kTiny = 1e-15f;
  const float top = Largest(x), start = top / float(kIq4Levels[0]);
  b->min = 0;
  b->scale = FloatToF16(std::abs(top) < kTiny ? 0.f : start);
  b->code.fill(kNearestIq4(0));
  if (!(std::abs(top) >= kTiny && std::isfinite(top))) return;
  const float inverse = 1 / start;
  float cross = 0, energy = 0;
  for (int i = 0; i < kSmall; ++i) {
    const uint8_t code = kNearestIq4(x[i] * inverse);
    const float level = kIq4Levels[code], weighted = x[i] * x[i] * level;
    b->code[size_t(i)] = code;
    cross += weighted * x[i];
    energy += weighted * level;
  }
  if (std::isfinite(energy)) b->scale = FloatToF16(cross / energy);
}

// ---- formats of 256 ----

// Six-bit scale and minimum of sub-block j < 8 of a Q4_K block; the upper four of each are split over two places.
void ScaleMinQ4K(const std::byte* s, int j, int* scale, int* min) {
  if (j < 4) {
    *scale = Byte(s, j) & 63;
    *min = Byte(s, j + 4) & 63;
  } else {
    *scale = (Byte(s, j + 4) & 15) | ((Byte(s, j - 4) >> 6) << 4);
    *min = (Byte(s, j + 4) >> 4) | ((Byte(s, j) >> 6) << 4);
  }
}

// d, dmin f16; 12 bytes of scales and minima; 128 bytes of nibbles, 64 numbers each 32 bytes.
void DequantizeQ4K(const std::byte* p, float* out) {
  const float d = F16ToFloat(LoadF16(p)), dmin = F16ToFloat(LoadF16(p + 2));
  const std::byte* codes = p + 16;
  for (int j = 0; j < 8; ++j) {
    int scale, min;
    ScaleMinQ4K(p + 4, j, &scale, &min);
    const float ds = d * float(scale), dm = dmin * float(min);
    const std::byte* q = codes + (j / 2) * 32;
    const int shift = (j % 2) * 4;
    for (int i = 0; i < 32; ++i) out[j * 32 + i] = ds * float((Byte(q, i) >> shift) & 15) - dm;
  }
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d f16.
void DequantizeQ6K(const std::byte* p, float* out) {
  const std::byte *high = p + 128, *scales = p + 192;
  const float d = F16ToFloat(LoadF16(p + 208));
  for (int j = 0; j < 8; ++j) {  // runs of 32 numbers
    const std::byte* ql = p + (j / 4) * 64 + (j % 2) * 32;
    const std::byte* qh = high + (j / 4) * 32;
    const int low_shift = (j % 4) / 2 * 4, high_shift = (j % 4) * 2;
    for (int i = 0; i < 32; ++i) {
      const int q = ((Byte(ql, i) >> low_shift) & 15) | (((Byte(qh, i) >> high_shift) & 3) << 4);
      const float ds = d * float(int8_t(Byte(scales, j * 2 + i / 16)));
      out[j * 32 + i] = ds * float(q - 32);
    }
  }
}

Status CheckCount(GgmlType type, int64_t n) {
  const Format* f = Find(type);
  if (!f) {
    return Unsupported(
        "ggml type " + std::to_string(uint32_t(type)) +
        " is not one that is read here (F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL, Q4_K, Q6_K)");
  }
  if (n < 0 || n % f->block != 0) {
    return InvalidArgument(std::string(f->name) + " stores blocks of " + std::to_string(f->block) + " numbers; " +
                           std::to_string(n) + " numbers are not a whole number of blocks");
  }
  return {};
}

}  // namespace

std::string_view Name(GgmlType type) {
  const Format* f = Find(type);
  return f ? f->name : "unknown";
}
int64_t BlockSize(GgmlType type) {
  const Format* f = Find(type);
  return f ? f->block : 0;
}
size_t BlockBytes(GgmlType type) {
  const Format* f = Find(type);
  return f ? f->bytes : 0;
}
bool IsSmallBlock(GgmlType type) { return CodeBits(type) != 0; }
int CodeBits(GgmlType type) {
  const Format* f = Find(type);
  return f ? f->code_bits : 0;
}
bool HasMin(GgmlType type) {
  const Format* f = Find(type);
  return f && f->min;
}

int LevelOf(GgmlType type, int code) {
  switch (type) {
    case GgmlType::kQ8_0:
      return code - 128;
    case GgmlType::kQ5_0:
      return code - 16;
    case GgmlType::kQ4_0:
      return code - 8;
    case GgmlType::kIq4Nl:
      return kIq4Levels[size_t(code) & 15];
    default:
      return code;
  }
}

void EncodeSmall(GgmlType type, const float* x, SmallBlock* block) {
  switch (type) {
    case GgmlType::kQ8_0:
      EncodeQ8(x, block);
      break;
    case GgmlType::kQ5_1:
      EncodeAsymmetric(x, 31, block);
      break;
    case GgmlType::kQ5_0:
      EncodeSymmetric(x, 16, block);
      break;
    case GgmlType::kQ4_1:
      EncodeAsymmetric(x, 15, block);
      break;
    case GgmlType::kQ4_0:
      EncodeSymmetric(x, 8, block);
      break;
    default:
      EncodeIq4(x, block);
      break;
  }
}

// scale, min where there is one, the fifth bits as one word where there are any, then codes: bytes, or nibbles with
// number i in the low half and i + 16 in the high half of byte i.
void PackSmall(GgmlType type, const SmallBlock& block, std::byte* bytes) {
  std::memcpy(bytes, &block.scale, 2);
  bytes += 2;
  if (HasMin(type)) {
    std::memcpy(bytes, &block.min, 2);
    bytes += 2;
  }
  const int bits = CodeBits(type);
  if (bits == 8) {
    for (int i = 0; i < kSmall; ++i) bytes[i] = std::byte(uint8_t(block.code[size_t(i)] - 128));
    return;
  }
  if (bits == 5) {
    uint32_t fifth = 0;
    for (int i = 0; i < kSmall; ++i) fifth |= uint32_t(block.code[size_t(i)] >> 4) << i;
    std::memcpy(bytes, &fifth, 4);
    bytes += 4;
  }
  for (size_t i = 0; i < 16; ++i) bytes[i] = std::byte(uint8_t((block.code[i] & 15) | (block.code[i + 16] << 4)));
}

void UnpackSmall(GgmlType type, const std::byte* bytes, SmallBlock* block) {
  block->scale = LoadF16(bytes);
  bytes += 2;
  block->min = 0;
  if (HasMin(type)) {
    block->min = LoadF16(bytes);
    bytes += 2;
  }
  const int bits = CodeBits(type);
  if (bits == 8) {
    for (int i = 0; i < kSmall; ++i) block->code[size_t(i)] = uint8_t(Byte(bytes, i) + 128);
    return;
  }
  uint32_t fifth = 0;
  if (bits == 5) {
    std::memcpy(&fifth, bytes, 4);
    bytes += 4;
  }
  for (int i = 0; i < 16; ++i) {
    block->code[size_t(i)] = uint8_t((Byte(bytes, i) & 15) | ((fifth >> i & 1) << 4));
    block->code[size_t(i) + 16] = uint8_t((Byte(bytes, i) >> 4) | ((fifth >> (i + 16) & 1) << 4));
  }
}

Status Dequantize(GgmlType type, const std::byte* data, int64_t n, float* out) {
  CROQUIS_CHECK_OK(CheckCount(type, n));
  const int64_t size = BlockSize(type), blocks = n / size;
  const size_t bytes = BlockBytes(type);
  switch (type) {
    case GgmlType::kF32:
      if (n > 0) std::memcpy(out, data, size_t(n) * 4);
      break;
    case GgmlType::kF16:
      for (int64_t i = 0; i < n; ++i) out[i] = F16ToFloat(LoadF16(data + 2 * i));
      break;
    case GgmlType::kBf16:
      for (int64_t i = 0; i < n; ++i) out[i] = Bf16ToFloat(LoadF16(data + 2 * i));
      break;
    case GgmlType::kQ4K:
      for (int64_t b = 0; b < blocks; ++b) DequantizeQ4K(data + size_t(b) * bytes, out + b * size);
      break;
    case GgmlType::kQ6K:
      for (int64_t b = 0; b < blocks; ++b) DequantizeQ6K(data + size_t(b) * bytes, out + b * size);
      break;
    default: {
      std::array<float, 256> level;
      for (int c = 0; c < 1 << CodeBits(type); ++c) level[size_t(c)] = float(LevelOf(type, c));
      const bool min = HasMin(type);
      for (int64_t b = 0; b < blocks; ++b) {
        SmallBlock block;
        UnpackSmall(type, data + size_t(b) * bytes, &block);
        const float scale = F16ToFloat(block.scale), lo = F16ToFloat(block.min);
        float* o = out + b * size;
        for (int i = 0; i < kSmall; ++i) o[i] = scale * level[block.code[size_t(i)]];
        if (min) {
          for (int i = 0; i < kSmall; ++i) o[i] += lo;
        }
      }
    }
  }
  return {};
}

Status Quantize(GgmlType type, const float* x, int64_t n, std::byte* out) {
  CROQUIS_CHECK_OK(CheckCount(type, n));
  if (type == GgmlType::kQ4K || type == GgmlType::kQ6K) {
    return Unsupported(std::string(Name(type)) +
                       " blocks are read, not written; write Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 or IQ4_NL");
  }
  const int64_t size = BlockSize(type);
  if (type == GgmlType::kF32) {
    if (n > 0) std::memcpy(out, x, size_t(n) * 4);
    return {};
  }
  if (type == GgmlType::kF16 || type == GgmlType::kBf16) {
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t h = type == GgmlType::kF16 ? FloatToF16(x[i]) : FloatToBf16(x[i]);
      std::memcpy(out + 2 * i, &h, 2);
    }
    return {};
  }
  for (int64_t b = 0; b < n / size; ++b) {
    SmallBlock block;
    EncodeSmall(type, x + b * size, &block);
    PackSmall(type, block, out + size_t(b) * BlockBytes(type));
  }
  return {};
}

}  // namespace croquis::codecs
