// The header of a NumPy array file.
#include <cstddef>
#include <cstdint>
#include <span>

#include "croquis/eval/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace croquis::eval;
  const auto array = ParseNpy(std::span(reinterpret_cast<const std::byte*>(data), size));
  if (!array) return 0;
  // What was accepted must lie inside the file and be as large as its shape says.
  const auto* begin = reinterpret_cast<const uint8_t*>(array->numbers.data());
  if (begin < data || begin + array->numbers.size() > data + size) __builtin_trap();
  __int128 numbers = 1;
  for (const int64_t n : array->shape) {
    if (n < 0) __builtin_trap();
    numbers *= n;
    if (n > 0 && numbers > __int128(1) << 62) __builtin_trap();
  }
  if (numbers * croquis::simd::RowTypeBytes(array->type) != __int128(array->numbers.size())) __builtin_trap();
  return 0;
}
