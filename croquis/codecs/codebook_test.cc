#include "croquis/codecs/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "croquis/codecs/lloyd_max_codec.h"

namespace croquis::codecs {
namespace {

// Positive centroids and errors of N(0, 1), as tabulated by Max (1960) and in spec kv-cache 0.2.
const std::vector<double> kPositive[] = {{0.7979},
                                         {0.4528, 1.5104},
                                         {0.2451, 0.7560, 1.3439, 2.1519},
                                         {0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326}};
constexpr double kMse[] = {0.36338, 0.11748, 0.03455, 0.00950, 0.00250, 0.00064};

TEST(LloydMax, PublishedTables) {
  for (int bits = 1; bits <= 4; ++bits) {
    const auto c = LloydMax(bits);
    const auto& want = kPositive[bits - 1];
    ASSERT_EQ(c.size(), 2 * want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(c[want.size() + i], want[i], 5.1e-5) << bits;
      EXPECT_NEAR(c[want.size() - 1 - i], -want[i], 5.1e-5) << bits;
    }
  }
  for (int bits = 1; bits <= 6; ++bits) EXPECT_NEAR(GaussianMse(LloydMax(bits)), kMse[bits - 1], 5.1e-6) << bits;
}

TEST(LloydMax, EveryCentroidIsTheMeanOfItsCell) {
  for (int bits = 1; bits <= 8; ++bits) {
    const auto c = LloydMax(bits);
    ASSERT_EQ(c.size(), size_t(1) << bits);
    EXPECT_TRUE(std::is_sorted(c.begin(), c.end()));
    for (size_t i = c.size() / 2; i < c.size(); ++i) {
      const double a = i == c.size() / 2 ? 0 : (c[i - 1] + c[i]) / 2;
      const double b = i + 1 == c.size() ? 40 : (c[i] + c[i + 1]) / 2;
      const double norm = std::sqrt(2 / std::numbers::pi);
      const double mean = norm * (std::exp(-a * a / 2) - std::exp(-b * b / 2)) /
                          (std::erfc(a / std::numbers::sqrt2) - std::erfc(b / std::numbers::sqrt2));
      EXPECT_NEAR(c[i], mean, 1e-12) << bits << " " << i;
      EXPECT_EQ(c[i], -c[c.size() - 1 - i]);
    }
  }
}

TEST(Codebook, IntegerLevelsCostLittle) {
  // Increase over Lloyd-Max; 6 bits in one plane costs 2 % of the error and saves half of the time.
  constexpr double kCost[] = {1e-9, 1e-5, 1e-4, 1e-3, 0.009, 0.021, 1e-4, 2e-4};
  for (int bits = 1; bits <= 8; ++bits) {
    const Codebook& book = GaussianCodebook(bits);
    const double best = GaussianMse(LloydMax(bits));
    EXPECT_GE(book.mse, best * (1 - 1e-9)) << bits;
    EXPECT_LE(book.mse, best * (1 + kCost[bits - 1])) << bits;
    EXPECT_EQ(book.levels.planes, bits <= 6 ? 1 : 2);
    // The recorded error is that of the values as stored (floats: 1e-6 relative).
    const std::vector<double> values(book.value.begin(), book.value.begin() + (1 << bits));
    EXPECT_NEAR(GaussianMse(values) / book.mse, 1, 1e-6) << bits;
  }
}

TEST(Codebook, ValuesAreStepTimesLevelsAndThresholdsMidpoints) {
  for (int bits = 1; bits <= 8; ++bits) {
    const Codebook& book = GaussianCodebook(bits);
    const int n = 1 << bits;
    for (int i = 0; i < n; ++i) {
      EXPECT_EQ(book.value[size_t(i)], book.levels.step * float(book.levels.Value(i)));
      EXPECT_EQ(book.levels.Value(i), -book.levels.Value(n - 1 - i));
      EXPECT_GE(book.levels.level[0][size_t(i)], -127);
      if (i == 0) continue;
      EXPECT_LT(book.levels.Value(i - 1), book.levels.Value(i));
      EXPECT_EQ(book.threshold[size_t(i - 1)], 0.5f * (book.value[size_t(i - 1)] + book.value[size_t(i)]));
    }
    EXPECT_EQ(book.threshold[size_t(n / 2 - 1)], 0);
  }
}

// Spec kv-cache 0.3, measured there on Gaussian rows of 128 numbers; its digits allow 0.5 %.
TEST(Moments, ReproduceTheErrorTableAt128) {
  constexpr double kRaw[] = {0.3613, 0.1163, 0.0340, 0.00934, 0.00246};
  constexpr double kUnbiased[] = {0.5682, 0.1309, 0.0348, 0.00926, 0.00242};
  for (int bits = 1; bits <= 5; ++bits) {
    const RotatedMoments m = MomentsOnSphere(GaussianCodebook(bits), 128);
    EXPECT_NEAR(m.raw_mse / kRaw[bits - 1], 1, 0.01) << bits;
    EXPECT_NEAR(m.unbiased_mse / kUnbiased[bits - 1], 1, 0.01) << bits;
  }
}

TEST(Moments, TendToTheGaussianLimit) {
  for (int bits = 1; bits <= 6; ++bits) {
    const Codebook& book = GaussianCodebook(bits);
    const double d = book.mse, limit = d / (1 - d);
    const RotatedMoments near = MomentsOnSphere(book, 4096);
    EXPECT_NEAR(near.raw_mse / d, 1, 2e-3) << bits;
    // One integer step for all levels leaves a slope of E[z c] != E[c^2] below 1e-3.
    EXPECT_NEAR(near.unbiased_mse / limit, 1, 4e-3) << bits;
  }
}

TEST(Moments, PaddedHeadsAreSimulated) {
  for (const int64_t d : {8, 80, 112}) {
    const RelMse one = LloydMaxRelMse(4, d, 1), two = LloydMaxRelMse(4, d, 2);
    EXPECT_GT(one.unbiased, 0.001);
    EXPECT_LT(two.unbiased, 0.0093);
    EXPECT_EQ(LloydMaxRelMse(4, d, 2).unbiased, two.unbiased);
  }
  // 8 numbers in 32 codes: two rounds use the room, one repeats every number four times.
  EXPECT_GT(LloydMaxRelMse(4, 8, 1).unbiased, 2.5 * LloydMaxRelMse(4, 8, 2).unbiased);
}

}  // namespace
}  // namespace croquis::codecs
