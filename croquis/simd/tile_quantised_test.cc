// Every target's quantised tile kernels against the portable ones.
#include "croquis/simd/tile_quantised.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "croquis/base/memory.h"
#include "croquis/base/rng.h"

namespace croquis::simd {
namespace {

struct Call {
  int64_t rows = 64, keys = 64, dim = 64, value_dim = 64;
  bool narrow = false;
  int64_t begin = 0, end = -1;  // -1: all keys
  bool ranges = false, biased = false;
  float size = .02f;  // of a product's unit in the logits
  int calls = 1;
};

struct State {
  std::vector<float> max, mass, answer;
};

State Attend(const QuantisedKernels& kernels, const Call& c) {
  const QuantisedLayout layout{c.dim, c.value_dim, c.narrow};
  const Stream random{3, Purpose("simd.tile_quantised_test")};
  const int64_t blocks = (c.keys + kTileKeys - 1) / kTileKeys, slots = blocks * kTileKeys, units = layout.Units(),
                end = c.end < 0 ? c.keys : c.end;
  Buffer keys(size_t(blocks) * layout.KeyBlockBytes()), values(size_t(blocks) * layout.ValueBlockBytes()),
      queries(size_t(kTileRows * units * 4)), scratch(kQuantisedScratch);
  uint64_t next = 0;
  for (int64_t i = 0; i < kTileRows * units * 4; ++i)  // whole range, both ends
    queries.data()[i] = std::byte(i % 7 == 0 ? 255 : i % 11 == 0 ? 1 : 1 + random.U32(next++) % 255);
  std::vector<float> key_scale(static_cast<size_t>(slots)), row_scale(kTileRows), bias(static_cast<size_t>(slots));
  std::vector<int32_t> offset(static_cast<size_t>(slots)), first, last;
  for (int64_t key = 0; key < c.keys; ++key) {
    std::byte* const block = keys.data() + size_t(key / kTileKeys) * layout.KeyBlockBytes();
    for (int64_t i = 0; i < c.dim; ++i) {
      const int x = i % 5 == 0 ? -127 : int(random.U32(next++) % 255) - 127;
      block[(i / 4 * kTileKeys + key % kTileKeys) * 4 + i % 4] = std::byte(int8_t(x));
      offset[size_t(key)] -= 128 * x;
    }
    key_scale[size_t(key)] = c.size * (.5f + random.Uniform(next++));
    bias[size_t(key)] = key % 4 == 3 ? kMasked : random.Gaussian(next++);
    std::byte* const value = values.data() + size_t(key / kTileKeys) * layout.ValueBlockBytes();
    const int64_t together = c.narrow ? 4 : 2, slot = key % kTileKeys,
                  at = slot / together * layout.Width() * together + slot % together;
    for (int64_t i = 0; i < c.value_dim; ++i) {
      const int most = c.narrow ? 127 : kQuantisedValues, x = int(random.U32(next++) % uint32_t(2 * most + 1)) - most;
      if (c.narrow)
        reinterpret_cast<int8_t*>(value)[at + i * together] = int8_t(x);
      else
        reinterpret_cast<int16_t*>(value)[at + i * together] = int16_t(x);
    }
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    row_scale[size_t(r)] = random.Gaussian(next++) * .01f;
    const int64_t a = random.U32(next++) % uint32_t(c.keys + 9), b = random.U32(next++) % uint32_t(c.keys + 9);
    first.push_back(int32_t(std::min(a, b))), last.push_back(int32_t(std::max(a, b)));
  }
  Matrix<float> sums(kTileRows, layout.Width());
  State state;
  state.max.assign(size_t(c.rows), kMasked);
  state.mass.assign(size_t(c.rows), 0);
  for (int i = 0; i < c.calls; ++i) {
    QuantisedCall call;
    call.layout = layout;
    call.queries = reinterpret_cast<const uint8_t*>(queries.data()), call.row_scale = row_scale.data();
    call.rows = c.rows;
    call.keys = keys.data(), call.values = values.data();
    call.key_scale = key_scale.data(), call.key_offset = offset.data();
    call.begin = c.begin + (end - c.begin) * i / c.calls, call.end = c.begin + (end - c.begin) * (i + 1) / c.calls;
    if (c.biased) {
      call.bias_first = call.begin / kTileKeys * kTileKeys;
      call.bias = bias.data() + call.bias_first;
    }
    if (c.ranges) call.first = first.data(), call.last = last.data();
    call.max = state.max.data(), call.mass = state.mass.data(), call.sums = sums.View();
    call.scratch = scratch.data();
    kernels.attend(call);
  }
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t i = 0; i < c.value_dim; ++i)
      state.answer.push_back(state.mass[size_t(r)] == 0 ? 0 : sums.Row(r)[i] / state.mass[size_t(r)]);
  return state;
}

void ExpectSame(const Call& c) {
  const State want = Attend(QuantisedTiles(Target::kScalar), c);
  for (const Target target : Reachable()) {
    SCOPED_TRACE(std::string(Name(target)) + (c.narrow ? " narrow " : " ") + std::to_string(c.rows) + " x " +
                 std::to_string(c.keys) + ", dims " + std::to_string(c.dim) + ", " + std::to_string(c.value_dim));
    const State got = Attend(QuantisedTiles(target), c);
    for (size_t r = 0; r < size_t(c.rows); ++r) {
      ASSERT_EQ(got.mass[r] == 0, want.mass[r] == 0) << "row " << r;
      if (want.mass[r] == 0) continue;
      // A weight may be rounded to the next level (1/255 or 1/4095 of the largest weight), and logits are f32 numbers.
      const double level = (c.narrow ? 4e-3 : 4e-4) + 2e-7 * std::abs(want.max[r]),
                   most = c.narrow ? 127 : kQuantisedValues;
      ASSERT_NEAR(got.max[r] + std::log2(got.mass[r]), want.max[r] + std::log2(want.mass[r]), 2 * level) << "row " << r;
      for (size_t i = 0; i < size_t(c.value_dim); ++i)
        ASSERT_NEAR(got.answer[r * size_t(c.value_dim) + i], want.answer[r * size_t(c.value_dim) + i], 2 * level * most)
            << "row " << r << ", number " << i;
    }
  }
}

TEST(QuantisedTiles, EqualThePortableForm) {
  const int64_t dims[][2] = {{1, 1}, {17, 33}, {64, 64}, {80, 96}, {128, 48}, {128, 128}, {256, 256}, {300, 112}};
  for (const bool narrow : {false, true}) {
    for (const auto& [dim, value_dim] : dims)
      ExpectSame(
          {.rows = 37, .keys = 150, .dim = dim, .value_dim = value_dim, .narrow = narrow, .ranges = dim % 2 == 0});
    for (int64_t rows = 1; rows <= 64; rows += rows % 5 + 1)
      ExpectSame({.rows = rows, .keys = 200, .dim = 32, .value_dim = 48, .narrow = narrow, .ranges = rows % 2 == 0});
    for (const int64_t keys : {1, 63, 64, 65, 640}) ExpectSame({.keys = keys, .dim = 40, .narrow = narrow});
    ExpectSame({.rows = 50, .keys = 700, .narrow = narrow, .begin = 77, .end = 603, .biased = true, .calls = 3});
    ExpectSame({.rows = 64, .keys = 300, .narrow = narrow, .ranges = true, .biased = true});
    ExpectSame({.rows = 64, .keys = 300, .narrow = narrow, .ranges = true, .size = 2});  // logits of thousands
  }
}

}  // namespace
}  // namespace croquis::simd
