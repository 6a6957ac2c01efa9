// SentencePiece's tokenizer.model.
#include <cstddef>
#include <cstdint>
#include <span>

#include "croquis/model/tokenizer_formats.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer =
      croquis::model::ParseSentencePiece(std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size));
  if (!tokenizer) return 0;
  if (const auto ids = (*tokenizer)->Encode("Hello, world! 1234")) (void)(*tokenizer)->Decode(*ids);
  return 0;
}
