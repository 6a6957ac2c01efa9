// Split products against sums in double, on every reachable target that has them.
#include "croquis/simd/split_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/simd/page_kernels.h"

namespace croquis::simd {
namespace {

constexpr int64_t kTokens = 128;
constexpr RowType kTypes[] = {RowType::kF32, RowType::kF16, RowType::kBf16};
constexpr float kGuard = 12345.f;

// A sum of n products in f32 is within about n 2^-24 sum |products|; tiles add up in blocks of 16 pairs, and six kinds
// of products: 32 units cover n = 256, as for the dense kernels.
constexpr double kRounding = 32 * 0x1p-24;

// A page that ends with its buffer, so that a sanitizer sees a read past it, and its exact values. Magnitudes differ by
// up to 2^20 within a row, so that small parts matter.
struct Page {
  std::vector<std::byte> bytes;
  std::vector<double> value;
  Page(RowType type, int64_t dim) : bytes(size_t(kTokens * dim * RowTypeBytes(type))), value(size_t(kTokens * dim)) {
    const Stream random{3, Purpose("split.page")};
    for (size_t i = 0; i < value.size(); ++i) {
      const float x = std::ldexp(random.Gaussian(i), type == RowType::kF16 ? -int(i % 7) : -int(i % 21));
      const uint16_t h = type == RowType::kF16 ? FloatToF16(x) : FloatToBf16(x);
      const float stored = type == RowType::kF32 ? x : type == RowType::kF16 ? F16ToFloat(h) : Bf16ToFloat(h);
      const void* from = type == RowType::kF32 ? static_cast<const void*>(&x) : &h;
      std::memcpy(bytes.data() + i * size_t(RowTypeBytes(type)), from, size_t(RowTypeBytes(type)));
      value[i] = double(stored);
    }
  }
};

std::vector<const SplitKernels*> All() {
  std::vector<const SplitKernels*> all;
  for (const Target target : Reachable())
    if (const SplitKernels* k = Split(target)) all.push_back(k);
  return all;
}

template <class Fn>
void ForEachCase(const Fn& fn) {
  for (const SplitKernels* kernels : All())
    for (const RowType type : kTypes)
      for (const int64_t dim : {8, 13, 32, 64, 80, 128, 200, 256})
        for (const int64_t rows : {1, 15, 16, 17, 48, 65}) fn(*kernels, type, dim, rows);
}

TEST(SplitKernels, ScoreIsExactToF32) {
  ForEachCase([](const SplitKernels& kernels, RowType type, int64_t dim, int64_t rows) {
    const Page page(type, dim);
    const int64_t stride = dim + 3;
    std::vector<float> q(size_t(rows * stride)), logits(size_t(rows * kTokens + 16), kGuard);
    const Stream random{4, Purpose("split.query")};
    for (size_t i = 0; i < q.size(); ++i) q[i] = random.Gaussian(i);
    Buffer query(kernels.query_bytes(rows, dim)), scratch(kernels.scratch_bytes(rows, dim));
    kernels.prepare({q.data(), rows, dim, stride}, query.data());
    kernels.score(type, page.bytes.data(), query.data(), rows, dim, page.bytes.data(), page.bytes.size(), logits.data(),
                  scratch.data());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < kTokens; ++t) {
        double want = 0, size = 0;
        for (int64_t i = 0; i < dim; ++i) {
          const double x = double(q[size_t(r * stride + i)]) * page.value[size_t(t * dim + i)];
          want += x, size += std::fabs(x);
        }
        ASSERT_NEAR(logits[size_t(r * kTokens + t)], want, kRounding * size)
            << "type " << int(type) << " dim " << dim << " rows " << rows << " at " << r << "," << t;
      }
    for (size_t i = size_t(rows * kTokens); i < logits.size(); ++i) ASSERT_EQ(logits[i], kGuard);
  });
}

TEST(SplitKernels, AccumulateIsExactToF32) {
  ForEachCase([](const SplitKernels& kernels, RowType type, int64_t dim, int64_t rows) {
    const Page page(type, dim);
    const int64_t stride = dim + 3;
    std::vector<float> p(size_t(rows * kTokens)), scale(size_t(rows), 0), acc(size_t(rows * stride), kGuard);
    const Stream random{5, Purpose("split.weights")};
    for (size_t i = 0; i < p.size(); ++i) p[i] = random.U32(i) % 3 ? std::ldexp(random.Uniform(i), -int(i % 19)) : 0;
    for (int64_t r = 0; r < rows; ++r) {
      scale[size_t(r)] = random.Uniform(uint64_t(100000 + r));
      for (int64_t i = 0; i < dim; ++i) acc[size_t(r * stride + i)] = random.Gaussian(uint64_t(200000 + i));
    }
    const std::vector<float> before = acc;
    Buffer scratch(kernels.scratch_bytes(rows, dim));
    const PageScope scope;  // as pages are read in attention
    kernels.accumulate(type, page.bytes.data(), p.data(), scale.data(), nullptr, 0, {acc.data(), rows, dim, stride},
                       scratch.data());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < dim; ++i) {
        const auto at = size_t(r * stride + i);
        double want = double(before[at]), size = std::fabs(want);
        for (int64_t t = 0; t < kTokens; ++t) {
          const double x =
              double(scale[size_t(r)]) * double(p[size_t(r * kTokens + t)]) * page.value[size_t(t * dim + i)];
          want += x, size += std::fabs(x);
        }
        ASSERT_NEAR(acc[at], want, kRounding * size) << "type " << int(type) << " dim " << dim << " row " << r;
      }
      for (int64_t i = dim; i < stride; ++i) ASSERT_EQ(acc[size_t(r * stride + i)], kGuard);
    }
  });
}

}  // namespace
}  // namespace croquis::simd
