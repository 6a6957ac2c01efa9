// kivi: what is grouped with what, the bytes of a page of keys, and the integral behind the stated error.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/codecs/codec.h"
#include "croquis/codecs/kivi/minmax.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kDim = 64;

Matrix<float> GaussianRows() {
  Matrix<float> x(kPageTokens, kDim);
  const Stream s{21, Purpose("kivi.test")};
  for (int64_t i = 0; i < kPageTokens * kDim; ++i) x.data()[i] = s.Gaussian(uint64_t(i));
  return x;
}

struct Page {
  std::unique_ptr<const Codec> codec;
  Buffer bytes;
  Matrix<float> decoded{kPageTokens, kDim};
};

Page EncodeAll(const char* method, Role role, const Matrix<float>& x) {
  Page p{*Make(method, kDim, role), {}};
  p.bytes = Buffer(p.codec->PageBytes());
  p.codec->Encode(x.View(), 0, p.bytes.data());
  p.codec->Decode(p.bytes.data(), 0, p.decoded.View());
  return p;
}

// Every number is within half a step of its group, and the group's extremes are kept, up to f16: the zero is
// rounded by 2^-12 of its size, the scale by 2^-12 of the range at most.
void CheckGroup(const Matrix<float>& x, const Matrix<float>& y, int64_t t0, int64_t nt, int64_t i0, int64_t ni,
                int top) {
  float lo = INFINITY, hi = -INFINITY;
  for (int64_t t = t0; t < t0 + nt; ++t) {
    for (int64_t i = i0; i < i0 + ni; ++i) lo = std::min(lo, x.Row(t)[i]), hi = std::max(hi, x.Row(t)[i]);
  }
  const float rounding = (std::abs(lo) + (hi - lo)) * 0x1p-11f + 1e-6f;
  for (int64_t t = t0; t < t0 + nt; ++t) {
    for (int64_t i = i0; i < i0 + ni; ++i) {
      ASSERT_LE(std::abs(x.Row(t)[i] - y.Row(t)[i]), (hi - lo) / float(2 * top) + rounding) << t << " " << i;
    }
  }
}

TEST(Kivi, KeysAreGroupedByChannelOver32Tokens) {
  for (const auto& [method, top] : {std::pair{"kivi:bits=2", 3}, {"kivi:bits=4", 15}}) {
    Matrix<float> x = GaussianRows();
    for (int64_t t = 0; t < kPageTokens; ++t) x.Row(t)[5] = 300 + x.Row(t)[5];  // an outlier channel is harmless
    const Page p = EncodeAll(method, Role::kKey, x);
    for (int64_t t = 0; t < kPageTokens; t += 32) {
      for (int64_t i = 0; i < kDim; ++i) CheckGroup(x, p.decoded, t, 32, i, 1, top);
    }
  }
}

TEST(Kivi, ValuesAreGroupedByTokenOver32Channels) {
  for (const auto& [method, top] : {std::pair{"kivi:bits=2", 3}, {"kivi:bits=4", 15}}) {
    Matrix<float> x = GaussianRows();
    for (int64_t i = 0; i < kDim; ++i) x.Row(9)[i] = 200 * x.Row(9)[i] + 1000;  // so is an outlier token
    const Page p = EncodeAll(method, Role::kValue, x);
    for (int64_t t = 0; t < kPageTokens; ++t) {
      for (int64_t i = 0; i < kDim; i += 32) CheckGroup(x, p.decoded, t, 1, i, 32, top);
    }
  }
}

// Four groups of [scales, zeros] in f16, then blocks of 16 tokens: lines of 64 bytes, four dims of a token in a row.
TEST(Kivi, BytesOfAPageOfKeys) {
  Matrix<float> x(kPageTokens, kDim);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t i = 0; i < kDim; ++i) x.Row(t)[i] = float(i) + 0.5f * float((t + i) % 4) * float(1 + t / 32);
  }
  const Page p = EncodeAll("kivi:bits=2", Role::kKey, x);
  const f16* halves = reinterpret_cast<const f16*>(p.bytes.data());
  const std::byte* codes = p.bytes.data() + 4 * 4 * kDim;
  for (int64_t g = 0; g < 4; ++g) {
    for (int64_t i = 0; i < kDim; ++i) {
      EXPECT_EQ(F16ToFloat(halves[g * 2 * kDim + i]), 0.5f * float(1 + g));
      EXPECT_EQ(F16ToFloat(halves[g * 2 * kDim + kDim + i]), float(i));
    }
  }
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t i = 0; i < kDim; ++i) {
      const std::byte b = codes[t / 16 * 4 * kDim + i / 16 * 64 + t % 16 * 4 + i % 4];
      EXPECT_EQ((std::to_integer<int>(b) >> (i / 4 % 4 * 2)) & 3, (t + i) % 4);
      EXPECT_EQ(p.decoded.Row(t)[i], x.Row(t)[i]);
    }
  }
}

TEST(Kivi, StoredBits) {
  for (const Role role : {Role::kKey, Role::kValue}) {
    EXPECT_EQ((*Make("kivi:bits=2,group=32", 128, role))->BitsPerNumber(), 3.0);
    EXPECT_EQ((*Make("kivi:bits=4", 128, role))->BitsPerNumber(), 5.0);
  }
  EXPECT_FALSE(Make("kivi:bits=3", 128, Role::kKey));
}

// 20,000 groups of n: the standard error of a group's mean error is under its value, so under .71 % of the mean;
// four of them and the rounding to f16 (2^-24 of squared scales and zeros of about 4: 2.4e-7).
TEST(Kivi, IntegralMatchesSimulation) {
  const Stream s{4, Purpose("kivi.integral")};
  for (const int top : {3, 15}) {
    for (const int64_t n : {3, 16, 32}) {
      constexpr int64_t kGroups = 20000;
      double error = 0;
      for (int64_t g = 0; g < kGroups; ++g) {
        float x[32];
        for (int64_t i = 0; i < n; ++i) x[i] = s.Gaussian(uint64_t(g * n + i));
        const MinMax m = MinMaxOf(*std::min_element(x, x + n), *std::max_element(x, x + n), top);
        uint8_t code[32];
        MinMaxCodes(m, top, x, n, 1, code);
        for (int64_t i = 0; i < n; ++i) {
          error += std::pow(double(x[i] - (F16ToFloat(m.zero) + F16ToFloat(m.scale) * float(code[i]))), 2);
        }
      }
      const double want = MinMaxGaussianMse(top, n);
      EXPECT_NEAR(error / double(kGroups * n), want, 0.03 * want + 1e-6) << top << " " << n;
    }
  }
  EXPECT_NEAR(MinMaxGaussianMse(3, 32), 0.1544, 1e-4);
}

TEST(Kivi, EdgesOfTheQuantiser) {
  const float same[4] = {2.5f, 2.5f, 2.5f, 2.5f};
  uint8_t code[4] = {9, 9, 9, 9};
  const MinMax flat = MinMaxOf(2.5f, 2.5f, 3);
  MinMaxCodes(flat, 3, same, 4, 1, code);
  EXPECT_EQ(F16ToFloat(flat.zero), 2.5f);
  EXPECT_EQ(code[0], 0);
  for (const float bad : {NAN, INFINITY, 1e30f}) {
    const MinMax m = MinMaxOf(-bad, bad, 3);
    EXPECT_TRUE(std::isfinite(F16ToFloat(m.scale)) && std::isfinite(F16ToFloat(m.zero)));
    const float x[2] = {-bad, bad};
    MinMaxCodes(m, 3, x, 2, 1, code);
    EXPECT_LE(code[0], 3);
    EXPECT_LE(code[1], 3);
  }
}

}  // namespace
}  // namespace croquis::codecs
