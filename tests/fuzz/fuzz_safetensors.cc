// The table of a safetensors file and the index of shards.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "croquis/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace croquis::model;
  if (const auto table =
          ParseSafetensorsHeader(std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size))) {
    // What was accepted must lie inside the file.
    for (const auto& t : *table)
      if (!t.bytes.empty() && (reinterpret_cast<const uint8_t*>(t.bytes.data()) < data ||
                               reinterpret_cast<const uint8_t*>(t.bytes.data()) + t.bytes.size() > data + size))
        __builtin_trap();
  }
  (void)ParseSafetensorsIndex(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
