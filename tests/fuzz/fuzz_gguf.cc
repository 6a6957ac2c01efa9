// GGUF files.
#include <cstddef>
#include <cstdint>
#include <span>

#include "croquis/model/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)croquis::model::ParseGguf(std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size));
  return 0;
}
