// llama2.c's weight files and vocabularies.
#include <cstddef>
#include <cstdint>
#include <span>

#include "croquis/model/llama2c.h"
#include "croquis/model/tokenizer_formats.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)croquis::model::ParseLlama2c(std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size));
  (void)croquis::model::MakeLlama2cTokenizer(std::span<const std::byte>(reinterpret_cast<const std::byte*>(data), size),
                                             512);
  return 0;
}
