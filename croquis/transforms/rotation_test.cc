#include "croquis/transforms/rotation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "croquis/simd/target.h"

namespace croquis::transforms {
namespace {

constexpr int64_t kDims[] = {1, 8, 31, 32, 33, 64, 80, 96, 100, 112, 128, 160, 192, 224, 256, 352, 512};

std::vector<float> GaussianRow(int64_t n, uint64_t seed) {
  const Stream s{seed, Purpose("rotation_test")};
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = s.Gaussian(i);
  return x;
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += double(a[i]) * double(b[i]);
  return s;
}

std::vector<float> Rotated(const Rotation& r, const std::vector<float>& x) {
  std::vector<float> y(static_cast<size_t>(r.PaddedDim()));
  r.Apply(x.data(), y.data());
  return y;
}

TEST(Rotation, PadsToTheNextMultipleOf32) {
  EXPECT_EQ(Rotation::Padded(80), 96);
  EXPECT_EQ(Rotation::Padded(112), 128);
  EXPECT_EQ(Rotation::Padded(192), 192);
  EXPECT_EQ(Rotation::Padded(8), 32);
}

TEST(Rotation, KeepsInnerProductsAndInverts) {
  for (const int64_t d : kDims)
    for (const int rounds : {1, 2}) {
      const auto r = Rotation::Make(d, rounds, 7);
      ASSERT_TRUE(r);
      const auto x = GaussianRow(d, 1), z = GaussianRow(d, 2);
      const auto y = Rotated(*r, x), w = Rotated(*r, z);
      // Orthonormal to 1e-6: float butterflies lose about log2(512) * 6e-8 of the norm.
      EXPECT_NEAR(Dot(y, y) / Dot(x, x), 1, 1e-6) << d << " " << rounds;
      EXPECT_NEAR(Dot(y, w), Dot(x, z), 1e-6 * std::sqrt(Dot(x, x) * Dot(z, z))) << d << " " << rounds;
      std::vector<float> back(x.size());
      r->Inverse(y.data(), back.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i], x[i], 5e-6) << d << " " << i;
    }
}

TEST(Rotation, EveryCoordinateReachesTheWholeHead) {
  for (const int64_t d : kDims)
    for (const int rounds : {1, 2}) {
      const auto r = Rotation::Make(d, rounds, 3);
      const double flat = 1 / std::sqrt(double(r->PaddedDim()));
      for (const int64_t i : {int64_t(0), d / 2, d - 1}) {
        std::vector<float> unit(static_cast<size_t>(d));
        unit[size_t(i)] = 1;
        double top = 0, least = 1;
        for (float v : Rotated(*r, unit))
          top = std::max(top, double(std::fabs(v))), least = std::min(least, double(std::fabs(v)));
        if (rounds == 1) {
          EXPECT_LE(top, flat * std::sqrt(2.0) + 1e-6) << d;  // |cas| <= sqrt(2)
          EXPECT_GT(least, 0) << d;
        } else {
          EXPECT_LE(top, flat * 6) << d;  // sums of random signs
        }
      }
    }
}

TEST(Rotation, OneRoundAt128IsTheSignedHadamardMatrix) {
  const auto r = Rotation::Make(128, 1, 11);
  const Stream signs{11, Purpose("rotation.signs")};
  for (const int64_t i : {0, 1, 77, 127}) {
    std::vector<float> unit(128);
    unit[size_t(i)] = 1;
    const auto y = Rotated(*r, unit);
    for (int64_t j = 0; j < 128; ++j) {
      const float h = __builtin_popcountll(uint64_t(i & j)) % 2 ? -1.f : 1.f;
      EXPECT_NEAR(y[size_t(j)], signs.Sign(uint64_t(i)) * h / std::sqrt(128.0), 1e-7) << i << " " << j;
    }
  }
}

TEST(Rotation, SeedsAndRoundsDiffer) {
  const auto x = GaussianRow(128, 1);
  const auto a = Rotated(*Rotation::Make(128, 1, 1), x), b = Rotated(*Rotation::Make(128, 1, 2), x),
             c = Rotated(*Rotation::Make(128, 2, 1), x);
  // Cosine of independent directions in R^128: standard deviation .088.
  EXPECT_LT(std::fabs(Dot(a, b)), 0.45 * Dot(x, x));
  EXPECT_LT(std::fabs(Dot(a, c)), 0.45 * Dot(x, x));
}

TEST(Rotation, SameBitsOnEveryTarget) {
  for (const int64_t d : kDims)
    for (const int rounds : {1, 2}) {
      const auto r = Rotation::Make(d, rounds, 5);
      const auto x = GaussianRow(d, 9);
      std::vector<float> first, first_back;
      for (const simd::Target t : simd::Reachable()) {
        ASSERT_TRUE(simd::Force(simd::Name(t)));
        const auto y = Rotated(*r, x);
        std::vector<float> back(x.size());
        r->Inverse(y.data(), back.data());
        if (first.empty()) first = y, first_back = back;
        EXPECT_EQ(std::memcmp(first.data(), y.data(), y.size() * sizeof(float)), 0) << d << " " << simd::Name(t);
        EXPECT_EQ(std::memcmp(first_back.data(), back.data(), back.size() * sizeof(float)), 0) << d;
      }
      ASSERT_TRUE(simd::Force(""));
    }
}

TEST(Rotation, RowsAreTheSameAsOneByOne) {
  const auto r = Rotation::Make(80, 2, 5);
  Matrix<float> x(3, 80), y(3, 96), back(3, 80);
  for (int64_t i = 0; i < 3; ++i) {
    const auto row = GaussianRow(80, uint64_t(i));
    std::copy(row.begin(), row.end(), x.Row(i));
  }
  r->Apply(x.View(), y.View());
  r->Inverse(y.View(), back.View());
  for (int64_t i = 0; i < 3; ++i) {
    const auto one = Rotated(*r, GaussianRow(80, uint64_t(i)));
    EXPECT_EQ(std::memcmp(one.data(), y.Row(i), 96 * sizeof(float)), 0);
    for (int64_t k = 0; k < 80; ++k) EXPECT_NEAR(back.Row(i)[k], x.Row(i)[k], 5e-6);
  }
}

TEST(Rotation, RefusesWhatItCannotDo) {
  EXPECT_FALSE(Rotation::Make(0, 1, 1));
  EXPECT_FALSE(Rotation::Make(513, 1, 1));
  EXPECT_FALSE(Rotation::Make(-4, 1, 1));
  const auto r = Rotation::Make(64, 3, 1);
  ASSERT_FALSE(r);
  EXPECT_NE(r.error().message.find("1 or 2"), std::string::npos);
}

}  // namespace
}  // namespace croquis::transforms
