#include "croquis/attention/partial.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "croquis/base/rng.h"

namespace croquis::attention {
namespace {

struct Owned {
  float m = kEmptyMax, l = 0;
  std::vector<float> a = std::vector<float>(8);
  Partial View() { return {m, l, a}; }
  void Take(const Partial& p) { m = p.m, l = p.l; }
};

struct Keys {
  std::vector<double> x;               // logits
  std::vector<std::vector<double>> v;  // values
};

Keys MakeKeys(uint64_t seed, int n, double offset) {
  const Stream s{seed, Purpose("partial.test")};
  Keys k;
  for (int j = 0; j < n; ++j) {
    k.x.push_back(offset + 3 * double(s.Gaussian(uint64_t(9 * j))));
    std::vector<double> v;
    for (int i = 0; i < 8; ++i) v.push_back(double(s.Gaussian(uint64_t(9 * j + 1 + i))));
    k.v.push_back(v);
  }
  return k;
}

Owned Piece(const Keys& k, size_t begin, size_t end) {
  Owned p;
  if (begin == end) return p;
  double m = -1e300, l = 0;
  std::vector<double> a(8);
  for (size_t j = begin; j < end; ++j) m = std::max(m, k.x[j]);
  for (size_t j = begin; j < end; ++j) {
    const double w = std::exp(k.x[j] - m);
    l += w;
    for (size_t i = 0; i < 8; ++i) a[i] += w * k.v[j][i];
  }
  p.m = float(m), p.l = float(l);
  for (size_t i = 0; i < 8; ++i) p.a[i] = float(a[i]);
  return p;
}

Owned Merged(Owned from, Owned into) {
  Partial p = into.View();
  Merge(from.View(), p);
  into.Take(p);
  return into;
}

// Natural logs of the maximum times mass agree, and so do the normalised sums. Each merge rounds a few times at 6e-8.
void ExpectClose(Owned a, Owned b, double tolerance = 2e-6) {
  std::vector<float> x(8), y(8);
  const float la = Finalize(a.View(), x), lb = Finalize(b.View(), y);
  EXPECT_NEAR(la, lb, tolerance * (1 + std::fabs(lb)));
  for (size_t i = 0; i < 8; ++i) EXPECT_NEAR(x[i], y[i], tolerance * 4);
}

TEST(Partial, SegmentsMergeToTheWhole) {
  for (const double offset : {0.0, 80.0, -80.0}) {
    const Keys k = MakeKeys(1, 400, offset);
    for (const size_t cut : {size_t{0}, size_t{1}, size_t{37}, size_t{399}, size_t{400}})
      ExpectClose(Merged(Piece(k, 0, cut), Piece(k, cut, 400)), Piece(k, 0, 400));
  }
}

TEST(Partial, AssociativeAndCommutative) {
  const Keys k = MakeKeys(2, 300, 0);
  // Far apart in size, as pieces of real attention are.
  Keys shifted = k;
  for (size_t j = 100; j < 200; ++j) shifted.x[j] += 40;
  for (const Keys& keys : {k, shifted}) {
    const Owned a = Piece(keys, 0, 100), b = Piece(keys, 100, 200), c = Piece(keys, 200, 300);
    ExpectClose(Merged(a, Merged(b, c)), Merged(Merged(a, b), c));
    ExpectClose(Merged(a, b), Merged(b, a));
    ExpectClose(Merged(Merged(a, b), c), Piece(keys, 0, 300));
  }
}

TEST(Partial, EmptyIsTheIdentityAndGivesZeros) {
  const Keys k = MakeKeys(3, 10, 5);
  const Owned a = Piece(k, 0, 10), empty;
  for (const Owned& m : {Merged(a, empty), Merged(empty, a)}) {
    EXPECT_EQ(m.m, a.m);
    EXPECT_EQ(m.l, a.l);
    EXPECT_EQ(m.a, a.a);
  }
  Owned nothing = Merged(empty, empty);
  std::vector<float> out(8, 1.f);
  EXPECT_EQ(Finalize(nothing.View(), out), kEmptyMax);
  for (const float x : out) EXPECT_EQ(x, 0.f);
}

TEST(Partial, FinalizeGivesTheNaturalLogOfTheMass) {
  Keys k = MakeKeys(4, 1, 0);
  k.x[0] = 2.5;
  Owned p = Piece(k, 0, 1);
  std::vector<float> out(8);
  EXPECT_FLOAT_EQ(Finalize(p.View(), out), 2.5f);
}

}  // namespace
}  // namespace croquis::attention
