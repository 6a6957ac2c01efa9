// One number of a row, for the portable kernels alone: files of an instruction set may not hold shared inline
// functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "croquis/base/dtype.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::simd {

inline float Number(RowType type, const std::byte* row, int64_t i) {
  if (type == RowType::kF32) return reinterpret_cast<const float*>(row)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[i];
  return type == RowType::kF16 ? F16ToFloat(bits) : Bf16ToFloat(bits);
}

}  // namespace croquis::simd
