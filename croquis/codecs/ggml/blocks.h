// The block formats of ggml (GGUF files, llama.cpp caches), byte for byte as the `gguf` Python package reads and
// writes them: rows to blocks and back. Type numbers are those of GGUF files. All formats are little-endian.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/dtype.h"
#include "croquis/base/result.h"

namespace croquis::codecs {

enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4K = 12,
  kQ6K = 14,
  kIq4Nl = 20,
  kBf16 = 30,
};

// "Q4_0"; "unknown" for a number that is none of the above.
std::string_view Name(GgmlType type);
// Numbers in a block (1, 32 or 256) and its bytes; both 0 for a type that is none of the above.
int64_t BlockSize(GgmlType type);
size_t BlockBytes(GgmlType type);

// out[0..n) = the n numbers stored in n / BlockSize blocks at `data` (any alignment). Errors: a type that is none of
// the above, or n not a non-negative multiple of BlockSize.
Status Dequantize(GgmlType type, const std::byte* data, int64_t n, float* out);

// The inverse, for F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 (the bytes `gguf` writes for finite x, up to
// the sign of a zero minimum) and IQ4_NL (which it does not write: the bytes of ggml's quantize_row_iq4_nl_ref, up to
// the codes of blocks whose scale is 0 and the scale of those whose sums overflow, from 2e16 on). Numbers
// that are not finite do not fail, but what they decode to is unspecified. Errors: other types, n as above.
Status Quantize(GgmlType type, const float* x, int64_t n, std::byte* out);

// One block of 32 numbers of the six small formats taken apart: x[i] = scale * level[code[i]] + min.
struct SmallBlock {
  f16 scale = 0, min = 0;  // min is 0 for formats without one
  std::array<uint8_t, 32> code{};
};

// Whether the functions below take this type: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0, IQ4_NL.
bool IsSmallBlock(GgmlType type);
int CodeBits(GgmlType type);  // 8, 5, 5, 4, 4, 4; 0 for other types
bool HasMin(GgmlType type);   // Q5_1 and Q4_1
// The integer that code c < 2^CodeBits stands for: c - 128, c, c - 16, c, c - 8 and IQ4_NL's table.
int LevelOf(GgmlType type, int code);
// Quantises x[0..32); the type must be one of the six, for this and the next two.
void EncodeSmall(GgmlType type, const float* x, SmallBlock* block);
void PackSmall(GgmlType type, const SmallBlock& block, std::byte* bytes);
void UnpackSmall(GgmlType type, const std::byte* bytes, SmallBlock* block);

}  // namespace croquis::codecs
