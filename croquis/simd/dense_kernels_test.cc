// Every reachable target against sums in double, at odd sizes, with guarded buffers.
#include "croquis/simd/dense_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/rng.h"

namespace croquis::simd {
namespace {

constexpr int64_t kDims[] = {8, 13, 20, 64, 80, 96, 112, 128, 192, 256};
constexpr int64_t kTokens[] = {0, 1, 15, 16, 17, 127, 128};
constexpr int64_t kRowCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 64};
constexpr RowType kTypes[] = {RowType::kF32, RowType::kF16, RowType::kBf16};
constexpr float kGuard = 12345.f;

// Keeps the tests to a second: every pair of a dim, a number of tokens and a number of rows meets in f16, and each of
// these with every type; many tokens and many rows together only at some dims.
bool Skip(RowType type, int64_t dim, int64_t tokens, int64_t rows) {
  if (rows > 4 && tokens > 17 && dim != 20 && dim != 80 && dim != 192) return true;
  return type != RowType::kF16 && (dim + tokens + rows) % 3 != 0;
}

// Sums of n products in f32 differ from the exact one by at most about n * 2^-24 * sum |products|; every loop here
// sums in shorter chains than n, so 32 units cover n = 256 with partial sums (256/8 lanes) of any target.
constexpr double kRounding = 32 * 0x1p-24;

// Rows as they lie in memory, `stride` bytes apart, and their exact values. The block ends with the last row, so that
// a sanitizer sees a read past it.
struct Rows {
  std::vector<std::byte> bytes;
  std::vector<double> value;
  int64_t dim, stride;

  Rows(RowType type, int64_t rows, int64_t d, int64_t gap, uint64_t seed)
      : dim(d), stride(d * RowTypeBytes(type) + gap) {
    bytes.resize(rows ? size_t((rows - 1) * stride + d * RowTypeBytes(type)) : 0);
    value.resize(size_t(rows * d));
    const Stream random{seed, Purpose("dense.rows")};
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = 0; i < d; ++i) {
        const float x = random.Gaussian(uint64_t(t * d + i));
        std::byte* at = bytes.data() + t * stride + i * RowTypeBytes(type);
        const uint16_t h = type == RowType::kF16 ? FloatToF16(x) : FloatToBf16(x);
        const float stored = type == RowType::kF32 ? x : type == RowType::kF16 ? F16ToFloat(h) : Bf16ToFloat(h);
        std::memcpy(at, type == RowType::kF32 ? static_cast<const void*>(&x) : &h, size_t(RowTypeBytes(type)));
        value[size_t(t * d + i)] = stored;
      }
  }
};

std::vector<float> Gaussians(int64_t n, uint64_t seed) {
  const Stream random{seed, Purpose("dense.numbers")};
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = random.Gaussian(i);
  return x;
}

class DenseTest : public testing::TestWithParam<Target> {
 protected:
  const DenseKernels& kernels_ = Dense(GetParam());
};

TEST(DenseTargets, EachHasTheHighestFormAtOrBelowIt) {
  for (const Target target : Reachable()) {
    const Target form = target == Target::kAvxVnni ? Target::kAvx2 : target == Target::kAmx ? Target::kAvx512 : target;
    EXPECT_EQ(Dense(target).target, form);
    EXPECT_EQ(Dense(target).name, Name(form));
  }
  EXPECT_EQ(&Dense(), &Dense(Active()));
}

TEST_P(DenseTest, ScoresRows) {
  for (const RowType type : kTypes)
    for (const int64_t dim : kDims)
      for (const int64_t tokens : kTokens)
        for (const int64_t rows : kRowCounts) {
          if (Skip(type, dim, tokens, rows)) continue;
          const Rows k(type, tokens, dim, dim % 3 == 0 ? 24 : 0, 1);
          const int64_t q_stride = dim + 3, stride = tokens + 5;
          const std::vector<float> q = Gaussians(rows * q_stride, 2);
          std::vector<float> logits(size_t(rows * stride), kGuard);
          kernels_.score_rows(type, {q.data(), rows, dim, q_stride}, k.bytes.data(), k.stride, tokens, logits.data(),
                              stride);
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t t = 0; t < stride; ++t) {
              const float got = logits[size_t(r * stride + t)];
              if (t >= tokens) {
                ASSERT_EQ(got, kGuard) << "wrote past token " << tokens;
                continue;
              }
              double want = 0, size = 0;
              for (int64_t i = 0; i < dim; ++i) {
                const double x = double(q[size_t(r * q_stride + i)]) * k.value[size_t(t * dim + i)];
                want += x;
                size += std::fabs(x);
              }
              ASSERT_NEAR(got, want, kRounding * size) << "type " << int(type) << " dim " << dim << " tokens " << tokens
                                                       << " rows " << rows << " at " << r << "," << t;
            }
        }
}

TEST_P(DenseTest, AccumulatesRows) {
  for (const RowType type : kTypes)
    for (const int64_t dim : kDims)
      for (const int64_t tokens : kTokens)
        for (const int64_t rows : kRowCounts) {
          if (Skip(type, dim, tokens, rows)) continue;
          const Rows v(type, tokens, dim, dim % 3 == 0 ? 24 : 0, 3);
          const int64_t stride = dim + 5, p_stride = tokens + 2;
          const std::vector<float> p = Gaussians(rows * p_stride, 4), scale = Gaussians(rows, 5);
          const std::vector<float> before = Gaussians(rows * stride, 6);
          std::vector<float> acc = before;
          kernels_.accumulate_rows(type, p.data(), p_stride, scale.data(), rows, v.bytes.data(), v.stride, tokens,
                                   {acc.data(), rows, dim, stride});
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < stride; ++i) {
              const size_t at = size_t(r * stride + i);
              if (i >= dim) {
                ASSERT_EQ(acc[at], before[at]) << "wrote past dim " << dim;
                continue;
              }
              double sum = 0, size = std::fabs(before[at]);
              for (int64_t t = 0; t < tokens; ++t) {
                const double x = double(p[size_t(r * p_stride + t)]) * scale[size_t(r)] * v.value[size_t(t * dim + i)];
                sum += x;
                size += std::fabs(x);
              }
              ASSERT_NEAR(acc[at], before[at] + sum, kRounding * size)
                  << "type " << int(type) << " dim " << dim << " tokens " << tokens << " rows " << rows << " at " << r
                  << "," << i;
            }
        }
}

// What decode relies on: a logit is the same whatever block of tokens and rows (up to 8) it is computed in.
TEST_P(DenseTest, LogitsDoNotDependOnTheBlock) {
  const int64_t dim = 80, tokens = 37, rows = 8;
  const Rows k(RowType::kF16, tokens, dim, 0, 7);
  const std::vector<float> q = Gaussians(rows * dim, 8);
  std::vector<float> all(size_t(rows * tokens));
  kernels_.score_rows(RowType::kF16, {q.data(), rows, dim}, k.bytes.data(), k.stride, tokens, all.data(), tokens);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t t = 0; t < tokens; ++t) {
      float one = 0;
      kernels_.score_rows(RowType::kF16, {q.data() + r * dim, 1, dim}, k.bytes.data() + t * k.stride, k.stride, 1, &one,
                          1);
      ASSERT_EQ(one, all[size_t(r * tokens + t)]);
    }
}

TEST_P(DenseTest, SoftmaxOfTiles) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 9})
    for (const int64_t n : {0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 300}) {
      const int64_t stride = n + 8;
      std::vector<float> x = Gaussians(rows * stride, 9);
      for (size_t i = 0; i < x.size(); ++i) x[i] = int64_t(i) % stride < n ? x[i] * 30 - 50 : kGuard;
      for (size_t i = 3; i < x.size(); i += 5) x[i] = int64_t(i) % stride < n ? kMasked : kGuard;
      std::vector<float> out = x, max(size_t(rows) + 1, kGuard), sum(size_t(rows) + 1, kGuard);
      kernels_.softmax_tiles(out.data(), stride, rows, n, max.data(), sum.data());
      EXPECT_EQ(max.back(), kGuard);
      EXPECT_EQ(sum.back(), kGuard);
      for (int64_t r = 0; r < rows; ++r) {
        const float *in = x.data() + r * stride, *p = out.data() + r * stride;
        double top = kMasked, want_sum = 0;
        for (int64_t t = 0; t < n; ++t) top = std::max(top, double(in[t]));
        ASSERT_EQ(max[size_t(r)], float(top));
        for (int64_t t = 0; t < n; ++t) {
          const double want = top == kMasked ? 0 : std::exp2(double(in[t]) - top);
          // Below 2^-126 zero stands for a number that no sum with a 1 in it can hold.
          ASSERT_NEAR(p[t], want, want < 0x1p-126 ? 0x1p-126 : 3e-6 * want) << rows << " rows, n " << n << " at " << t;
          if (in[t] == kMasked) {
            ASSERT_EQ(p[t], 0.f);
          }
          want_sum += want;
        }
        ASSERT_NEAR(sum[size_t(r)], want_sum, 4e-6 * want_sum);
        for (int64_t t = n; t < stride; ++t) ASSERT_EQ(p[t], kGuard);
      }
    }
}

TEST_P(DenseTest, PowersAgainstAGivenMaximum) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 9})
    for (const int64_t n : {0, 1, 7, 16, 17, 33, 65, 127, 128, 300}) {
      const int64_t stride = n + 8;
      std::vector<float> x = Gaussians(rows * stride, 14), at = Gaussians(rows, 15);
      for (size_t i = 0; i < x.size(); ++i) x[i] = int64_t(i) % stride < n ? x[i] * 30 : kGuard;
      std::vector<float> out = x, sum(size_t(rows) + 1, kGuard);
      kernels_.exp2_tiles(out.data(), stride, rows, n, at.data(), sum.data());
      EXPECT_EQ(sum.back(), kGuard);
      for (int64_t r = 0; r < rows; ++r) {
        const float *in = x.data() + r * stride, *p = out.data() + r * stride;
        double want_sum = 0;
        for (int64_t t = 0; t < n; ++t) {
          const double want = std::exp2(std::max(double(in[t]) - double(at[size_t(r)]), -126.));
          ASSERT_NEAR(p[t], want, 6e-6 * want) << rows << " rows, n " << n << " at " << t;
          want_sum += want;
        }
        ASSERT_NEAR(sum[size_t(r)], want_sum, 7e-6 * want_sum + 0x1p-120);
        for (int64_t t = n; t < stride; ++t) ASSERT_EQ(p[t], kGuard);
      }
    }
  // Far outside.
  std::vector<float> x = {-1e30f, -127, 127, 1e30f};
  const float at = 0;
  float sum = 0;
  kernels_.exp2_tiles(x.data(), 0, 1, 4, &at, &sum);
  EXPECT_EQ(x[0], 0x1p-126f);
  EXPECT_EQ(x[1], 0x1p-126f);
  EXPECT_GE(x[2], 0x1p126f);
  EXPECT_GE(x[3], 0x1p126f);
  EXPECT_GE(sum, 0x1p126f);
}

TEST_P(DenseTest, SoftmaxErrorOverTheWholeRange) {
  // 2^-d for d in [0, 126], in steps of 1/1000 that meet every fraction.
  std::vector<float> x(126 * 1000 + 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = -float(i) / 1000;
  std::vector<float> p = x;
  float max = 1, sum = 0;
  kernels_.softmax_tiles(p.data(), 0, 1, int64_t(p.size()), &max, &sum);
  EXPECT_EQ(max, 0.f);
  EXPECT_EQ(p[0], 1.f);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::fabs(p[i] / std::exp2(double(x[i])) - 1));
  EXPECT_LE(worst, 3e-6);
}

TEST_P(DenseTest, SoftmaxOfMaskedTiles) {
  for (const int64_t n : {0, 1, 16, 21, 128}) {
    // The second row has one that is not masked: it must not be drawn along.
    std::vector<float> x(size_t(2 * n), kMasked);
    if (n > 1) x[1] = 2 * kMasked, x[size_t(n) + 1] = -5;
    float max[2] = {}, sum[2] = {1, 1};
    kernels_.softmax_tiles(x.data(), n, 2, n, max, sum);
    EXPECT_EQ(sum[0], 0.f);
    EXPECT_EQ(max[0], kMasked);
    EXPECT_EQ(sum[1], n > 1 ? 1.f : 0.f);
    EXPECT_EQ(max[1], n > 1 ? -5 : kMasked);
    for (int64_t t = 0; t < 2 * n; ++t) EXPECT_EQ(x[size_t(t)], t == n + 1 && n > 1 ? 1.f : 0.f);
  }
}

// Against Re sum_s (re + i im) e^{i w (t - 31.5)} in double.
TEST_P(DenseTest, SumsOfWaves) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 8, 11})
    for (const int64_t n : {0, 1, 3, 16, 64}) {
      const std::vector<float> z = Gaussians(rows * 2 * n, 16), still = Gaussians(rows, 17);
      std::vector<float> waves(size_t(n * 64)), x = Gaussians(rows * 64 + 1, 18);
      const auto frequency = [](int64_t s) { return std::pow(0.8, double(s)); };
      for (int64_t s = 0; s < n; ++s)
        for (int64_t b = 0; b < 32; ++b) {
          waves[size_t(s * 64 + b)] = float(std::cos(frequency(s) * (double(b) + 0.5)));
          waves[size_t(s * 64 + 32 + b)] = float(std::sin(frequency(s) * (double(b) + 0.5)));
        }
      const std::vector<float> before = x;
      kernels_.add_waves(z.data(), still.data(), rows, waves.data(), n, x.data());
      EXPECT_EQ(x.back(), before.back());
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t t = 0; t < 64; ++t) {
          double want = double(before[size_t(r * 64 + t)]) + double(still[size_t(r)]), size = 1;
          for (int64_t s = 0; s < n; ++s) {
            const double angle = frequency(s) * (double(t) - 31.5);
            const double re = double(z[size_t(r * 2 * n + s)]), im = double(z[size_t(r * 2 * n + n + s)]);
            want += re * std::cos(angle) - im * std::sin(angle);
            size += std::fabs(re) + std::fabs(im);
          }
          ASSERT_NEAR(x[size_t(r * 64 + t)], want, 1e-6 * size) << rows << " rows, " << n << " waves at " << t;
        }
    }
}

TEST_P(DenseTest, ScalesAndAdds) {
  for (const int64_t n : {0, 1, 7, 8, 9, 16, 33, 128}) {
    const std::vector<float> x = Gaussians(n, 10);
    std::vector<float> y = Gaussians(n + 1, 11), z = y;
    kernels_.add(x.data(), n, y.data());
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(y[size_t(i)], z[size_t(i)] + x[size_t(i)]);
    ASSERT_EQ(y.back(), z.back());
    y = z;
    kernels_.scale(y.data(), n, 1.25f);
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(y[size_t(i)], z[size_t(i)] * 1.25f);
    ASSERT_EQ(y.back(), z.back());
  }
}

TEST_P(DenseTest, FindsNumbersThatAreTooLarge) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(kernels_.all_below(nullptr, 0, 1.f));
  for (const int64_t n : {1, 7, 8, 9, 15, 16, 17, 40}) {
    std::vector<float> x(size_t(n), -2.f);
    EXPECT_TRUE(kernels_.all_below(x.data(), n, 2.f));
    EXPECT_FALSE(kernels_.all_below(x.data(), n, 1.99f));
    for (int64_t i = 0; i < n; ++i)
      for (const float bad : {2.5f, -2.5f, kInf, -kInf, kNan, -kNan}) {
        x[size_t(i)] = bad;
        EXPECT_FALSE(kernels_.all_below(x.data(), n, 2.f)) << bad << " at " << i << " of " << n;
        if (!std::isfinite(bad)) {
          EXPECT_FALSE(kernels_.all_below(x.data(), n, kInf));
        }
        x[size_t(i)] = 2.f;
      }
  }
}

TEST_P(DenseTest, SmallProducts) {
  // One chain of k = 512 sums: their rounding is random, of order sqrt(k) units; 64 is over twice that.
  const double unit = 64 * 0x1p-24;
  for (const int64_t m : {0, 1, 5, 6, 7, 13, 16, 40})
    for (const int64_t n : {1, 8, 15, 16, 40, 64, 100, 128})
      for (const int64_t k : {0, 1, 31, 32, 33, 128, 512}) {
        const int64_t lda = k + 1, ldb = n + 2, ldc = n + 3;
        const std::vector<float> a = Gaussians(m * lda, 12), b = Gaussians(k * ldb, 13);
        const std::vector<float> before = Gaussians(m * ldc, 14);
        std::vector<float> c = before;
        kernels_.small_gemm(a.data(), lda, b.data(), ldb, c.data(), ldc, m, n, k);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < ldc; ++j) {
            const size_t at = size_t(i * ldc + j);
            double want = before[at], size = std::fabs(want);
            for (int64_t l = 0; l < (j < n ? k : 0); ++l) {
              const double x = double(a[size_t(i * lda + l)]) * b[size_t(l * ldb + j)];
              want += x;
              size += std::fabs(x);
            }
            ASSERT_NEAR(c[at], want, unit * size) << m << "x" << n << "x" << k << " at " << i << "," << j;
          }
      }
}

std::string TargetName(const testing::TestParamInfo<Target>& info) { return std::string(Name(info.param)); }

// The reachable targets that have a form of their own.
std::vector<Target> Forms() {
  std::vector<Target> forms;
  for (const Target target : Reachable())
    if (Dense(target).target == target) forms.push_back(target);
  return forms;
}
INSTANTIATE_TEST_SUITE_P(Targets, DenseTest, testing::ValuesIn(Forms()), TargetName);

}  // namespace
}  // namespace croquis::simd
