// tokenizer.json, and encoding and decoding with what was accepted.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "croquis/model/tokenizer_formats.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer =
      croquis::model::ParseTokenizerJson(std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size));
  if (!tokenizer) return 0;
  if (const auto ids = (*tokenizer)->Encode("Hello, world! 1234 \xf0\x9f\x98\x80\n  x"))
    (void)(*tokenizer)->Decode(*ids);
  return 0;
}
