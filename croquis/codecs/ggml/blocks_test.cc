// ggml's blocks against bytes that the gguf package and ggml wrote (golden_blocks.h), and the properties that bytes
// cannot show.
#include "croquis/codecs/ggml/blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "croquis/base/rng.h"
#include "croquis/codecs/ggml/golden_blocks.h"

namespace croquis::codecs {
namespace {

constexpr GgmlType kSmall[] = {GgmlType::kQ8_0, GgmlType::kQ5_1, GgmlType::kQ5_0,
                               GgmlType::kQ4_1, GgmlType::kQ4_0, GgmlType::kIq4Nl};

std::vector<float> Floats(std::span<const uint32_t> bits) {
  std::vector<float> x;
  for (const uint32_t b : bits) x.push_back(std::bit_cast<float>(b));
  return x;
}

std::vector<float> GaussianRow(int64_t n, uint64_t seed) {
  const Stream s{seed, Purpose("blocks.test")};
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = s.Gaussian(i);
  return x;
}

TEST(GgmlBlocks, QuantisesAsTheGgufPackage) {
  std::vector<float> x = Floats(golden::kInput);
  const auto check = [&](GgmlType type, std::span<const uint8_t> want) {
    std::vector<std::byte> got(want.size());
    ASSERT_EQ(x.size() / 32 * BlockBytes(type), want.size());
    ASSERT_TRUE(Quantize(type, x.data(), int64_t(x.size()), got.data()));
    for (size_t i = 0; i < want.size(); ++i) {
      // ggml leaves the codes of an IQ4_NL block without a scale as its last block had them.
      const size_t block = i - i % BlockBytes(type);
      if (type == GgmlType::kIq4Nl && want[block] == 0 && want[block + 1] % 128 == 0 && i > block + 1) continue;
      ASSERT_EQ(std::to_integer<int>(got[i]), want[i])
          << Name(type) << " byte " << i << " of row " << i / BlockBytes(type);
    }
  };
  check(GgmlType::kQ8_0, golden::kQ8_0);
  check(GgmlType::kQ5_1, golden::kQ5_1);
  check(GgmlType::kQ5_0, golden::kQ5_0);
  check(GgmlType::kQ4_1, golden::kQ4_1);
  check(GgmlType::kQ4_0, golden::kQ4_0);
  for (float& v : x) v = std::abs(v) > 1e16f ? 1 : v;  // ggml's sums overflow from 2e16 on
  check(GgmlType::kIq4Nl, golden::kIQ4_NLWritten);     // by ggml itself
}

TEST(GgmlBlocks, DequantisesAsTheGgufPackage) {
  const auto check = [](GgmlType type, std::span<const uint8_t> blocks, std::span<const uint32_t> want) {
    std::vector<float> got(want.size());
    ASSERT_TRUE(Dequantize(type, reinterpret_cast<const std::byte*>(blocks.data()), int64_t(want.size()), got.data()));
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), want[i]) << Name(type) << " " << i;
  };
  check(GgmlType::kIq4Nl, golden::kIQ4_NL, golden::kIQ4_NLNumbers);
  check(GgmlType::kQ4K, golden::kQ4_K, golden::kQ4_KNumbers);
  check(GgmlType::kQ6K, golden::kQ6_K, golden::kQ6_KNumbers);
}

TEST(GgmlBlocks, SizesAndNames) {
  EXPECT_EQ(BlockBytes(GgmlType::kQ8_0), 34u);
  EXPECT_EQ(BlockBytes(GgmlType::kQ6K), 210u);
  EXPECT_EQ(BlockSize(GgmlType::kQ4K), 256);
  EXPECT_EQ(Name(GgmlType::kIq4Nl), "IQ4_NL");
  EXPECT_EQ(BlockSize(GgmlType(77)), 0);
  EXPECT_EQ(BlockBytes(GgmlType(77)), 0u);
  EXPECT_EQ(Name(GgmlType(77)), "unknown");
  EXPECT_FALSE(IsSmallBlock(GgmlType::kQ4K));
}

TEST(GgmlBlocks, WrongRequestsAreErrors) {
  std::vector<std::byte> bytes(512);
  std::vector<float> x(512);
  EXPECT_EQ(Dequantize(GgmlType(77), bytes.data(), 32, x.data()).error().code, Code::kUnsupported);
  EXPECT_EQ(Dequantize(GgmlType::kQ4_0, bytes.data(), 33, x.data()).error().code, Code::kInvalidArgument);
  EXPECT_FALSE(Dequantize(GgmlType::kQ4K, bytes.data(), 32, x.data()));
  EXPECT_FALSE(Dequantize(GgmlType::kF32, bytes.data(), -1, x.data()));
  EXPECT_FALSE(Quantize(GgmlType::kQ6K, x.data(), 256, bytes.data()));
  EXPECT_TRUE(Dequantize(GgmlType::kQ4_0, bytes.data(), 0, x.data()));
}

TEST(GgmlBlocks, PackingIsInvertible) {
  const Stream s{3, Purpose("blocks.pack")};
  for (const GgmlType type : kSmall) {
    std::vector<std::byte> bytes(BlockBytes(type)), again(bytes);
    for (int trial = 0; trial < 50; ++trial) {
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::byte(s.U32(size_t(trial) * 64 + i) & 255);
      SmallBlock block;
      UnpackSmall(type, bytes.data(), &block);
      for (const uint8_t c : block.code) ASSERT_LT(c, 1 << CodeBits(type));
      PackSmall(type, block, again.data());
      ASSERT_EQ(bytes, again) << Name(type);
    }
  }
}

// Numbers that lie on the grid of a block come back exactly. The largest magnitude sets the scale.
TEST(GgmlBlocks, GridNumbersAreExact) {
  for (const GgmlType type : kSmall) {
    float x[32], y[32];
    const int top = (1 << CodeBits(type)) - 1;
    for (int i = 0; i < 32; ++i) {
      const int code = type == GgmlType::kQ8_0 ? 1 + i * 254 / 31 : std::min(i, top);  // Q8_0 never uses -128
      x[i] = 0.25f * float(LevelOf(type, code)) + (HasMin(type) ? -3.5f : 0.f);
    }
    std::vector<std::byte> bytes(BlockBytes(type));
    ASSERT_TRUE(Quantize(type, x, 32, bytes.data()));
    ASSERT_TRUE(Dequantize(type, bytes.data(), 32, y));
    for (int i = 0; i < 32; ++i) EXPECT_EQ(x[i], y[i]) << Name(type) << " " << i;
  }
}

// Codes are nearest with the largest magnitude at -127; the scale is then the best one under weights x^2.
TEST(GgmlBlocks, Iq4NlFitsItsScale) {
  const std::vector<float> x = GaussianRow(32 * 500, 5);
  for (size_t b = 0; b < 500; ++b) {
    const float* row = &x[b * 32];
    SmallBlock block;
    EncodeSmall(GgmlType::kIq4Nl, row, &block);
    double top = 0;
    for (int i = 0; i < 32; ++i) top = std::abs(row[i]) > std::abs(top) ? row[i] : top;
    const auto error = [&](double scale, int i, int code) {
      return std::pow(row[i] - scale * LevelOf(GgmlType::kIq4Nl, code), 2);
    };
    const auto weighted = [&](double scale) {
      double sum = 0;
      for (int i = 0; i < 32; ++i) sum += double(row[i]) * row[i] * error(scale, i, block.code[size_t(i)]);
      return sum;
    };
    for (int i = 0; i < 32; ++i) {
      for (int c = 0; c < 16; ++c)
        EXPECT_LE(error(top / -127, i, block.code[size_t(i)]), error(top / -127, i, c) + 1e-6);
    }
    const double scale = F16ToFloat(block.scale);  // f16: 5e-4 off at most
    EXPECT_LE(weighted(scale), weighted(scale * .998));
    EXPECT_LE(weighted(scale), weighted(scale * 1.002));
  }
}

TEST(GgmlBlocks, WholeFloats) {
  const std::vector<float> x = GaussianRow(64, 9);
  std::vector<std::byte> bytes(256);
  std::vector<float> y(64);
  ASSERT_TRUE(Quantize(GgmlType::kF32, x.data(), 64, bytes.data()));
  ASSERT_TRUE(Dequantize(GgmlType::kF32, bytes.data(), 64, y.data()));
  EXPECT_EQ(x, y);
  for (const GgmlType type : {GgmlType::kF16, GgmlType::kBf16}) {
    ASSERT_TRUE(Quantize(type, x.data(), 64, bytes.data() + 1));  // any alignment
    ASSERT_TRUE(Dequantize(type, bytes.data() + 1, 64, y.data()));
    const float ulp = type == GgmlType::kF16 ? 0x1p-11f : 0x1p-8f;
    for (size_t i = 0; i < 64; ++i) EXPECT_NEAR(y[i], x[i], std::abs(x[i]) * ulp + 0x1p-25f);
  }
}

TEST(GgmlBlocks, NumbersThatAreNoneDoNotCrash) {
  float x[32] = {};
  std::byte bytes[34];
  for (const float bad : {NAN, INFINITY, -INFINITY, 3.4e38f, 1e-45f}) {
    for (const GgmlType type : kSmall) {
      x[7] = bad;
      x[9] = -bad / 2;
      EXPECT_TRUE(Quantize(type, x, 32, bytes));
    }
  }
}

}  // namespace
}  // namespace croquis::codecs
