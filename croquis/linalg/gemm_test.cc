#include "croquis/linalg/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "croquis/base/executor.h"
#include "croquis/base/rng.h"

namespace croquis::linalg {
namespace {

Matrix<float> Random(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<float> m(rows, cols);
  const Stream s{seed, Purpose("test.gemm")};
  for (int64_t i = 0; i < rows * cols; ++i) m.data()[i] = s.Gaussian(uint64_t(i));
  return m;
}

// Views narrower than their matrices: strides larger than rows.
TEST(Gemm, EqualsTheSum) {
  const int64_t shapes[][3] = {{1, 1, 1}, {1, 64, 64},   {64, 1, 64},    {64, 64, 1},
                               {3, 5, 7}, {65, 33, 130}, {128, 257, 64}, {17, 4, 1000}};
  for (const auto& [m, n, k] : shapes)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const float beta : {0.f, 1.f, -0.5f}) {
          SCOPED_TRACE(std::to_string(m) + " " + std::to_string(n) + " " + std::to_string(k) + (ta ? " T" : " N") +
                       (tb ? " T" : " N") + " " + std::to_string(beta));
          const Matrix<float> a = Random(ta ? k : m, (ta ? m : k) + 3, 1), b = Random(tb ? n : k, (tb ? k : n) + 2, 2);
          Matrix<float> c = Random(m, n + 1, 3);
          const Matrix<float> before = Random(m, n + 1, 3);
          const auto av = a.View().Cols(1, ta ? m : k), bv = b.View().Cols(2, tb ? k : n);
          const auto cv = c.View().Cols(0, n);
          if (beta == 0)
            for (int64_t i = 0; i < m; ++i)
              for (int64_t j = 0; j < n; ++j) cv(i, j) = std::numeric_limits<float>::quiet_NaN();
          Gemm(ta, tb, 1.5f, av, bv, beta, cv);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              double sum = beta == 0 ? 0 : double(beta) * before.View()(i, j), size = std::abs(sum);
              for (int64_t t = 0; t < k; ++t) {
                const double term = 1.5 * double(ta ? av(t, i) : av(i, t)) * double(tb ? bv(j, t) : bv(t, j));
                sum += term, size += std::abs(term);
              }
              // An f32 sum of k terms in any order is off by at most (k + 3) 2^-24 of the terms' sizes.
              ASSERT_NEAR(cv(i, j), sum, double(k + 3) * 0x1p-24 * size + 1e-30);
            }
            ASSERT_EQ(c.View()(i, n), before.View()(i, n)) << "beside C";
          }
        }
}

TEST(Gemm, EmptySums) {
  Matrix<float> c = Random(3, 4, 1);
  const Matrix<float> before = Random(3, 4, 1), a(3, 0), b(0, 4);
  Gemm(false, false, 1, a.View(), b.View(), 2, c.View());
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(c.data()[i], 2 * before.data()[i]);
  Gemm(false, false, 1, a.View(), b.View(), 0, c.View());
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(c.data()[i], 0);
  Gemm(false, false, 1, Matrix<float>(0, 2).View(), Matrix<float>(2, 4).View(), 0, Matrix<float>(0, 4).View());
}

TEST(Gemm, RunsInWorkers) {
  const Matrix<float> a = Random(64, 96, 1), b = Random(80, 96, 2);
  Matrix<float> want(64, 80);
  Gemm(false, true, 1, a.View(), b.View(), 0, want.View());
  Executor executor(4);
  std::vector<Matrix<float>> got;
  for (int i = 0; i < 32; ++i) got.emplace_back(64, 80);
  executor.ParallelFor(32, [&](int64_t i, int) { Gemm(false, true, 1, a.View(), b.View(), 0, got[size_t(i)].View()); });
  for (const auto& m : got)
    for (int64_t i = 0; i < 64 * 80; ++i) ASSERT_EQ(m.data()[i], want.data()[i]);
}

}  // namespace
}  // namespace croquis::linalg
