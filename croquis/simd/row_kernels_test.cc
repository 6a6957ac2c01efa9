// Every reachable target against the portable form and sums in double, at odd sizes.
#include "croquis/simd/row_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/rng.h"

namespace croquis::simd {
namespace {

constexpr int64_t kRows = 37;
constexpr RowType kTypes[] = {RowType::kF32, RowType::kF16, RowType::kBf16};

struct Rows {
  std::vector<std::byte> bytes;
  int64_t stride;
  Rows(RowType type, int64_t dim) : bytes(size_t(kRows * (dim + 3) * 4)), stride(dim + 3) {
    const Stream random{uint64_t(dim), Purpose("row.numbers")};
    for (int64_t i = 0; i < kRows * stride; ++i) {
      const float x = random.Gaussian(uint64_t(i));
      if (type == RowType::kF32)
        reinterpret_cast<float*>(bytes.data())[i] = x;
      else
        reinterpret_cast<uint16_t*>(bytes.data())[i] = type == RowType::kF16 ? FloatToF16(x) : FloatToBf16(x);
    }
  }
};

class RowKernelsTest : public ::testing::TestWithParam<Target> {
 protected:
  const RowKernels& kernels() const { return RowLoops(GetParam()); }
  const RowKernels& plain() const { return RowLoops(Target::kScalar); }
};

TEST_P(RowKernelsTest, ReadsAndAddsRowsAsThePortableFormDoes) {
  const std::vector<int32_t> some = {5, 0, 36, 5, 7, 8, 9, 10, 11, 12, 13, 2};
  for (const RowType type : kTypes)
    for (const int64_t dim : {1, 7, 16, 33, 64, 80, 128, 200})
      for (const bool gather : {false, true}) {
        const Rows x(type, dim);
        const int32_t* const index = gather ? some.data() : nullptr;
        const int64_t n = gather ? int64_t(some.size()) : kRows;
        std::vector<float> got(size_t(n * dim + 1), 9.f), want(got);
        kernels().widen(type, x.bytes.data(), x.stride, index, n, dim, got.data());
        plain().widen(type, x.bytes.data(), x.stride, index, n, dim, want.data());
        EXPECT_EQ(got, want);
        std::vector<float> sum(size_t(dim + 1), .5f), sum_want(sum);
        kernels().add_rows(type, x.bytes.data(), x.stride, index, n, dim, sum.data());
        plain().add_rows(type, x.bytes.data(), x.stride, index, n, dim, sum_want.data());
        EXPECT_EQ(sum, sum_want);  // one after the other in every form
      }
}

TEST_P(RowKernelsTest, Squares) {
  for (const RowType type : kTypes)
    for (const int64_t dim : {1, 15, 16, 47, 64, 128}) {
      const Rows x(type, dim);
      std::vector<float> got(kRows), numbers(size_t(kRows * dim));
      plain().widen(type, x.bytes.data(), x.stride, nullptr, kRows, dim, numbers.data());
      kernels().squares(type, x.bytes.data(), x.stride, kRows, dim, got.data());
      for (int64_t r = 0; r < kRows; ++r) {
        double want = 0;
        for (int64_t i = 0; i < dim; ++i) want += std::pow(double(numbers[size_t(r * dim + i)]), 2);
        EXPECT_NEAR(got[size_t(r)], want, 1e-5 * want);
      }
    }
}

TEST_P(RowKernelsTest, SignBits) {
  const Rows x(RowType::kF32, 17);
  const auto* const z = reinterpret_cast<const float*>(x.bytes.data());
  std::vector<float> threshold(16);
  for (size_t t = 0; t < 16; ++t) threshold[t] = z[t];  // row 0 is not above its own numbers
  std::vector<uint16_t> got(kRows), want(kRows);
  kernels().sign_bits(z, x.stride, kRows, threshold.data(), got.data());
  plain().sign_bits(z, x.stride, kRows, threshold.data(), want.data());
  EXPECT_EQ(got, want);
  EXPECT_EQ(got[0], 0);
  EXPECT_NE(got[1], 0);
}

TEST_P(RowKernelsTest, AddScaled) {
  for (const int64_t n : {1, 16, 21, 64}) {
    const Rows x(RowType::kF32, n);
    const auto* const numbers = reinterpret_cast<const float*>(x.bytes.data());
    std::vector<float> y(size_t(n + 1), 3.f);
    kernels().add_scaled(numbers, n, 2.f, .5f, y.data());
    for (int64_t i = 0; i < n; ++i) EXPECT_NEAR(y[size_t(i)], (3 + 2 * numbers[i]) * .5f, 1e-6f);
    EXPECT_EQ(y[size_t(n)], 3.f);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, RowKernelsTest, ::testing::ValuesIn(Reachable()),
                         [](const auto& test) { return std::string(Name(test.param)); });

}  // namespace
}  // namespace croquis::simd
