// Which instruction set the hot loops use: found at run time, or forced.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "croquis/base/result.h"

namespace croquis::simd {

// Each target contains those before it. The names are those of CROQUIS_SIMD and --simd.
enum class Target : uint8_t {
  kScalar,   // "scalar": portable C++, the reference of every kernel
  kAvx2,     // "avx2": AVX2, FMA, F16C
  kAvxVnni,  // "avxvnni": and vpdpbusd on ymm
  kAvx512,   // "avx512": AVX-512 F/BW/DQ/VL/VBMI/VNNI/BF16
  kAmx,      // "amx": and AMX tiles, int8 and bf16 (permission asked of the kernel at start)
};

std::string_view Name(Target target);
// The targets that this machine, its kernel and this build can run, lowest first; never empty.
std::span<const Target> Reachable();
// The target in use: the forced one, or the highest reachable.
Target Active();
// Forces a target by name for the whole process; error when unknown or not reachable. "" undoes it.
// CROQUIS_SIMD in the environment does the same at first use and is verified by VerifyForced.
Status Force(std::string_view name);
// An error when CROQUIS_SIMD names a target that is unknown or not reachable. Applications call it at start.
Status VerifyForced();

}  // namespace croquis::simd
