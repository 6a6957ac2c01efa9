// The checksum of files.
#pragma once

#include <cstddef>
#include <cstdint>

namespace croquis {

// CRC-32 (ISO 3309) of `bytes` bytes that follow those whose checksum is `so_far` (0: none).
uint32_t Crc32(uint32_t so_far, const void* data, size_t bytes);

}  // namespace croquis
