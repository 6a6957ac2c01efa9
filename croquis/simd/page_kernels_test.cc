// Layout, and every page kernel of every reachable target against f64 and, bit for bit, against the plain form: integer
// sums are exact, and the few roundings around them are fixed by pages_internal.h.
#include "croquis/simd/page_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"

namespace croquis::simd {
namespace {

constexpr Stream kStream{7, Purpose("page_kernels_test")};

std::vector<const PageKernels*> FastKernels() {
  std::vector<const PageKernels*> all;
  for (const Target t : Reachable()) {
    if (Pages(t).target != Target::kScalar) all.push_back(&Pages(t));
  }
  return all;
}

enum class LevelKind { kPlain, kTable, kTwoPlanes };

Levels MakeLevels(int bits, LevelKind kind) {
  Levels levels;
  levels.step = 0.03f;
  const int n = 1 << bits;
  levels.planes = kind == LevelKind::kTwoPlanes ? 2 : 1;
  for (int c = 0; c < n; ++c) {
    // A monotone, uneven table that reaches both ends; or codes that are their levels.
    const double x = n == 1 ? 0 : 2.0 * c / (n - 1) - 1;
    const double y = 0.6 * x + 0.4 * x * x * x;
    if (kind == LevelKind::kPlain) {
      levels.level[0][size_t(c)] = int8_t(bits == 8 ? c - 128 : c - n / 2);
    } else if (kind == LevelKind::kTable) {
      levels.level[0][size_t(c)] = int8_t(std::lround(127 * y));
    } else {
      const int fine = int(std::lround(16000 * y)), high = int(std::lround(fine / 128.0));
      levels.level[0][size_t(c)] = int8_t(high);
      levels.level[1][size_t(c)] = int8_t(fine - 128 * high);
    }
  }
  if (kind == LevelKind::kTwoPlanes) levels.step /= 128;
  return levels;
}

// A page of random codes, and scales of either sign if asked. Every slot is used.
Buffer RandomPage(const PageLayout& layout, bool values, bool negative, Stream s) {
  Buffer page(layout.Bytes());
  auto* half = reinterpret_cast<f16*>(page.data());
  for (int i = 0; i < layout.runs * 128; ++i) {
    const float size = 0.5f + s.Uniform(uint64_t(i));
    half[i] = FloatToF16(negative ? size * s.Sign(uint64_t(100000 + i)) : size);
    if (layout.mins) half[layout.runs * 128 + i] = FloatToF16(s.Gaussian(uint64_t(200000 + i)));
  }
  std::vector<uint8_t> codes(size_t(16 * layout.dim));
  for (int64_t block = 0; block < 8; ++block) {
    for (size_t i = 0; i < codes.size(); ++i) {
      codes[i] = uint8_t(s.U32(300000 + uint64_t(block) * codes.size() + i) & ((1u << layout.bits) - 1));
    }
    (values ? Pages(Target::kScalar).pack_values : Pages(Target::kScalar).pack_keys)(layout, codes.data(), block,
                                                                                     page.data());
  }
  return page;
}

std::string Describe(const PageLayout& x, const Levels& l, Precision p, int64_t rows) {
  return "dim=" + std::to_string(x.dim) + " bits=" + std::to_string(x.bits) + " runs=" + std::to_string(x.runs) +
         " mins=" + std::to_string(x.mins) + " planes=" + std::to_string(l.planes) +
         (p == Precision::kFine ? " fine" : " fast") + " rows=" + std::to_string(rows);
}

double RelativeError(const float* x, const double* want, size_t n) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < n; ++i) {
    error += (x[i] - want[i]) * (x[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error / norm);
}

// The promise of page_kernels.h is 2e-4 (fine) and about 1e-2 (fast). Bounds of one byte: a uniform rounding error of
// max|q|/127/sqrt(12) against an rms of max/3 is 0.7 %, and twice that for few dims, where max/rms varies, or for
// weights of one signed byte when one token holds nearly all the mass.
double Bound(Precision p) { return p == Precision::kFine ? 2e-4 : 2.5e-2; }

// Logits of `k` into out, one row of 128 a query row.
void RunScore(const PageKernels& k, const PageLayout& layout, const Levels& levels, Precision precision,
              const Buffer& page, MatView<const float> q, float scale, float* out) {
  Buffer query(k.query_bytes(layout, levels, precision, q.rows));
  Buffer scratch(k.scratch_bytes(layout, levels, precision, q.rows) + 64);
  std::memset(query.data(), 0xA5, query.size());
  std::memset(scratch.data(), 0x5A, scratch.size());
  k.prepare(layout, levels, precision, q, scale, query.data());
  k.score(layout, levels, precision, page.data(), query.data(), q.rows, Upcoming{page.data(), page.size()}, out,
          scratch.data());
}

void CheckScore(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows, bool negative,
                Stream s) {
  SCOPED_TRACE(Describe(layout, levels, precision, rows));
  const Buffer page = RandomPage(layout, false, negative, s);
  Matrix<float> q(rows, layout.dim), x(128, layout.dim);
  for (int64_t i = 0; i < rows * layout.dim; ++i) q.data()[i] = s.Sub(1).Gaussian(uint64_t(i));
  DecodePageReference(layout, levels, false, page.data(), x.View());
  constexpr float kScale = 0.127f;
  std::vector<double> want(size_t(rows * 128));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t t = 0; t < 128; ++t) {
      double dot = 0;
      for (int64_t i = 0; i < layout.dim; ++i) dot += double(q.Row(row)[i]) * x.Row(t)[i];
      want[size_t(row * 128 + t)] = kScale * dot;
    }
  }
  std::vector<float> plain(want.size()), fast(want.size() + 1);
  RunScore(Pages(Target::kScalar), layout, levels, precision, page, q.View(), kScale, plain.data());
  EXPECT_LT(RelativeError(plain.data(), want.data(), want.size()), Bound(precision));
  for (const PageKernels* k : FastKernels()) {
    std::fill(fast.begin(), fast.end(), 42.f);
    RunScore(*k, layout, levels, precision, page, q.View(), kScale, fast.data());
    EXPECT_EQ(fast.back(), 42.f) << k->name;
    EXPECT_LT(RelativeError(fast.data(), want.data(), want.size()), Bound(precision)) << k->name;
    for (size_t i = 0; i < want.size(); ++i) ASSERT_EQ(fast[i], plain[i]) << k->name << " element " << i;
  }
}

void RunSum(const PageKernels& k, const PageLayout& layout, const Levels& levels, Precision precision,
            const Buffer& page, const std::vector<float>& p, const std::vector<float>& p_scale, MatView<float> acc) {
  Buffer scratch(k.scratch_bytes(layout, levels, precision, acc.rows) + 64);
  std::memset(scratch.data(), 0x5A, scratch.size());
  k.accumulate(layout, levels, precision, page.data(), p.data(), p_scale.data(), acc.rows,
               Upcoming{page.data(), page.size()}, acc, scratch.data());
}

void CheckSum(const PageLayout& layout, const Levels& levels, Precision precision, int64_t rows, bool negative,
              bool peaked, Stream s) {
  SCOPED_TRACE(Describe(layout, levels, precision, rows) + (peaked ? " peaked" : " flat") +
               (negative ? " signed" : ""));
  const Buffer page = RandomPage(layout, true, negative, s);
  std::vector<float> p(size_t(rows * 128)), p_scale(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows * 128; ++i) {
    const float u = s.Sub(2).Uniform(uint64_t(i));
    p[size_t(i)] = peaked ? std::exp(-12 * u) : 0.9f + 0.1f * u;
    if (i % 128 == 5 * (i / 128) % 128) p[size_t(i)] = 1;
    if (i % 128 == 127) p[size_t(i)] = 0;  // an unused slot
  }
  for (size_t r = 0; r < p_scale.size(); ++r) p_scale[r] = 0.5f + 0.25f * float(r % 3);
  Matrix<float> x(128, layout.dim);
  DecodePageReference(layout, levels, true, page.data(), x.View());
  // A stride beyond the rows, and something to add to.
  const int64_t stride = layout.dim + 16;
  std::vector<double> want(size_t(rows * layout.dim));
  std::vector<float> start(size_t(rows * stride)), result(want.size());
  for (size_t i = 0; i < start.size(); ++i) start[i] = 1e-3f * s.Sub(3).Gaussian(i);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < layout.dim; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < 128; ++t) sum += double(p[size_t(row * 128 + t)]) * x.Row(t)[i];
      want[size_t(row * layout.dim + i)] = double(p_scale[size_t(row)]) * sum + start[size_t(row * stride + i)];
    }
  }
  const auto compact = [&](const std::vector<float>& acc) {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(acc.data() + row * stride, layout.dim, result.data() + row * layout.dim);
    }
    return result.data();
  };
  std::vector<float> plain = start;
  RunSum(Pages(Target::kScalar), layout, levels, precision, page, p, p_scale, {plain.data(), rows, layout.dim, stride});
  EXPECT_LT(RelativeError(compact(plain), want.data(), want.size()), Bound(precision));
  for (const PageKernels* k : FastKernels()) {
    std::vector<float> fast = start;
    RunSum(*k, layout, levels, precision, page, p, p_scale, {fast.data(), rows, layout.dim, stride});
    EXPECT_LT(RelativeError(compact(fast), want.data(), want.size()), Bound(precision)) << k->name;
    for (int64_t i = 0; i < rows * stride; ++i) {
      if (i % stride >= layout.dim) {
        ASSERT_EQ(fast[size_t(i)], start[size_t(i)]) << k->name << ": wrote past a row";
      }
      ASSERT_EQ(fast[size_t(i)], plain[size_t(i)]) << k->name << " element " << i;
    }
  }
}

void CheckBoth(const PageLayout& layout, const Levels& levels, int64_t rows, uint64_t number) {
  const Stream s = kStream.Sub(number);
  for (const Precision precision : {Precision::kFast, Precision::kFine}) {
    const uint32_t coin = s.U32(precision == Precision::kFine ? 1 : 2);
    CheckScore(layout, levels, precision, rows, (coin & 1) != 0, s);
    CheckSum(layout, levels, precision, rows, (coin & 2) != 0, (coin & 4) != 0, s);
  }
}

constexpr int kDims[] = {32, 64, 96, 128, 192, 256};
constexpr int kRows[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 64};

TEST(PageLayoutTest, EveryBitOfTheCodesBelongsToOneCode) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const bool values : {false, true}) {
      const PageLayout layout{.dim = 96, .bits = bits, .runs = 3, .mins = true};
      Buffer page(layout.Bytes());
      size_t set = 0;
      for (int64_t t = 0; t < 128; ++t) {
        for (int64_t i = 0; i < layout.dim; ++i) {
          ASSERT_EQ(GetCode(layout, values, page.data(), t, i), 0) << "a bit shared with an earlier code";
          SetCode(layout, values, page.data(), t, i, (1 << bits) - 1);
          ASSERT_EQ(GetCode(layout, values, page.data(), t, i), (1 << bits) - 1);
          set += size_t(bits);
        }
      }
      size_t ones = 0;
      for (size_t i = 0; i < page.size(); ++i) {
        if (i < layout.CodesAt()) {
          ASSERT_EQ(page.data()[i], std::byte{0}) << "codes among the scales";
        }
        ones += size_t(std::popcount(unsigned(page.data()[i])));
      }
      EXPECT_EQ(ones, set);
      EXPECT_EQ(ones, 8 * layout.CodeBytes());
      for (int64_t t = 0; t < 128; ++t) {  // bits within a code keep their order
        for (int64_t i = 0; i < layout.dim; ++i) {
          SetCode(layout, values, page.data(), t, i, int((t * 131 + i * 17) % (1 << bits)));
        }
      }
      for (int64_t t = 0; t < 128; ++t) {
        for (int64_t i = 0; i < layout.dim; ++i) {
          ASSERT_EQ(GetCode(layout, values, page.data(), t, i), int((t * 131 + i * 17) % (1 << bits)));
        }
      }
    }
  }
}

TEST(PageLayoutTest, Golden) {
  // Places worked out by hand from the tables of page_kernels.h; saved caches depend on them.
  struct Case {
    int bits, dim;
    bool values;
    int64_t t, i;
    size_t at;
    int byte;  // what the code 2^bits - 1 sets there
  };
  constexpr Case kCases[] = {
      {4, 128, false, 17, 37, 256 + (1 * 4 + 1) * 256 + 0 * 64 + 5, 0xF0},   // atom 5, unit 1, lane 1 * 4 + 1
      {4, 128, true, 17, 37, 256 + (1 * 8 + 1) * 256 + 0 * 64 + 21, 0x0F},   // atom 9, unit 0, lane 5 * 4 + 1
      {2, 64, false, 127, 63, 256 + (7 * 2 + 1) * 128 + 1 * 64 + 63, 0xC0},  // unit 7: line 1, bits 6-7
      {3, 64, false, 0, 24, 256 + 0, 0xC0},                                  // unit 6: two low bits
      {3, 64, false, 0, 24, 256 + 64, 0x40},                                 // and the high one
      {3, 64, false, 0, 28, 256 + 128, 0xC0},                                // unit 7
      {3, 64, false, 0, 28, 256 + 64, 0x80},
      {1, 32, false, 3, 30, 256 + 14, 0x80},           // unit 7, lane 3 * 4 + 2
      {5, 32, true, 13, 20, 256 + 4 * 64 + 17, 0x80},  // unit 3 * 2 + 1 = 7, lane 4 * 4 + 1, fifth bit
      {6, 32, false, 0, 12, 256 + 4 * 64 + 0, 0xC0},   // unit 3: line 4, bits 6-7
      {7, 32, false, 0, 16, 256 + 6 * 64 + 0, 0x10},   // unit 4: line 6, bit 4
      {8, 64, true, 4, 16, 256 + 3 * 64 + 0, 0xFF},    // unit 3
  };
  for (const Case& c : kCases) {
    const PageLayout layout{.dim = c.dim, .bits = c.bits, .runs = 1, .mins = false};
    Buffer page(layout.Bytes());
    SetCode(layout, c.values, page.data(), c.t, c.i, (1 << c.bits) - 1);
    EXPECT_EQ(int(page.data()[c.at]), c.byte) << "bits " << c.bits << " token " << c.t << " dim " << c.i;
  }
}

TEST(PageKernelsTest, PackIsTheLayout) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int dim : kDims) {
      const PageLayout layout{.dim = dim, .bits = bits, .runs = dim / 32, .mins = bits % 2 == 0};
      std::vector<uint8_t> codes(size_t(16 * dim));
      for (size_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(kStream.U32(i) & ((1u << bits) - 1));
      for (const Target target : Reachable()) {
        for (const bool values : {false, true}) {
          const PageKernels& k = Pages(target);
          Buffer page(layout.Bytes()), want(layout.Bytes());
          std::memset(page.data(), 0xEE, page.size());
          std::memset(want.data(), 0xEE, want.size());
          const int64_t block = dim % 7;
          (values ? k.pack_values : k.pack_keys)(layout, codes.data(), block, page.data());
          for (int64_t t = 0; t < 16; ++t) {
            for (int64_t i = 0; i < dim; ++i) {
              SetCode(layout, values, want.data(), 16 * block + t, i, codes[size_t(t * dim + i)]);
            }
          }
          ASSERT_EQ(std::memcmp(page.data(), want.data(), want.size()), 0)
              << k.name << " bits " << bits << " dim " << dim;
        }
      }
    }
  }
}

TEST(PageKernelsTest, EveryDimAndWidth) {
  uint64_t number = 0;
  for (const int dim : kDims) {
    for (int bits = 1; bits <= 8; ++bits) {
      for (const int runs : {1, dim / 32}) {
        const Levels levels = MakeLevels(bits, bits >= 7 && number % 3 == 0 ? LevelKind::kPlain : LevelKind::kTable);
        const PageLayout layout{.dim = dim, .bits = bits, .runs = runs, .mins = number % 4 == 1};
        for (const int64_t rows : {1 + int64_t(number % 4), 5 + int64_t(number % 5)}) {
          CheckBoth(layout, levels, rows, ++number);
        }
      }
    }
  }
}

TEST(PageKernelsTest, EveryNumberOfRows) {
  uint64_t number = 1000;
  for (const int64_t rows : kRows) {
    for (const int bits : {2, 3, 4, 8}) {
      const Levels levels = MakeLevels(bits, bits == 8 ? LevelKind::kPlain : LevelKind::kTable);
      CheckBoth({.dim = 128, .bits = bits, .runs = 1, .mins = false}, levels, rows, ++number);
      if (bits >= 4) CheckBoth({.dim = 96, .bits = bits, .runs = 3, .mins = true}, levels, rows, ++number);
    }
  }
}

TEST(PageKernelsTest, TwoPlanes) {
  uint64_t number = 2000;
  for (const int bits : {7, 8}) {
    const Levels levels = MakeLevels(bits, LevelKind::kTwoPlanes);
    for (const int dim : {32, 128, 192}) {
      for (const int64_t rows : {1, 2, 4, 8, 20}) {
        const bool one_run = number % 2 != 0, mins = number % 3 == 0;
        CheckBoth({.dim = dim, .bits = bits, .runs = one_run ? 1 : dim / 32, .mins = mins}, levels, rows, ++number);
      }
    }
  }
}

TEST(PageKernelsTest, LargestSumsDoNotOverflow) {
  // Every level, query and weight at its end, at the largest dim: sums of 127 * 32639 * 512 and 127 * 65535 * 128.
  const PageLayout layout{.dim = 512, .bits = 8, .runs = 1, .mins = false};
  const Levels levels = MakeLevels(8, LevelKind::kPlain);
  for (const uint8_t code : {uint8_t{0}, uint8_t{255}}) {
    Buffer keys(layout.Bytes()), values(layout.Bytes());
    const std::vector<uint8_t> codes(16 * 512, code);
    for (Buffer* page : {&keys, &values}) {
      for (int i = 0; i < 128; ++i) reinterpret_cast<f16*>(page->data())[i] = FloatToF16(1);
    }
    for (int64_t block = 0; block < 8; ++block) {
      Pages(Target::kScalar).pack_keys(layout, codes.data(), block, keys.data());
      Pages(Target::kScalar).pack_values(layout, codes.data(), block, values.data());
    }
    const double level = levels.step * double(int(code) - 128);
    for (const Target target : Reachable()) {
      for (const int64_t rows : {1, 4, 8, 16}) {
        Matrix<float> q(rows, 512), acc(rows, 512);
        std::fill_n(q.data(), rows * 512, 3.f);
        std::vector<float> logits(size_t(rows * 128)), p(size_t(rows * 128), 1.f), p_scale(size_t(rows), 1.f);
        RunScore(Pages(target), layout, levels, Precision::kFine, keys, q.View(), 1, logits.data());
        RunSum(Pages(target), layout, levels, Precision::kFine, values, p, p_scale, acc.View());
        for (const float x : logits) ASSERT_NEAR(x / (512 * 3 * level), 1, 1e-4) << Pages(target).name;
        for (int64_t i = 0; i < rows * 512; ++i) ASSERT_NEAR(acc.data()[i] / (128 * level), 1, 1e-4);
      }
    }
  }
}

TEST(PageKernelsTest, ZeroQueriesWeightsAndScales) {
  const PageLayout layout{.dim = 64, .bits = 4, .runs = 2, .mins = true};
  const Levels levels = MakeLevels(4, LevelKind::kTable);
  Buffer page(layout.Bytes());  // all zero: codes, scales, mins
  for (const Target target : Reachable()) {
    for (const Precision precision : {Precision::kFast, Precision::kFine}) {
      for (const int64_t rows : {1, 3, 8, 17}) {
        Matrix<float> q(rows, 64), acc(rows, 64);
        std::vector<float> logits(size_t(rows * 128), 1.f), p(size_t(rows * 128), 0.f), p_scale(size_t(rows), 1.f);
        RunScore(Pages(target), layout, levels, precision, page, q.View(), 1, logits.data());
        RunSum(Pages(target), layout, levels, precision, page, p, p_scale, acc.View());
        for (const float x : logits) ASSERT_EQ(x, 0.f) << Pages(target).name;
        std::fill(p.begin(), p.end(), 1.f);
        RunSum(Pages(target), layout, levels, precision, page, p, p_scale, acc.View());
        for (int64_t i = 0; i < rows * 64; ++i) ASSERT_EQ(acc.data()[i], 0.f) << Pages(target).name;
      }
    }
  }
}

TEST(PageKernelsTest, FwhtEqualsItsDefinition) {
  for (int64_t n = 1; n <= 1024; n *= 2) {
    std::vector<float> x(static_cast<size_t>(n)), plain;
    for (size_t i = 0; i < x.size(); ++i) x[i] = kStream.Sub(9).Gaussian(i);
    plain = x;
    Pages(Target::kScalar).fwht(plain.data(), n);
    for (int64_t i = 0; i < n; i += 1 + n / 50) {
      double want = 0;
      for (int64_t j = 0; j < n; ++j) want += (std::popcount(uint64_t(i & j)) % 2 ? -1 : 1) * double(x[size_t(j)]);
      // log2(n) roundings of numbers that grow to sqrt(n): a few ulps of sqrt(n).
      EXPECT_NEAR(plain[size_t(i)], want, 1e-5 * std::sqrt(double(n)));
    }
    for (const PageKernels* k : FastKernels()) {
      std::vector<float> fast = x;
      k->fwht(fast.data(), n);
      EXPECT_EQ(fast, plain) << k->name << " n " << n;  // the same additions in the same order
    }
  }
}

TEST(PageKernelsTest, NearestCountsThresholds) {
  for (int bits = 1; bits <= 8; ++bits) {
    const int n = (1 << bits) - 1;
    std::vector<float> thresholds(static_cast<size_t>(n)), value(static_cast<size_t>(n) + 1);
    for (int i = 0; i < n; ++i) thresholds[size_t(i)] = 3 * std::tanh(2.f * float(i - n / 2) / float(n));
    for (int i = 0; i <= n; ++i) value[size_t(i)] = float(i - n / 2) * 0.01f + 0.003f;
    for (const int64_t count : {1, 15, 16, 31, 64, 80, 128, 200, 256}) {
      std::vector<float> z(static_cast<size_t>(count));
      for (size_t i = 0; i < z.size(); ++i) z[i] = 1.5f * kStream.Sub(10).Gaussian(i);
      for (int64_t i = 0; i < count; i += 7) z[size_t(i)] = thresholds[size_t(i * 31 % n)];  // ties stay below
      if (count > 100) {
        z[3] = 1e30f;
        z[4] = -1e30f;
      }
      double want = 0, size = 0;
      std::vector<uint8_t> codes(static_cast<size_t>(count)), plain(static_cast<size_t>(count) + 1, 0xEE), fast;
      for (size_t i = 0; i < z.size(); ++i) {
        codes[i] = uint8_t(std::count_if(thresholds.begin(), thresholds.end(), [&](float t) { return t < z[i]; }));
        want += double(z[i]) * value[codes[i]];
        size += std::abs(double(z[i]) * value[codes[i]]);
      }
      fast = plain;
      const float sum =
          Pages(Target::kScalar).nearest(z.data(), count, thresholds.data(), n, value.data(), plain.data());
      EXPECT_TRUE(std::equal(codes.begin(), codes.end(), plain.begin()));
      EXPECT_NEAR(sum, want, 1e-6 * size);
      for (const PageKernels* k : FastKernels()) {
        const float fast_sum = k->nearest(z.data(), count, thresholds.data(), n, value.data(), fast.data());
        EXPECT_EQ(fast, plain) << k->name << " bits " << bits << " n " << count;
        EXPECT_NEAR(fast_sum, want, 1e-6 * size) << k->name;
        EXPECT_EQ(fast_sum, sum) << k->name;  // sixteen partial sums in one order everywhere
      }
    }
  }
}

TEST(PageKernelsTest, ConversionsAgreeOnEveryNumber) {
  // All 16-bit patterns; and floats around every rounding and range boundary of both formats.
  std::vector<uint16_t> half(65536);
  for (size_t i = 0; i < half.size(); ++i) half[i] = uint16_t(i);
  std::vector<float> wide;
  for (uint32_t i = 0; i < 65536; ++i) {
    for (const uint32_t low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      wide.push_back(std::bit_cast<float>((i << 16) | low));
    }
  }
  const auto same = [](float a, float b) {
    return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
  };
  const auto n = int64_t(wide.size()) - 5;  // not a multiple of any register
  std::vector<float> y(half.size());
  std::vector<uint16_t> h(wide.size());
  for (const Target target : Reachable()) {
    const PageKernels& k = Pages(target);
    k.f16_to_f32(half.data(), int64_t(half.size()), y.data());
    for (size_t i = 0; i < half.size(); ++i) ASSERT_TRUE(same(y[i], F16ToFloat(half[i]))) << k.name << " " << i;
    k.bf16_to_f32(half.data(), int64_t(half.size()), y.data());
    for (size_t i = 0; i < half.size(); ++i) ASSERT_TRUE(same(y[i], Bf16ToFloat(half[i]))) << k.name << " " << i;
    std::fill(h.begin(), h.end(), uint16_t{0xEEEE});
    k.f32_to_f16(wide.data(), n, h.data());
    for (int64_t i = 0; i < n; ++i) {
      const float x = wide[size_t(i)];
      ASSERT_TRUE(same(F16ToFloat(h[size_t(i)]), F16ToFloat(FloatToF16(x)))) << k.name << " " << x;
    }
    EXPECT_EQ(h[size_t(n)], 0xEEEE);
    k.f32_to_bf16(wide.data(), n, h.data());
    for (int64_t i = 0; i < n; ++i) {
      const float x = wide[size_t(i)];
      ASSERT_TRUE(same(Bf16ToFloat(h[size_t(i)]), Bf16ToFloat(FloatToBf16(x)))) << k.name << " " << x;
    }
  }
}

TEST(PageKernelsTest, EveryTargetSaysWhatRuns) {
  for (const Target target : Reachable()) {
    EXPECT_FALSE(Pages(target).name.empty());
    EXPECT_LE(int(Pages(target).target), int(target));
  }
}

}  // namespace
}  // namespace croquis::simd
