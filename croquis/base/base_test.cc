#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/executor.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/base/spec.h"
#include "croquis/base/view.h"

namespace croquis {
namespace {

TEST(Rng, KnownAnswers) {  // Random123's kat_vectors: philox4x32-10 with zero counter and key
  const uint32_t want[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  for (int i = 0; i < 4; ++i) EXPECT_EQ((Stream{0, 0}.U32(uint64_t(i))), want[i]);
}

TEST(Rng, MomentsOfGaussian) {
  // n = 1e5: standard error of the mean 3.2e-3, of the variance 4.5e-3; 5 standard errors each.
  const Stream s{7, Purpose("test")};
  double m = 0, v = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i) m += s.Gaussian(i), v += double(s.Gaussian(i)) * s.Gaussian(i);
  EXPECT_NEAR(m / n, 0, 0.016);
  EXPECT_NEAR(v / n, 1, 0.023);
  EXPECT_NE(s.U32(0), s.Sub(1).U32(0));
  EXPECT_NE(s.Sub(1).U32(0), s.Sub(2).U32(0));
}

TEST(Dtype, EveryHalfRoundTrips) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = F16ToFloat(f16(h));
    if (std::isnan(f)) continue;
    EXPECT_EQ(FloatToF16(f), f16(h));
    if (!std::isinf(f)) {  // halfway to the next value rounds to the even one
      const float g = F16ToFloat(f16(h + 1));
      if (std::isfinite(g) && (h & 0x7fff) < 0x7bff) {
        EXPECT_EQ(FloatToF16((f + g) / 2), (h & 1) ? h + 1 : h) << h;
      }
    }
  }
  EXPECT_EQ(FloatToF16(65520.f), 0x7c00);
  EXPECT_EQ(FloatToF16(65519.f), 0x7bff);
}

TEST(Spec, ParsesAndCompletes) {
  const ParamInfo params[] = {{"bits", "4", 1, 8, {}, "bits"}, {"center", "auto", 0, 0, "auto|none|rope", "centring"}};
  auto s = ParseSpec("eden:bits=3");
  ASSERT_TRUE(s);
  auto full = Complete(*s, params);
  ASSERT_TRUE(full);
  EXPECT_EQ(ToString(*full), "eden:bits=3,center=auto");
  EXPECT_EQ(full->Int("bits"), 3);
  for (const char* bad : {"", ":", "eden:", "eden:bits", "eden:bits=", "eden:bits=1,bits=2", "eden:bits=4,", "e den"})
    EXPECT_FALSE(ParseSpec(bad)) << bad;
  for (const char* bad :
       {"eden:bits=9", "eden:bits=x", "eden:bit=3", "eden:center=maybe", "eden:bits=99999999999999999999"})
    EXPECT_FALSE(Complete(*ParseSpec(bad), params)) << bad;
}

TEST(Spec, ValuesMayBePaths) {
  const ParamInfo params[] = {{.name = "file", .def = "-", .text = true}, {"bits", "4", 1, 8}};
  const auto s = ParseSpec("a:file=/x/y-1.2+z_3.ntk,bits=5");
  ASSERT_TRUE(s);
  const auto full = Complete(*s, params);
  ASSERT_TRUE(full);
  EXPECT_EQ(full->Word("file"), "/x/y-1.2+z_3.ntk");
  EXPECT_EQ(full->Int("bits"), 5);
  EXPECT_EQ(ToString(*ParseSpec(ToString(*full))), ToString(*full));
  for (const char* bad : {"a:file=", "a:file=x y", "a:file=x:y", "a:fi/le=x", "a/b:file=x"})
    EXPECT_FALSE(ParseSpec(bad)) << bad;
  EXPECT_FALSE(Complete(*ParseSpec("a:bits=4/2"), params));
}

TEST(Executor, EveryTaskOnceOnAnyNumberOfThreads) {
  for (int threads : {1, 2, 3, 7}) {
    Executor pool(threads);
    for (int64_t n : {0, 1, 2, 100, 5000}) {
      std::vector<std::atomic<int>> seen(size_t(n) + 1);
      pool.ParallelFor(n, [&](int64_t t, int worker) {
        ASSERT_LT(worker, threads);
        seen[size_t(t)]++;
      });
      for (int64_t t = 0; t < n; ++t) ASSERT_EQ(seen[size_t(t)], 1);
    }
  }
}

TEST(Memory, BuffersAreAlignedAndZero) {
  for (size_t n : {size_t{1}, size_t{63}, size_t{4096}, size_t{3} << 20}) {
    Buffer b(n);
    EXPECT_EQ(reinterpret_cast<size_t>(b.data()) % 64, 0u);
    for (size_t i = 0; i < n; i += 97) ASSERT_EQ(b.data()[i], std::byte{0});
  }
  EXPECT_FALSE(CheckedMul(int64_t{1} << 40, int64_t{1} << 40));
  EXPECT_FALSE(CheckMemory(int64_t{1} << 60, "a test"));
}

}  // namespace
}  // namespace croquis
