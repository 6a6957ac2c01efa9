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

// wide: as the kernels to compare with want it.
State Attend(const QuantisedKernels& kernels, const Call& c, bool wide) {
  const QuantisedLayout layout{c.dim, c.value_dim, wide, c.narrow};
  const Stream random{3, Purpose("simd.tile_quantised_test")};
  const int64_t blocks = (c.keys + kTileKeys - 1) / kTileKeys, slots = blocks * kTileKeys, units = layout.Units(),
                end = c.end < 0 ? c.keys : c.end;
  Buffer keys(size_t(blocks) * layout.KeyBlockBytes()), values(size_t(blocks) * layout.ValueBlockBytes()),
      queries(size_t(kTileRows * units * 4)), scratch(kQuantisedScratch);
  uint64_t next = 0;
  const int64_t numbers = layout.UnitNumbers();
  for (int64_t i = 0; i < kTileRows * units * numbers; ++i) {  // whole range, both ends
    const int most = wide ? 1023 : 127, x = int(random.U32(next++) % uint32_t(2 * most + 1)) - most,
              number = i % 7 == 0    ? most
                       : i % 11 == 0 ? -most
                                     : x;
    if (wide)
      reinterpret_cast<int16_t*>(queries.data())[i] = int16_t(number);
    else
      queries.data()[i] = std::byte(128 + number);
  }
  std::vector<float> key_scale(static_cast<size_t>(slots)), row_scale(kTileRows), bias(static_cast<size_t>(slots));
  std::vector<int32_t> offset(static_cast<size_t>(slots)), first, last;
  std::vector<float> value_scale(static_cast<size_t>(blocks * layout.Width()));
  for (float& x : value_scale) x = .5f + random.Uniform(next++);
  for (int64_t key = 0; key < c.keys; ++key) {
    std::byte* const block = keys.data() + size_t(key / kTileKeys) * layout.KeyBlockBytes();
    for (int64_t i = 0; i < c.dim; ++i) {
      const int most = wide ? 1023 : 127;
      const int x = i % 5 == 0 ? -most : int(random.U32(next++) % uint32_t(2 * most + 1)) - most;
      const int64_t at = (i / numbers * kTileKeys + key % kTileKeys) * numbers + i % numbers;
      if (wide)
        reinterpret_cast<int16_t*>(block)[at] = int16_t(x);
      else
        block[at] = std::byte(int8_t(x));
      offset[size_t(key)] -= 128 * x;
    }
    key_scale[size_t(key)] = c.size * (.5f + random.Uniform(next++)) * (wide ? 1 / 64.f : 1.f);
    bias[size_t(key)] = key % 4 == 3 ? kMasked : random.Gaussian(next++);
    std::byte* const value = values.data() + size_t(key / kTileKeys) * layout.ValueBlockBytes();
    const int64_t together = c.narrow ? 4 : 2, slot = key % kTileKeys,
                  at = slot / together * layout.Width() * together + slot % together;
    for (int64_t i = 0; i < c.value_dim; ++i) {
      const int most = layout.ValueLevels(), x = int(random.U32(next++) % uint32_t(2 * most + 1)) - most;
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
    call.queries = queries.data(), call.row_scale = row_scale.data();
    call.rows = c.rows;
    call.keys = keys.data(), call.values = values.data();
    call.key_scale = key_scale.data(), call.value_scale = value_scale.data();
    if (!wide) call.key_offset = offset.data();
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
  for (const Target target : Reachable()) {
    const QuantisedKernels& kernels = QuantisedTiles(target);
    SCOPED_TRACE(std::string(Name(target)) + (c.narrow ? " narrow " : " ") + std::to_string(c.rows) + " x " +
                 std::to_string(c.keys) + ", dims " + std::to_string(c.dim) + ", " + std::to_string(c.value_dim));
    const State want = Attend(QuantisedTiles(Target::kScalar), c, kernels.wide), got = Attend(kernels, c, kernels.wide);
    for (size_t r = 0; r < size_t(c.rows); ++r) {
      ASSERT_EQ(got.mass[r] == 0, want.mass[r] == 0) << "row " << r;
      if (want.mass[r] == 0) continue;
      // A logit may be rounded to the next step, and its weight to the next level; logits themselves are f32 numbers.
      const double level = (c.narrow ? kernels.wide ? 1.6e-2 : 4e-3 : 4e-4) + 2e-7 * std::abs(want.max[r]),
                   most = QuantisedLayout{.narrow = c.narrow}.ValueLevels();
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
    ExpectSame({.rows = 64, .keys = 300, .narrow = narrow, .size = 1e-4f});              // weights nearly equal
  }
}

TEST(QuantisedTiles, RoundAsThePortableForm) {
  const Stream random{4, Purpose("simd.tile_quantised_test")};
  for (const Target target : Reachable())
    for (const bool wide : {false, true})
      for (const int64_t n : {1, 7, 16, 33, 64, 128, 300}) {
        SCOPED_TRACE(std::string(Name(target)) + " " + std::to_string(n));
        const int most = wide ? 1023 : 127;
        std::vector<float> x(static_cast<size_t>(n));
        for (size_t i = 0; i < x.size(); ++i) x[i] = random.Gaussian(i);
        const size_t bytes = size_t((n + 15) / 16 * 16 * 2);
        std::vector<std::byte> want(bytes), got(bytes);
        const float scale = QuantisedTiles(Target::kScalar).round_row(x.data(), n, wide, most, want.data());
        EXPECT_EQ(QuantisedTiles(target).round_row(x.data(), n, wide, most, got.data()), scale);
        EXPECT_EQ(got, want);
        for (size_t i = 0; i < x.size(); ++i) {
          const int number = wide ? reinterpret_cast<const int16_t*>(want.data())[i] : int(int8_t(want[i]));
          EXPECT_NEAR(scale * float(number), x[i], .501f * scale);
        }
        const std::vector<float> zeros(x.size());
        EXPECT_EQ(QuantisedTiles(target).round_row(zeros.data(), n, wide, most, got.data()), 0);
        EXPECT_EQ(got, std::vector<std::byte>(bytes));
      }
}

TEST(QuantisedTiles, PackAsThePortableForm) {
  const Stream random{5, Purpose("simd.tile_quantised_test")};
  for (const Target target : Reachable())
    for (const bool narrow : {false, true})
      for (const int64_t value_dim : {1, 16, 50, 128})
        for (const int64_t keys : {1, 6, 63, 64}) {
          SCOPED_TRACE(std::string(Name(target)) + " " + std::to_string(value_dim) + " " + std::to_string(keys));
          const QuantisedLayout layout{8, value_dim, false, narrow};
          const auto width = size_t(layout.Width());
          std::vector<float> v(size_t(keys) * width), center(width), want_scale(width), got_scale(width);
          for (size_t i = 0; i < v.size(); ++i) v[i] = i % width == 3 ? 0 : 2 + random.Gaussian(i);
          for (size_t i = 0; i < width; ++i) center[i] = i == 3 ? 0 : 2;
          std::vector<std::byte> want(layout.ValueBlockBytes()), got(layout.ValueBlockBytes());
          QuantisedTiles(Target::kScalar)
              .pack_values(layout, v.data(), center.data(), keys, want_scale.data(), want.data());
          QuantisedTiles(target).pack_values(layout, v.data(), center.data(), keys, got_scale.data(), got.data());
          EXPECT_EQ(got_scale, want_scale);
          EXPECT_EQ(got, want);
        }
}

}  // namespace
}  // namespace croquis::simd
