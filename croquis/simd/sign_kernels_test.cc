// Sign kernels: the sums against their definition in double, every target against the scalar one bit for bit.
#include "croquis/simd/sign_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "croquis/base/rng.h"

namespace croquis::simd {
namespace {

struct Case {
  int64_t m, blocks, rows;
};
constexpr Case kCases[] = {{64, 1, 1}, {64, 2, 3}, {256, 2, 1}, {256, 2, 4}, {256, 1, 7}, {512, 2, 5}, {1024, 2, 2}};

struct Inputs {
  std::vector<uint64_t> words;
  std::vector<float> v;
  std::vector<int8_t> hi, lo;
  std::vector<SignQuery> query;
};

Inputs MakeInputs(const Case& c, const SignKernels& kernels) {
  const Stream s{uint64_t(c.m * 100 + c.rows), Purpose("sign.test")};
  Inputs in;
  in.words.resize(size_t(c.blocks * c.m / 4));
  for (size_t i = 0; i < in.words.size(); ++i) in.words[i] = uint64_t{s.U32(2 * i)} << 32 | s.U32(2 * i + 1);
  in.v.resize(size_t(c.rows * c.m));
  for (size_t i = 0; i < in.v.size(); ++i) in.v[i] = s.Sub(1).Gaussian(i);
  in.hi.resize(in.v.size());
  in.lo.resize(in.v.size());
  for (int64_t r = 0; r < c.rows; ++r) {
    in.query.push_back(kernels.quantise(&in.v[size_t(r * c.m)], c.m, &in.hi[size_t(r * c.m)], &in.lo[size_t(r * c.m)]));
  }
  return in;
}

TEST(SignKernels, SumsMatchTheDefinition) {
  for (const Target target : Reachable()) {
    const SignKernels& kernels = Signs(target);
    SCOPED_TRACE(kernels.name);
    EXPECT_LE(kernels.target, target);
    for (const Case& c : kCases) {
      const Inputs in = MakeInputs(c, kernels);
      std::vector<float> out(size_t(c.rows * 33), -1.f);
      kernels.sums(in.words.data(), c.blocks, c.m, in.query.data(), c.rows, out.data(), 33);
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t t = 0; t < 16 * c.blocks; ++t) {
          double want = 0;
          for (int64_t j = 0; j < c.m; ++j) {
            const uint64_t word = in.words[size_t((t / 16) * c.m / 4 + j / 4)];
            const bool set = word >> (4 * (t % 16) + j % 4) & 1;
            want += (set ? 1 : -1) * double(in.v[size_t(r * c.m + j)]);
          }
          // Each v is off by at most step / 2, uniform: the sum's deviation is step sqrt(m / 12); six of them.
          const double bound = 6 * in.query[size_t(r)].step * std::sqrt(double(c.m) / 12) + 1e-6 * std::abs(want);
          EXPECT_NEAR(out[size_t(r * 33 + t)], want, bound);
        }
        EXPECT_EQ(out[size_t(r * 33 + 16 * c.blocks)], -1.f) << "wrote past the row";
      }
    }
  }
}

TEST(SignKernels, TargetsAgreeBitForBit) {
  const SignKernels& plain = Signs(Target::kScalar);
  for (const Target target : Reachable()) {
    const SignKernels& kernels = Signs(target);
    SCOPED_TRACE(kernels.name);
    for (const Case& c : kCases) {
      const Inputs a = MakeInputs(c, plain), b = MakeInputs(c, kernels);
      EXPECT_EQ(a.hi, b.hi);
      EXPECT_EQ(a.lo, b.lo);
      std::vector<float> x(size_t(c.rows * 32)), y(x);
      plain.sums(a.words.data(), c.blocks, c.m, a.query.data(), c.rows, x.data(), 32);
      kernels.sums(b.words.data(), c.blocks, c.m, b.query.data(), c.rows, y.data(), 32);
      EXPECT_EQ(x, y);
      const std::vector<uint8_t> index = {3, 0, 2};
      const float coef[] = {0.3f, -1.7f, 2.5f};
      std::vector<float> table(size_t(4 * c.m)), p(size_t(c.m)), q(p);
      for (size_t i = 0; i < table.size(); ++i) table[i] = a.v[i % a.v.size()] * float(i % 5);
      plain.combine(a.v.data(), coef, index.data(), 3, table.data(), c.m, p.data());
      kernels.combine(a.v.data(), coef, index.data(), 3, table.data(), c.m, q.data());
      EXPECT_EQ(p, q);
      EXPECT_FLOAT_EQ(p[5],
                      a.v[5] + 0.3f * table[size_t(3 * c.m + 5)] - 1.7f * table[5] + 2.5f * table[size_t(2 * c.m + 5)]);
      kernels.combine(nullptr, coef, nullptr, 3, table.data(), c.m, q.data());
      EXPECT_FLOAT_EQ(q[7], 0.3f * table[7] - 1.7f * table[size_t(c.m + 7)] + 2.5f * table[size_t(2 * c.m + 7)]);
    }
  }
}

TEST(SignKernels, CodeSumsMatchTheDefinition) {
  const Stream s{71, Purpose("sign.codes")};
  for (const int bits : {2, 4}) {
    for (const Case& c : {Case{16, 1, 1}, Case{80, 2, 3}, Case{128, 2, 4}, Case{256, 2, 6}}) {
      const int64_t n = c.m, fields = 8 / bits;
      std::vector<std::byte> codes(size_t(c.blocks * 2 * n * bits));
      for (size_t i = 0; i < codes.size(); ++i) codes[i] = std::byte(s.U32(i) & 255);
      const Inputs in = MakeInputs(c, Signs(Target::kScalar));
      std::vector<float> plain(size_t(c.rows * 32));
      for (const Target target : Reachable()) {
        std::vector<float> out(plain.size());
        Signs(target).code_sums(codes.data(), bits, c.blocks, n, in.query.data(), c.rows, out.data(), 32);
        if (target == Target::kScalar) plain = out;
        EXPECT_EQ(out, plain) << Name(target) << " " << bits << " " << n;
      }
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t t = 0; t < 16 * c.blocks; ++t) {
          double want = 0;
          for (int64_t i = 0; i < n; ++i) {
            const std::byte b = codes[size_t(t / 16 * 2 * n * bits + i / 4 / fields * 64 + t % 16 * 4 + i % 4)];
            want += double(in.v[size_t(r * n + i)]) *
                    ((std::to_integer<int>(b) >> (i / 4 % fields * bits)) & ((1 << bits) - 1));
          }
          // Six deviations of the sum of n roundings of up to half a step, each times a code.
          const double bound = 6 * (1 << bits) * in.query[size_t(r)].step * std::sqrt(double(n) / 12);
          EXPECT_NEAR(plain[size_t(r * 32 + t)], want, bound + 1e-6 * std::abs(want));
        }
      }
    }
  }
}

TEST(SignKernels, QuantisesEdges) {
  for (const Target target : Reachable()) {
    const SignKernels& kernels = Signs(target);
    std::vector<float> v(64, 0.f);
    std::vector<int8_t> hi(64, 1), lo(64, 1);
    const SignQuery zero = kernels.quantise(v.data(), 64, hi.data(), lo.data());
    EXPECT_EQ(zero.step, 0);
    EXPECT_EQ(hi, std::vector<int8_t>(64, 0));
    v[3] = -2e37f;
    v[4] = 1e37f;
    const SignQuery huge = kernels.quantise(v.data(), 64, hi.data(), lo.data());
    EXPECT_EQ(hi[3], -127);
    EXPECT_EQ(lo[3], -127);
    EXPECT_NEAR(huge.step * float(256 * hi[4] + lo[4]), 1e37f, 1e33f);
    v.assign(64, 1e-40f);
    EXPECT_EQ(kernels.quantise(v.data(), 64, hi.data(), lo.data()).step, 0);
  }
}

}  // namespace
}  // namespace croquis::simd
