// Scores and weighted sums computed on the bytes of a page, for all codecs that store one small code
// per number. One layout and one arithmetic definition; every instruction set reads the same bytes.
//
// A page is 128 tokens of one kv head, keys or values, 64-byte aligned:
//   scales   `runs` runs of 128 fp16: S[r][t]           (256 bytes a run; run r covers dims of its group)
//   mins     if `mins`: `runs` runs of 128 fp16: M[r][t]
//   codes    atoms of 64 * bits bytes
// runs = 1 (one scale a vector) or dim/32 (one a block of 32 dims, as in ggml). dim is a multiple of 32.
//
// The number stored at token t, dim i (r = its run, c = its code) is
//   x[t][i] = S[r][t] * step * L(c) + M[r][t]          L(c) = level[0][c], or 128 * level[0][c] + level[1][c]
// in rotated coordinates where the codec rotates. Levels are integers, so that integer dot products are
// exact and agree on every instruction set.
//
// An atom is 512 codes = 16 tokens x 32 dims = 8 units of 64 codes, in `bits` lines of 64 bytes. Code (unit k,
// lane i) is assembled from fields of the bits listed, lowest field first:
//   bits  fields
//   1     byte i of line 0, bit k
//   2     byte i of line k/4, bits 2(k%4)..+1
//   3     k<6: byte i of line k/2, bits 3(k%2)..+2;  k=6: low two bits = line 0 bits 6-7, high = line 1 bit 6;
//         k=7: low two bits = line 2 bits 6-7, high = line 1 bit 7
//   4     byte i of line k/2, bits 4(k%2)..+3
//   5     lines 0-3 as for 4 bits, then bit 4 = line 4 as for 1 bit
//   6     lines 0-3 as for 4 bits, then bits 4-5 = lines 4-5 as for 2 bits
//   7     lines 0-3 as for 4 bits, then bits 4-5 = lines 4-5 as for 2 bits, then bit 6 = line 6 as for 1 bit
//   8     byte i of line k
// Order of atoms, units and lanes:
//   keys    atom = (t/16)*(dim/32) + i/32   unit = (i%32)/4                  lane = (t%16)*4 + i%4
//   values  atom = (i/32)*8 + t/16          unit = ((t%16)/4)*2 + (i%32)/16  lane = (i%16)*4 + t%4
// so a key unit is [16 tokens x 4 dims] (dot over dims) and a value unit [16 dims x 4 tokens] (dot over tokens).
// A page expanded to bytes is made of AMX B tiles as they lie (keys: stride 64; values: stride 128).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "croquis/base/view.h"
#include "croquis/simd/target.h"
#include "croquis/simd/upcoming.h"

namespace croquis::simd {

inline constexpr int64_t kPageTokens = 128;
inline constexpr int64_t kPackTokens = 16;  // tokens of one atom

struct PageLayout {
  int32_t dim = 0;   // multiple of 32, at most 512
  int32_t bits = 0;  // 1..8
  int32_t runs = 1;  // 1 or dim / 32
  bool mins = false;

  constexpr size_t MinsAt() const { return size_t(runs) * 256; }
  constexpr size_t CodesAt() const { return MinsAt() * (mins ? 2 : 1); }
  constexpr size_t CodeBytes() const { return size_t(dim) * size_t(bits) * 16; }
  constexpr size_t Bytes() const { return CodesAt() + CodeBytes(); }
};

// What the codes stand for. `planes` is 2 only where 8-bit levels are too coarse (7- and 8-bit Lloyd-Max):
// kernels then run once per plane.
struct Levels {
  int32_t planes = 1;
  float step = 1;
  std::array<std::array<int8_t, 256>, 2> level{};

  constexpr int Value(int code) const {
    return planes == 2 ? 128 * level[0][size_t(code)] + level[1][size_t(code)] : level[0][size_t(code)];
  }
};

// How finely queries and softmax weights are quantised for the integer products.
//   kFine: about 15 bits of query and 16 of weight in two bytes each; kernel error <= 2e-4
//   kFast: one byte each; kernel error about 1e-2, for codes whose own error is far larger
enum class Precision : uint8_t { kFast, kFine };

// All of a target's page kernels. Pointers are never null: a target without a form of its own holds the
// next lower target's, and `name` says what runs, e.g. "avx512-vnni". All targets agree bit for bit in every entry
// (NaN aside). Levels c - 128 or int8(c) at 8 bits need no look-up and are fastest. Rows = query rows that share one kv
// head (any number >= 1; kernels split it into groups that fit their registers). Pages, queries and scratch are 64-byte
// aligned. Of `next` kernels prefetch the share that is theirs while they work. Nothing here can fail.
struct PageKernels {
  std::string_view name;
  Target target;

  // Between the two (they nest, thread by thread) kernels keep what they set up on this thread; see PageScope.
  void (*enter)();
  void (*leave)();

  // Bytes of a prepared query of `rows` rows, and of scratch for score/accumulate (multiples of 64).
  size_t (*query_bytes)(const PageLayout&, const Levels&, Precision, int64_t rows);
  size_t (*scratch_bytes)(const PageLayout&, const Levels&, Precision, int64_t rows);

  // q: [rows, dim] in the basis of the codes. Folds `scale` and the step.
  void (*prepare)(const PageLayout&, const Levels&, Precision, MatView<const float> q, float scale, std::byte* query);

  // logits[row * 128 + t] = scale * <q[row], x[t]> for all 128 slots of the page; the caller masks unused ones.
  void (*score)(const PageLayout&, const Levels&, Precision, const std::byte* page, const std::byte* query,
                int64_t rows, const Upcoming& next, float* logits, std::byte* scratch);

  // acc[row][i] += p_scale[row] * sum_t p[row * 128 + t] * x[t][i]; p >= 0, 0 at unused slots; acc: [rows,
  // dim] f32. The step is applied here, so acc is complete except for the inverse rotation.
  void (*accumulate)(const PageLayout&, const Levels&, Precision, const std::byte* page, const float* p,
                     const float* p_scale, int64_t rows, const Upcoming& next, MatView<float> acc, std::byte* scratch);

  // Writes 16 tokens (rows of `codes`, [16, dim] bytes, stride dim) as block `block` (tokens 16*block..+15) of a page.
  void (*pack_keys)(const PageLayout&, const uint8_t* codes, int64_t block, std::byte* page);
  void (*pack_values)(const PageLayout&, const uint8_t* codes, int64_t block, std::byte* page);

  // In place, unnormalised Walsh-Hadamard transform of n numbers, n a power of two >= 1.
  void (*fwht)(float* x, int64_t n);
  // codes[i] = the number of thresholds below z[i] (thresholds ascending, n_thresholds = 2^bits - 1 <= 255);
  // returns sum z[i] * value[codes[i]] in double-compensated or pairwise float. value: 2^bits floats.
  float (*nearest)(const float* z, int64_t n, const float* thresholds, int64_t n_thresholds, const float* value,
                   uint8_t* codes);
  // fp16 <-> fp32, bf16 <-> fp32 of n numbers.
  void (*f16_to_f32)(const uint16_t* x, int64_t n, float* y);
  void (*f32_to_f16)(const float* x, int64_t n, uint16_t* y);
  void (*bf16_to_f32)(const uint16_t* x, int64_t n, float* y);
  void (*f32_to_bf16)(const float* x, int64_t n, uint16_t* y);
};

// Kernels of the active target, and of a given one, which must be among Reachable() (that also asks for the tiles).
const PageKernels& Pages();
const PageKernels& Pages(Target target);

// While one lives, the kernels called on this thread keep what they set up there (AMX tiles) instead of setting it up
// for every page: a tenth of the time. Nothing else that uses such state may run on the thread meanwhile.
class PageScope {
 public:
  PageScope() : kernels_(Pages()) { kernels_.enter(); }
  ~PageScope() { kernels_.leave(); }
  PageScope(const PageScope&) = delete;
  PageScope& operator=(const PageScope&) = delete;

 private:
  const PageKernels& kernels_;
};

// Plain code access, the definition of the layout; used by references and tests.
int GetCode(const PageLayout&, bool values, const std::byte* page, int64_t token, int64_t dim);
void SetCode(const PageLayout&, bool values, std::byte* page, int64_t token, int64_t dim, int code);
// x: [rows <= 128, dim] decoded by the formula above.
void DecodePageReference(const PageLayout&, const Levels&, bool values, const std::byte* page, MatView<float> x);

}  // namespace croquis::simd
