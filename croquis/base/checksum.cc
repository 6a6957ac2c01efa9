#include "croquis/base/checksum.h"

#include <zlib.h>

#include <algorithm>

namespace croquis {

uint32_t Crc32(uint32_t so_far, const void* data, size_t bytes) {
  uLong crc = so_far;
  for (const auto* p = static_cast<const Bytef*>(data); bytes > 0;) {
    const auto n = uInt(std::min<size_t>(bytes, size_t{1} << 30));  // zlib counts in 32 bits
    crc = crc32(crc, p, n);
    p += n, bytes -= n;
  }
  return uint32_t(crc);
}

}  // namespace croquis
