// Split products against sums in double, on every reachable target that has them.
#include "croquis/simd/split_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
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

// In attend, what meets rows of 16 bits is two parts of eight, rounded.
double Rounding(RowType type) { return kRounding + (type == RowType::kF32 ? 0 : 0x1p-17); }

// What a row sees of pages, in double: log2 of the mass, and the answer. Errors of both, from errors of logits.
struct Reference {
  double lse = -1e300, lse_error = 0;
  std::vector<double> out;
  double out_error = 0;
  Reference(const float* q, int64_t dim, const std::vector<Page>& keys, const std::vector<Page>& values, int64_t first,
            int64_t last, RowType key_type, RowType value_type)
      : out(size_t(dim)) {
    std::vector<double> logit(static_cast<size_t>(last));
    double top = -1e300, size = 0, largest = 0, mass = 0;
    for (int64_t t = first; t < last; ++t) {
      const double* k = &keys[size_t(t / kTokens)].value[size_t(t % kTokens * dim)];
      double sum = 0, all = 0;
      for (int64_t i = 0; i < dim; ++i) sum += double(q[i]) * k[i], all += std::fabs(double(q[i]) * k[i]);
      logit[size_t(t)] = sum, top = std::max(top, sum), size = std::max(size, all);
    }
    for (int64_t t = first; t < last; ++t) {
      const double p = std::exp2(logit[size_t(t)] - top);
      mass += p;
      for (int64_t i = 0; i < dim; ++i) {
        const double v = values[size_t(t / kTokens)].value[size_t(t % kTokens * dim + i)];
        out[size_t(i)] += p * v, largest = std::max(largest, std::fabs(v));
      }
    }
    for (double& x : out) x /= mass;
    if (last > first) lse = top + std::log2(mass);
    // A weight is wrong by ln 2 times its logit's error, by that of 2^x (2e-7) and by rounding of the sums.
    const double weight = std::log(2.0) * Rounding(key_type) * size + 2e-7 + Rounding(value_type);
    lse_error = 2 * weight, out_error = 2 * weight * largest;
  }
};

TEST(SplitKernels, AttendIsExactToF32OrToTwoParts) {
  ForEachCase([](const SplitKernels& kernels, RowType type, int64_t dim, int64_t rows) {
    const auto pages = int64_t(1 + (dim + rows) % 3);
    const RowType value_type = dim % 2 == 0 ? type : RowType::kF16;  // they may differ
    std::vector<Page> keys, values;
    std::vector<const std::byte*> k, v;
    for (int64_t p = 0; p < pages; ++p) {
      keys.emplace_back(type, dim), values.emplace_back(value_type, dim);
      // Not every page the same: later ones are the earlier ones shifted by a row.
      std::rotate(keys.back().bytes.begin(), keys.back().bytes.begin() + p * dim * RowTypeBytes(type),
                  keys.back().bytes.end());
      std::rotate(keys.back().value.begin(), keys.back().value.begin() + p * dim, keys.back().value.end());
    }
    for (int64_t p = 0; p < pages; ++p)
      k.push_back(keys[size_t(p)].bytes.data()), v.push_back(values[size_t(p)].bytes.data());
    const int64_t stride = dim + 3, tokens = pages * kTokens;
    const Stream random{6, Purpose("split.attend")};
    std::vector<float> q(size_t(rows * dim)), sums(size_t(rows * stride), kGuard), max(size_t(rows), kMasked),
        mass(size_t(rows), 0);
    for (size_t i = 0; i < q.size(); ++i) q[i] = 2 * random.Gaussian(i);
    std::vector<int32_t> first(static_cast<size_t>(rows)), last(first);
    for (int64_t r = 0; r < rows; ++r) {
      first[size_t(r)] = int32_t(random.U32(uint64_t(2 * r)) % uint32_t(tokens));
      last[size_t(r)] = r % 5 == 2 ? first[size_t(r)] : int32_t(tokens - random.U32(uint64_t(2 * r + 1)) % 3);
      last[size_t(r)] = std::max(first[size_t(r)], last[size_t(r)]);
      std::fill_n(&sums[size_t(r * stride)], dim, 0.f);
    }
    Buffer query(kernels.query_bytes(rows, dim)), scratch(kernels.attend_bytes(rows, dim));
    kernels.prepare({q.data(), rows, dim}, query.data());
    SplitCall call;
    call.key_type = type, call.value_type = value_type;
    call.query = query.data(), call.rows = rows, call.scratch = scratch.data();
    call.sums = {sums.data(), rows, dim, stride}, call.max = max.data(), call.mass = mass.data();
    const bool all = rows % 2 == 1;  // every row sees everything
    if (!all) call.first = first.data(), call.last = last.data();
    // The first page in a call of its own: states are taken in.
    call.pages = 1, call.keys = k.data(), call.values = v.data();
    kernels.attend(call);
    for (auto* x : {&first, &last})
      for (int32_t& t : *x) t -= int32_t(kTokens);
    call.pages = pages - 1, call.keys = k.data() + 1, call.values = v.data() + 1;
    kernels.attend(call);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = all ? 0 : first[size_t(r)] + kTokens, to = all ? tokens : last[size_t(r)] + kTokens;
      const Reference want(&q[size_t(r * dim)], dim, keys, values, from, to, type, value_type);
      const float* const sum = &sums[size_t(r * stride)];
      for (int64_t i = dim; i < stride; ++i) ASSERT_EQ(sum[i], kGuard);
      if (from == to) {
        ASSERT_EQ(mass[size_t(r)], 0);
        for (int64_t i = 0; i < dim; ++i) ASSERT_EQ(sum[i], 0);
        continue;
      }
      const double m = double(mass[size_t(r)]);
      ASSERT_NEAR(double(max[size_t(r)]) + std::log2(m), want.lse, want.lse_error) << "dim " << dim << " row " << r;
      for (int64_t i = 0; i < dim; ++i)
        ASSERT_NEAR(double(sum[i]) / m, want.out[size_t(i)], want.out_error)
            << "type " << int(type) << " dim " << dim << " rows " << rows << " at " << r << "," << i;
    }
  });
}

}  // namespace
}  // namespace croquis::simd
