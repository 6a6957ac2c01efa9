// Method strings and cache policies; what was accepted must make a codec or say why not.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "croquis/base/spec.h"
#include "croquis/kvcache/cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace croquis;
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (const auto spec = ParseSpec(text)) {
    if (!ParseSpec(ToString(*spec))) __builtin_trap();  // the inverse must parse
    (void)codecs::Make(text, 64, codecs::Role::kKey);
  }
  const size_t half = text.find('\n');
  const std::string layers[] = {half == text.npos ? std::string("0-1=f16") : text.substr(half + 1)};
  (void)kvcache::ParseKvPolicy(text.substr(0, half), layers);
  return 0;
}
