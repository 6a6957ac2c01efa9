#include "croquis/linalg/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "croquis/base/dtype.h"
#include "croquis/base/rng.h"

namespace {
std::atomic<int64_t> g_live{0};  // blocks allocated and not yet freed
}
// noinline: GCC otherwise sees through to malloc and free and calls them mismatched.
[[gnu::noinline]] void* operator new(size_t n) {
  ++g_live;
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  g_live -= p != nullptr;
  std::free(p);
}
void operator delete(void* p, size_t) noexcept { operator delete(p); }

namespace croquis::linalg {
namespace {

Matrix<float> Random(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<float> m(rows, cols);
  const Stream s{seed, Purpose("test.matmul")};
  for (int64_t i = 0; i < rows * cols; ++i) m.data()[i] = s.Gaussian(uint64_t(i));
  return m;
}

PackedLinear Pack(const Matrix<float>& w, WeightType type) {
  PackedLinear p(w.rows(), w.cols(), type);
  // In uneven pieces: rows may be set in any order and grouping.
  for (int64_t r = w.rows(); r > 0;) {
    const int64_t n = std::min<int64_t>(r, 37);
    r -= n;
    p.SetRows(r, w.View().Rows(r, n));
  }
  return p;
}

float Rounded(float x, WeightType type) { return type == WeightType::kF32 ? x : Bf16ToFloat(FloatToBf16(x)); }

struct Shape {
  int64_t m, n, k;
};
constexpr Shape kShapes[] = {{1, 64, 32},  {1, 1, 1},    {3, 100, 80},  {1, 704, 256},  {5, 256, 704},  {16, 130, 33},
                             {17, 65, 96}, {64, 64, 64}, {255, 70, 50}, {256, 192, 64}, {300, 1408, 40}};

// Against f64 sums of the rounded numbers. An f32 sum of k terms in any order is off by at most k 2^-24 sum |x w|.
TEST(Matmul, EqualsTheSum) {
  Executor executor(2);
  for (const auto type : {WeightType::kF32, WeightType::kBf16}) {
    if (type == WeightType::kBf16 && !HasFastBf16()) continue;
    Multiplier multiplier(704);
    for (const auto [m, n, k] : kShapes) {
      for (const bool with_bias : {false, true}) {
        const auto w = Random(n, k, 1), x = Random(m, k + 3, 2);
        auto packed = Pack(w, type);
        std::vector<float> bias(size_t(n), 0.f);
        if (with_bias) {
          for (int64_t i = 0; i < n; ++i) bias[size_t(i)] = float(i % 7) - 3;
          packed.SetBias(0, bias);
        }
        Matrix<float> y(m, n + 5);
        std::fill_n(y.data(), m * (n + 5), -77.f);
        const MatView<const float> xv(x.data(), m, k, k + 3);
        const MatView<float> yv(y.data(), m, n, n + 5);
        ASSERT_TRUE(multiplier.Apply(executor, packed, xv, yv));
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = bias[size_t(j)], magnitude = std::fabs(sum);
            for (int64_t l = 0; l < k; ++l) {
              const double term = double(Rounded(xv(i, l), type)) * Rounded(w.Row(j)[l], type);
              sum += term;
              magnitude += std::fabs(term);
            }
            ASSERT_NEAR(yv(i, j), sum, double(k + 2) * 0x1p-24 * magnitude) << m << ' ' << n << ' ' << k << ' ' << j;
          }
          for (int64_t j = n; j < n + 5; ++j) ASSERT_EQ(y.Row(i)[j], -77.f);  // nothing written beside y
        }
      }
    }
  }
}

// oneDNN takes any layout and, for those its kernels do not know, quietly runs loops a thousand times slower.
TEST(Matmul, RunsNoReferenceCode) {
  Executor executor(1);
  for (const auto type : {WeightType::kF32, WeightType::kBf16}) {
    if (type == WeightType::kBf16 && !HasFastBf16()) continue;
    Multiplier multiplier(704);
    for (const auto [m, n, k] : kShapes) {
      const PackedLinear packed(n, k, type);
      const auto x = Random(m, k, 2);
      Matrix<float> y(m, n);
      ASSERT_TRUE(multiplier.Apply(executor, packed, x.View(), y.View()));
    }
    for (const std::string& name : multiplier.Implementations()) {
      EXPECT_EQ(name.rfind("ref", 0), std::string::npos) << name;
      EXPECT_EQ(name.rfind("gemm:ref", 0), std::string::npos) << name;
    }
  }
}

TEST(Matmul, DoesNotDependOnThreads) {
  for (const auto type : {WeightType::kF32, WeightType::kBf16}) {
    if (type == WeightType::kBf16 && !HasFastBf16()) continue;
    for (const auto [m, n, k] : kShapes) {
      const auto packed = Pack(Random(n, k, 3), type);
      const auto x = Random(m, k, 4);
      Matrix<float> first(m, n), other(m, n);
      for (const int threads : {1, 2, 3}) {
        Executor executor(threads);
        Multiplier multiplier(k);
        auto& y = threads == 1 ? first : other;
        ASSERT_TRUE(multiplier.Apply(executor, packed, x.View(), y.View()));
        if (threads > 1) {
          ASSERT_EQ(std::memcmp(first.data(), other.data(), size_t(m * n) * 4), 0);
        }
      }
    }
  }
}

// oneDNN's execute makes and frees a map of its arguments (six blocks a call); nothing else may be taken, so nothing
// stays.
TEST(Matmul, SecondCallOfAShapeTakesNothing) {
  Executor executor(2);
  const auto type = HasFastBf16() ? WeightType::kBf16 : WeightType::kF32;
  const auto packed = Pack(Random(300, 96, 5), type);
  Multiplier multiplier(96);
  for (const int64_t m : {1, 7, 256}) {
    const auto x = Random(m, 96, 6);
    Matrix<float> y(m, 300);
    ASSERT_TRUE(multiplier.Apply(executor, packed, x.View(), y.View()));
    const int64_t before = g_live;
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(multiplier.Apply(executor, packed, x.View(), y.View()));
    EXPECT_EQ(g_live, before) << m;
  }
}

TEST(Matmul, SizesThatDoNotFit) {
  EXPECT_EQ(PackedLinear::Bytes(int64_t{1} << 40, int64_t{1} << 40, WeightType::kF32), -1);
  EXPECT_EQ(PackedLinear::Bytes(-1, 4, WeightType::kF32), -1);
  EXPECT_EQ(PackedLinear::Bytes(65, 33, WeightType::kBf16), 128 * 64 * 2);
}

TEST(Matmul, NamesAnInstructionSet) {
  EXPECT_FALSE(Isa(WeightType::kF32).empty());
  if (HasFastBf16()) {
    EXPECT_NE(Isa(WeightType::kBf16), "bf16 without instructions");
  }
}

}  // namespace
}  // namespace croquis::linalg
