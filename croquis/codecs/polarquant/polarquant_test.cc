// polarquant: the angles' densities, their codebooks, what they do to Gaussian rows, the fitted codebooks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/codecs/codec.h"
#include "croquis/codecs/polarquant/angles.h"

namespace croquis::codecs {
namespace {

constexpr double kQuarter = std::numbers::pi / 2;

template <class F>
double Integral(double a, double b, const F& f) {  // midpoints; good to 1e-7 for what is integrated here
  constexpr int kSteps = 4000;
  double sum = 0;
  for (int i = 0; i < kSteps; ++i) sum += f(a + (b - a) * (i + 0.5) / kSteps);
  return sum * (b - a) / kSteps;
}

TEST(PolarAngles, DensityIsThatOfThePaper) {
  for (int level = 2; level <= kPolarLevels; ++level) {
    const double n = std::exp2(level - 1);
    const double norm = std::tgamma(n) / (std::exp2(n - 2) * std::pow(std::tgamma(n / 2), 2));
    for (const double psi : {0.1, 0.5, 0.8, 1.3}) {
      EXPECT_NEAR(AngleDensity(level, psi), norm * std::pow(std::sin(2 * psi), n - 1), 1e-12) << level;
      EXPECT_NEAR(AngleDistribution(level, psi), Integral(0, psi, [&](double x) { return AngleDensity(level, x); }),
                  1e-6);
    }
    EXPECT_NEAR(AngleDistribution(level, kQuarter), 1, 1e-12);
  }
}

// Kolmogorov-Smirnov on n = 131,072 angles of Gaussian numbers a level: sqrt(n) D exceeds 2.5 seven times in 10^6.
TEST(PolarAngles, GaussianAnglesFollowTheDensity) {
  constexpr int kAngles = 131072;
  const Stream s{31, Purpose("polar.ks")};
  for (int level = 1; level <= kPolarLevels; ++level) {
    const int numbers = 1 << level;
    std::vector<double> u;
    for (int a = 0; a < kAngles; ++a) {
      double half[2] = {};  // squared radii of the two halves; at level 1 the coordinates
      for (int i = 0; i < numbers; ++i) {
        const double x = double(s.Sub(uint64_t(level)).Gaussian(uint64_t(a * numbers + i)));
        half[i >= numbers / 2] = level == 1 ? x : half[i >= numbers / 2] + x * x;
      }
      if (level == 1) {
        u.push_back(std::atan2(half[1], half[0]) / (4 * kQuarter) + 0.5);
      } else {
        u.push_back(AngleDistribution(level, std::atan2(std::sqrt(half[1]), std::sqrt(half[0]))));
      }
    }
    std::sort(u.begin(), u.end());
    double distance = 0;
    for (int i = 0; i < kAngles; ++i) {
      distance = std::max(
          {distance, std::abs(u[size_t(i)] - double(i) / kAngles), std::abs(u[size_t(i)] - double(i + 1) / kAngles)});
    }
    EXPECT_LT(distance * std::sqrt(double(kAngles)), 2.5) << "level " << level;
  }
}

// Each centroid is the mean of its cell; the codebook is symmetric about pi / 4.
TEST(PolarAngles, CodebooksAreLloydMax) {
  for (int level = 2; level <= kPolarLevels; ++level) {
    for (int bits = 2; bits <= 4; ++bits) {
      const AngleBook& book = AnalyticBook(level, bits);
      const int n = 1 << bits;
      double begin = 0;
      for (int i = 0; i < n; ++i) {
        const double c = double(book.angle[size_t(i)]);
        const double end = i + 1 < n ? (c + double(book.angle[size_t(i) + 1])) / 2 : kQuarter;
        const double mass = Integral(begin, end, [&](double x) { return AngleDensity(level, x); });
        const double mean = Integral(begin, end, [&](double x) { return x * AngleDensity(level, x); }) / mass;
        EXPECT_NEAR(c, mean, 2e-6) << level << " " << bits << " " << i;
        EXPECT_NEAR(c + double(book.angle[size_t(n - 1 - i)]), kQuarter, 1e-6);
        EXPECT_NEAR(std::hypot(double(book.cos[size_t(i)]), double(book.sin[size_t(i)])), 1, 1e-6);
        begin = end;
      }
    }
  }
  // Pinned: two bits at levels 2 to 4, computed apart from this code.
  EXPECT_NEAR(AnalyticBook(2, 2).angle[0], 0.309756, 2e-6);
  EXPECT_NEAR(AnalyticBook(3, 2).angle[0], 0.426250, 2e-6);
  EXPECT_NEAR(AnalyticBook(4, 2).angle[0], 0.524214, 2e-6);
}

TEST(PolarAngles, CodesAreTheNearestCentroids) {
  const Stream s{32, Purpose("polar.codes")};
  for (int bits = 2; bits <= 5; ++bits) {
    const AngleBook circle = AngleBook::Uniform(bits);
    const AngleBook& quadrant = AnalyticBook(3, bits);
    for (uint64_t i = 0; i < 4000; ++i) {
      const float x = s.Gaussian(2 * i), y = s.Gaussian(2 * i + 1);
      const double turn = std::atan2(double(y), double(x)) / (4 * kQuarter) * (1 << bits);
      if (std::abs(turn - std::round(turn)) > 1e-4) {
        EXPECT_EQ(circle.CircleCode(x, y), int(std::floor(turn + (1 << bits))) % (1 << bits)) << x << " " << y;
      }
      const float u = std::abs(x), v = std::abs(y), psi = std::atan2(v, u);
      const int code = quadrant.QuadrantCode(u, v);
      for (int c = 0; c < 1 << bits; ++c) {
        EXPECT_LE(std::abs(psi - quadrant.angle[size_t(code)]), std::abs(psi - quadrant.angle[size_t(c)]) + 1e-5f);
      }
    }
    for (const float x : {-1.f, 0.f, 1.f}) {
      for (const float y : {-1.f, 0.f, 1.f}) {
        const int code = circle.CircleCode(x, y);
        EXPECT_GE(code, 0);
        EXPECT_LT(code, 1 << bits);
      }
    }
  }
}

// Relative error of Gaussian rows, 2 - 2 E cos .. E cos over the levels: the specification's figures.
TEST(PolarAngles, LossOfTheLevels) {
  const auto loss = [](std::array<int, 4> bits) {
    double slope = 1;
    for (int l = 1; l <= kPolarLevels; ++l) slope *= MeanCosine(l, AnalyticBook(l, bits[size_t(l) - 1]));
    return 2 - 2 * slope;
  };
  EXPECT_NEAR(loss({4, 2, 2, 2}), 0.0321, 1e-4);
  EXPECT_NEAR(loss({3, 2, 2, 2}), 0.0699, 1e-4);
  EXPECT_NEAR(loss({5, 3, 3, 3}), 0.0085, 1e-4);
  EXPECT_LT(loss({5, 5, 5, 5}), loss({5, 4, 4, 4}));
}

TEST(PolarAngles, FittingFindsClusters) {
  const Stream s{33, Purpose("polar.fit")};
  std::vector<float> angles;
  const float centres[4] = {0.1f, 0.2f, 1.2f, 1.5f};
  for (uint64_t i = 0; i < 1000; ++i) angles.push_back(centres[s.U32(i) % 4] + 0.01f * s.Sub(1).Gaussian(i));
  std::vector<float> fitted = {0.3f, 0.6f, 0.9f, 1.3f};
  FitAngles(angles, fitted);
  EXPECT_TRUE(std::is_sorted(fitted.begin(), fitted.end()));
  for (int c = 0; c < 4; ++c) EXPECT_NEAR(fitted[size_t(c)], centres[c], 0.01f);
  std::vector<float> none, kept = {0.3f, 0.6f};
  FitAngles(none, kept);
  EXPECT_EQ(kept, (std::vector<float>{0.3f, 0.6f}));
}

double RelMse(const char* method, int64_t d, const Matrix<float>& x) {
  const auto codec = *Make(method, d, Role::kKey, 6);
  Buffer page(codec->PageBytes());
  Matrix<float> y(kPageTokens, d);
  codec->Encode(x.View(), 0, page.data());
  codec->Decode(page.data(), 0, y.View());
  double error = 0, power = 0;
  for (int64_t i = 0; i < kPageTokens * d; ++i) {
    error += std::pow(double(x.data()[i] - y.data()[i]), 2);
    power += std::pow(double(x.data()[i]), 2);
  }
  return error / power;
}

// Keys with a strong common part have the same few angles over and over: fitting must gain there.
TEST(PolarQuant, FittedCodebooksGainOnClusteredRows) {
  constexpr int64_t kDim = 128;
  Matrix<float> x(kPageTokens, kDim);
  const Stream s{34, Purpose("polar.bias")};
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t i = 0; i < kDim; ++i) {
      x.Row(t)[i] = 6 * s.Gaussian(uint64_t(i)) + s.Sub(1).Gaussian(uint64_t(t * kDim + i));
    }
  }
  EXPECT_LT(RelMse("polarquant:codebook=online", kDim, x), 0.97 * RelMse("polarquant", kDim, x));
}

// What is decoded has the radius that was stored: the norm of a row is kept to f16's rounding.
TEST(PolarQuant, NormsAreKept) {
  constexpr int64_t kDim = 128;
  Matrix<float> x(kPageTokens, kDim), y(kPageTokens, kDim);
  const Stream s{35, Purpose("polar.norm")};
  for (int64_t i = 0; i < kPageTokens * kDim; ++i) x.data()[i] = s.Gaussian(uint64_t(i)) * float(1 + i % 3);
  for (const char* method : {"polarquant", "polarquant:levels=5333,codebook=online"}) {
    const auto codec = *Make(method, kDim, Role::kValue, 2);
    Buffer page(codec->PageBytes());
    codec->Encode(x.View(), 0, page.data());
    codec->Decode(page.data(), 0, y.View());
    for (int64_t t = 0; t < kPageTokens; ++t) {
      double a = 0, b = 0;
      for (int64_t i = 0; i < kDim; ++i) a += std::pow(double(x.Row(t)[i]), 2), b += std::pow(double(y.Row(t)[i]), 2);
      EXPECT_NEAR(std::sqrt(b / a), 1, 0x1p-11);
    }
  }
}

TEST(PolarQuant, StoredBitsAndRefusals) {
  EXPECT_EQ((*Make("polarquant", 128, Role::kKey))->BitsPerNumber(), 3.875);
  EXPECT_EQ((*Make("polarquant:levels=3222", 128, Role::kKey))->BitsPerNumber(), 3.375);
  EXPECT_EQ((*Make("polarquant:levels=5333", 128, Role::kKey))->BitsPerNumber(), 4.8125);
  const auto codec = Make("polarquant", 72, Role::kKey);
  ASSERT_FALSE(codec);
  EXPECT_NE(codec.error().message.find("multiple of 16; got 72"), std::string::npos);
}

}  // namespace
}  // namespace croquis::codecs
