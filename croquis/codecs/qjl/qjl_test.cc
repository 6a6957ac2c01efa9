// qjl: the projection, the estimator's mean and variance over draws of it, the bytes of a page.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/codecs/codec.h"
#include "croquis/codecs/qjl/projection.h"

namespace croquis::codecs {
namespace {

double Dot(const float* a, const float* b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += double(a[i]) * double(b[i]);
  return s;
}

Matrix<float> GaussianRows(int64_t rows, int64_t d, uint64_t seed) {
  Matrix<float> x(rows, d);
  const Stream s{seed, Purpose("qjl.test")};
  for (int64_t i = 0; i < rows * d; ++i) x.data()[i] = s.Gaussian(uint64_t(i));
  return x;
}

// Row j of S as a vector of head_dim numbers.
std::vector<float> RowOf(const Projection& p, int64_t j) {
  std::vector<float> row(static_cast<size_t>(p.head_dim));
  for (int64_t i = 0; i < p.head_dim; ++i) row[size_t(i)] = p.channels.Row(i)[j];
  return row;
}

std::vector<float> Scores(const Codec& codec, const std::byte* page, const Matrix<float>& q) {
  Buffer query(codec.QueryBytes(q.rows())), scratch(codec.ScratchBytes(q.rows()));
  std::vector<float> logits(size_t(q.rows() * kPageTokens));
  codec.Prepare(q.View(), 1, query.data());
  codec.Score(page, query.data(), q.rows(), {}, logits.data(), scratch.data());
  return logits;
}

TEST(Qjl, OrthogonalRunsAreOrthogonal) {
  const auto p = Projection::Get(48, 128, true, 3);  // runs of 48, 48 and 32
  for (int64_t a = 0; a < 128; ++a) {
    for (int64_t b = 0; b <= a; ++b) {
      const double dot = Dot(RowOf(*p, a).data(), RowOf(*p, b).data(), 48);
      if (a == b) {
        EXPECT_NEAR(dot, 48, 1e-4);
      } else if (a / 48 == b / 48) {
        EXPECT_NEAR(dot, 0, 1e-4);
      }
    }
  }
}

TEST(Qjl, ProjectionsAreSharedAndReproducible) {
  const auto a = Projection::Get(32, 64, true, 9);
  EXPECT_EQ(a, Projection::Get(32, 64, true, 9));
  EXPECT_NE(a, Projection::Get(32, 64, true, 10));
  EXPECT_NE(a->channels.Row(0)[0], Projection::Get(32, 64, true, 10)->channels.Row(0)[0]);
  // Gaussian entries: 64 * 256 of them have mean 0 and variance 1 within 4.5 standard errors.
  const auto g = Projection::Get(64, 256, false, 1);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < 64 * 256; ++i)
    sum += double(g->channels.data()[i]), squares += std::pow(double(g->channels.data()[i]), 2);
  EXPECT_NEAR(sum / 16384, 0, 4.5 / 128);
  EXPECT_NEAR(squares / 16384, 1, 4.5 * std::numbers::sqrt2 / 128);
}

TEST(Qjl, ConstantsOfTheSpecification) {
  // The orthogonal constant is sqrt(pi / 2) / m less a relative 1 / 4d.
  EXPECT_NEAR(SignScale(128, 256, true) / SignScale(128, 256, false), 1 - 1 / 512., 1e-5);
  EXPECT_NEAR(SignMse(128, 128, false, 128), std::numbers::pi / 2 - 1 / 128., 1e-12);
  EXPECT_NEAR(SignMse(128, 128, true, 128), std::numbers::pi / 2 - 1, 0.01);
  EXPECT_NEAR(TopEnergy(128, 128), 1, 1e-3);
  EXPECT_EQ(TopEnergy(128, 0), 0);
}

// Error of estimates over draws of S, of 32 x 4 keys and 4 queries each: mean 0, and d times the variance over
// |q|^2 |k|^2 is (pi / 2) d / m - 1 / m (Gaussian), of which orthogonal rows save 1 - 2 / pi at m = d. 40 draws of 512
// estimates; those of a draw depend on each other through S a little, so the tolerance is for 5,120 independent
// ones: their variance is known to sqrt(2 / 5120) = 2 %; 4 of them. The mean: 5 standard errors of 20,480 / 4.
void CheckEstimator(const std::string& method, int64_t d, double want) {
  double sum = 0, squares = 0;
  int64_t n = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const auto codec = Make(method, d, Role::kKey, seed);
    ASSERT_TRUE(codec);
    const Matrix<float> k = GaussianRows(kPageTokens, d, 100 + seed), q = GaussianRows(4, d, 500 + seed);
    Buffer page((*codec)->PageBytes());
    (*codec)->Encode(k.View(), 0, page.data());
    const std::vector<float> logits = Scores(**codec, page.data(), q);
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t t = 0; t < kPageTokens; ++t) {
        const double norms = std::sqrt(Dot(q.Row(r), q.Row(r), d) * Dot(k.Row(t), k.Row(t), d));
        const double e = (double(logits[size_t(r * kPageTokens + t)]) - Dot(q.Row(r), k.Row(t), d)) / norms;
        sum += e, squares += e * e, ++n;
      }
    }
  }
  const double variance = double(d) * squares / double(n);
  EXPECT_NEAR(variance, want, 0.08 * want) << method << " " << d;
  EXPECT_LT(std::abs(sum / double(n)), 5 * std::sqrt(squares / double(n) / (double(n) / 4))) << method;
}

TEST(Qjl, MeanAndVarianceOfTheEstimator) {
  CheckEstimator("qjl:outliers=0,proj=gauss,m=64", 64, 1.571);
  CheckEstimator("qjl:outliers=0,proj=gauss,m=128", 64, 1.571 / 2);
  CheckEstimator("qjl:outliers=0,proj=orth,m=64", 64, 0.571);
  CheckEstimator("qjl:outliers=0,proj=orth,m=128", 128, 0.571);
  CheckEstimator("qjl:outliers=0,proj=orth,m=128", 64, 0.571 / 2);
}

// One fixed key and query of every kind of angle and shape, 1,500 draws of S: |z| < 4.5.
TEST(Qjl, UnbiasedForEveryPair) {
  constexpr int64_t kDim = 16;
  constexpr int kDraws = 1500;
  Matrix<float> k(kPageTokens, kDim), q(2, kDim);
  const Matrix<float> noise = GaussianRows(kPageTokens, kDim, 77);
  for (int64_t t = 0; t < 32; ++t) {
    for (int64_t i = 0; i < kDim; ++i) k.Row(t)[i] = noise.Row(t)[i];
    if (t == 1) std::fill_n(k.Row(t), kDim, 0.7f);                  // constant
    if (t == 2) std::fill_n(k.Row(t), kDim, 0.f), k.Row(t)[3] = 2;  // one channel
    if (t == 3) std::copy_n(noise.Row(100), kDim, k.Row(t));        // along the first query
    k.Row(t)[11] *= 12;                                             // an outlier channel
  }
  std::copy_n(noise.Row(100), kDim, q.Row(0));
  for (int64_t i = 0; i < kDim; ++i) q.Row(1)[i] = i == 11 ? 1.f : noise.Row(101)[i];
  for (const char* method : {"qjl:m=64,m_outlier=64,outliers=2", "qjl:m=64,outliers=0,proj=gauss"}) {
    std::vector<double> sum(8), squares(8);
    for (int draw = 0; draw < kDraws; ++draw) {
      const auto codec = *Make(method, kDim, Role::kKey, uint64_t(draw));
      Buffer page(codec->PageBytes());
      codec->Encode(k.View().Rows(0, 32), 0, page.data());
      const std::vector<float> logits = Scores(*codec, page.data(), q);
      for (int64_t r = 0; r < 2; ++r) {
        for (int64_t t = 0; t < 4; ++t) {
          const double v = double(logits[size_t(r * kPageTokens + t)]);
          sum[size_t(r * 4 + t)] += v;
          squares[size_t(r * 4 + t)] += v * v;
        }
      }
    }
    for (int64_t r = 0; r < 2; ++r) {
      for (int64_t t = 0; t < 4; ++t) {
        const double mean = sum[size_t(r * 4 + t)] / kDraws, want = Dot(q.Row(r), k.Row(t), kDim);
        const double deviation = std::sqrt((squares[size_t(r * 4 + t)] / kDraws - mean * mean) / kDraws);
        // The norm is rounded to f16: a relative 2^-12 of what it multiplies.
        EXPECT_LT(std::abs(mean - want), 4.5 * deviation + 1e-3 * std::abs(want) + 1e-6)
            << method << " q" << r << " k" << t;
      }
    }
  }
}

// The page's layout by its description, with signs computed one by one.
TEST(Qjl, BytesOfAPage) {
  constexpr int64_t kDim = 64, kM = 128, kOut = 64, kOutliers = 3;
  Matrix<float> k = GaussianRows(kPageTokens, kDim, 5);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t c = 0; c < kOutliers; ++c) k.Row(t)[7 + 11 * c + t / 32] *= 20;  // other channels in each group
  }
  const auto codec = *Make("qjl:m=128,m_outlier=64,outliers=3", kDim, Role::kKey, 8);
  Buffer page(codec->PageBytes());
  codec->Encode(k.View(), 0, page.data());
  const auto s = Projection::Get(kDim, kM, true, 8);
  const f16* norms = reinterpret_cast<const f16*>(page.data());
  const uint8_t* lists = reinterpret_cast<const uint8_t*>(page.data()) + 512;
  const int64_t signs = (512 + 4 * kOutliers + 7) / 8 * 8, out_signs = signs + kPageTokens * kM / 8;
  const auto bit = [&](int64_t at, int64_t m, int64_t t, int64_t j) {
    const std::byte* block = page.data() + at + t / 16 * (16 * m / 8);
    const int64_t index = j / 4 * 64 + t % 16 * 4 + j % 4;
    return (std::to_integer<int>(block[index / 8]) >> (index % 8)) & 1;
  };
  for (int64_t t = 0; t < kPageTokens; ++t) {
    std::vector<float> in(k.Row(t), k.Row(t) + kDim), out(static_cast<size_t>(kDim));
    for (int64_t c = 0; c < kOutliers; ++c) {
      const int64_t channel = 7 + 11 * c + t / 32;
      EXPECT_EQ(lists[t / 32 * kOutliers + c], channel);
      std::swap(in[size_t(channel)], out[size_t(channel)]);
    }
    const double in_norm = std::sqrt(Dot(in.data(), in.data(), kDim)),
                 out_norm = std::sqrt(Dot(out.data(), out.data(), kDim));
    EXPECT_NEAR(F16ToFloat(norms[t]), in_norm, in_norm * 0x1p-11);
    EXPECT_NEAR(F16ToFloat(norms[kPageTokens + t]), out_norm, out_norm * 0x1p-11);
    for (int64_t j = 0; j < kM; ++j) {
      const double v = Dot(RowOf(*s, j).data(), in.data(), kDim), w = Dot(RowOf(*s, j).data(), out.data(), kDim);
      if (std::abs(v) > 1e-4) {
        EXPECT_EQ(bit(signs, kM, t, j), v > 0) << t << " " << j;
      }
      if (j < kOut && std::abs(w) > 1e-3) {
        EXPECT_EQ(bit(out_signs, kOut, t, j), w > 0) << t << " " << j;
      }
    }
  }
}

// Keys that live in outlier channels alone have nothing left for the first sketch.
TEST(Qjl, OnlyOutliers) {
  constexpr int64_t kDim = 64;
  Matrix<float> k(kPageTokens, kDim), decoded(kPageTokens, kDim);
  for (int64_t t = 0; t < kPageTokens; ++t) k.Row(t)[10] = 3, k.Row(t)[20] = -4;
  const auto codec = *Make("qjl:outliers=2", kDim, Role::kKey);
  Buffer page(codec->PageBytes());
  codec->Encode(k.View(), 0, page.data());
  codec->Decode(page.data(), 0, decoded.View());
  for (int64_t i = 0; i < kDim; ++i) {
    if (i != 10 && i != 20) {
      EXPECT_EQ(decoded.Row(5)[i], 0);
    }
  }
  EXPECT_NEAR(decoded.Row(5)[10], 3, 1);
  EXPECT_NEAR(decoded.Row(5)[20], -4, 1);
}

TEST(Qjl, StoredBitsAndRefusals) {
  // 256 + 256 signs, 2 norms, 8 channel numbers of a byte for 32 tokens: 546 bits a token, and padding to 64 bytes.
  EXPECT_NEAR((*Make("qjl", 128, Role::kKey))->BitsPerNumber(), 546 / 128., 0.03);
  EXPECT_EQ((*Make("qjl", 128, Role::kValue))->BitsPerNumber(), 3);
  EXPECT_EQ((*Make("qjl:m=256,outliers=0", 128, Role::kKey))->BitsPerNumber(), 2.125);
  EXPECT_FALSE(Make("qjl:m=100", 128, Role::kKey));
  EXPECT_FALSE(Make("qjl:m=128,m_outlier=256", 128, Role::kKey));
  const auto many = Make("qjl:outliers=16", 16, Role::kKey);
  ASSERT_FALSE(many);
  EXPECT_NE(many.error().message.find("head_dim=16"), std::string::npos);
}

}  // namespace
}  // namespace croquis::codecs
