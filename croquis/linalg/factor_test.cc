#include "croquis/linalg/factor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

#include "croquis/base/rng.h"

namespace croquis::linalg {
namespace {

Matrix<float> Random(int64_t rows, int64_t cols, uint64_t seed) {
  Matrix<float> m(rows, cols);
  const Stream s{seed, Purpose("test.factor")};
  for (int64_t i = 0; i < rows * cols; ++i) m.data()[i] = s.Gaussian(uint64_t(i));
  return m;
}

std::vector<double> Weights(int64_t n) {
  std::vector<double> w;
  for (int64_t i = 0; i < n; ++i) w.push_back(0.25 * double(1 + i % 5));
  return w;
}

// sum_j w_j x_j x_j^T, the plain way.
Matrix<double> PlainGram(const Matrix<float>& x, const std::vector<double>& w) {
  Matrix<double> g(x.cols(), x.cols());
  for (int64_t j = 0; j < x.rows(); ++j)
    for (int64_t a = 0; a < x.cols(); ++a)
      for (int64_t b = 0; b < x.cols(); ++b) g.Row(a)[b] += w[size_t(j)] * double(x.Row(j)[a]) * double(x.Row(j)[b]);
  return g;
}

void ExpectNear(const Matrix<double>& a, const Matrix<double>& b, double tolerance) {
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i) ASSERT_NEAR(a.data()[i], b.data()[i], tolerance) << i;
}

TEST(Factor, GramEqualsTheSumAndAdds) {
  for (const int64_t d : {1, 17, 64}) {
    const Matrix<float> x = Random(301, d, 1);
    const std::vector<double> w = Weights(301), ones(301, 1.);
    Matrix<double> g(d, d);
    AddGram(x.View(), w, g.View());
    ExpectNear(g, PlainGram(x, w), 1e-11);
    AddGram(x.View(), {}, g.View());
    Matrix<double> sum = PlainGram(x, w);
    const Matrix<double> more = PlainGram(x, ones);
    for (int64_t i = 0; i < d * d; ++i) sum.data()[i] += more.data()[i];
    ExpectNear(g, sum, 1e-11);
  }
}

TEST(Factor, EigenvaluesAndVectors) {
  const int64_t d = 33;
  const Matrix<float> x = Random(100, d, 2);
  const Matrix<double> a = PlainGram(x, Weights(100));
  std::vector<double> values(d);
  Matrix<double> vectors(d, d);
  ASSERT_TRUE(SymmetricEigen(a.View(), values, vectors.View()));
  Matrix<double> back(d, d);
  for (int64_t e = 0; e < d; ++e) {
    EXPECT_LE(values[size_t(std::max<int64_t>(e, 1) - 1)], values[size_t(e)]);
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j) back.Row(i)[j] += values[size_t(e)] * vectors.Row(e)[i] * vectors.Row(e)[j];
  }
  ExpectNear(back, a, 1e-10);
  Matrix<double> bad(2, 2);
  bad.data()[0] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(SymmetricEigen(bad.View(), std::span(values).first(2), Matrix<double>(2, 2).View()));
}

// The same matrix by every way of building it.
TEST(Factor, AllWaysToBuildAgree) {
  for (const int64_t d : {1, 5, 64, 80}) {
    const int64_t n = 700;
    const Matrix<float> x = Random(n, d, 3);
    const std::vector<double> w = Weights(n);
    std::vector<double> roots;
    for (const double v : w) roots.push_back(std::sqrt(v));
    Matrix<double> want = PlainGram(x, w);
    const auto made = Cholesky::Make(want.View(), 0.5);
    ASSERT_TRUE(made);
    for (int64_t i = 0; i < d; ++i) want.Row(i)[i] += 0.5;

    Cholesky rows(d), ones(d), half(d);
    rows.AddRidge(0.5);
    rows.AddRows(x.View(), roots);
    for (int64_t j = 0; j < n; ++j) {
      std::vector<double> row;
      for (int64_t i = 0; i < d; ++i) row.push_back(roots[size_t(j)] * double(x.Row(j)[i]));
      ones.Add(row);
    }
    ones.AddRidge(0.5);
    half.AddRows(x.View().Rows(0, 300), std::span(roots).first(300));
    Cholesky both(d);
    both.AddRows(x.View().Rows(300, 400), std::span(roots).last(400));
    both.AddRidge(0.5);
    both.Add(half);
    Cholesky thirds(d);
    thirds.Add(both, std::sqrt(1. / 3));
    thirds.Add(both, std::sqrt(2. / 3));
    for (const Cholesky* c : std::initializer_list<const Cholesky*>{&*made, &rows, &ones, &both, &thirds}) {
      Matrix<double> product(d, d);
      c->Product(product.View());
      ExpectNear(product, want, 1e-10);
      EXPECT_NEAR(c->LogDeterminant(), made->LogDeterminant(), 1e-9);
      EXPECT_GT(c->MinPivot(), 0);
    }
  }
}

TEST(Factor, Solves) {
  const int64_t d = 48;
  const Matrix<float> x = Random(300, d, 4), b = Random(7, d, 5);
  Cholesky a(d);
  a.AddRows(x.View());
  Matrix<double> gram(d, d), y(7, d), z(7, d);
  a.Product(gram.View());
  for (int64_t i = 0; i < 7 * d; ++i) y.data()[i] = z.data()[i] = double(b.data()[i]);
  a.Solve(y.View());
  a.SolveLower(z.View());
  Matrix<double> inverse(d, d);
  a.InverseLower(inverse.View());
  std::vector<double> forms(7);
  a.QuadraticForms(b.View(), forms);
  for (int64_t r = 0; r < 7; ++r) {
    double form = 0, square = 0;
    for (int64_t i = 0; i < d; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < d; ++j) sum += gram.Row(i)[j] * y.Row(r)[j];
      EXPECT_NEAR(sum, double(b.Row(r)[i]), 1e-12);
      form += double(b.Row(r)[i]) * y.Row(r)[i];
      square += z.Row(r)[i] * z.Row(r)[i];
      double direct = 0;
      for (int64_t j = 0; j < d; ++j) direct += inverse.Row(i)[j] * double(b.Row(r)[j]);
      EXPECT_NEAR(direct, z.Row(r)[i], 1e-13);
    }
    EXPECT_NEAR(forms[size_t(r)], form, 1e-13);
    EXPECT_NEAR(forms[size_t(r)], square, 1e-13);
  }
}

// A direction a million times weaker than the rest: Householder on the rows resolves it (error about 1e-16 * 1e6),
// a Gram matrix, whose condition number is 1e12, would be 1e-4 off.
TEST(Factor, RowsOfVeryDifferentSizes) {
  const int64_t d = 4, n = 1000;
  Matrix<float> x = Random(n, d, 6);
  double sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i + 1 < d; ++i) x.Row(j)[i] *= 1e6f;
    x.Row(j)[d - 1] = j < 10 ? float(1 + j) : 0.f;
  }
  Cholesky a(d);
  a.AddRows(x.View());
  std::vector<double> tau(size_t(n), 0.);
  a.QuadraticForms(x.View(), tau);
  for (const double t : tau) sum += t;
  EXPECT_NEAR(sum, double(d), 1e-8);  // leverage scores add up to the rank
  Cholesky one(1);
  std::vector<double> alone(10);
  Matrix<float> last(10, 1);
  for (int64_t j = 0; j < 10; ++j) last.data()[j] = x.Row(j)[d - 1];
  one.AddRows(last.View());
  one.QuadraticForms(last.View(), alone);
  for (size_t j = 0; j < 10; ++j) EXPECT_NEAR(tau[j], alone[j], 0.02) << "the others take little of it";
}

TEST(Factor, RefusesWhatIsNotPositiveDefinite) {
  Matrix<double> a(2, 2);
  a.Row(0)[0] = 1, a.Row(1)[1] = -1;
  const auto made = Cholesky::Make(a.View());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, Code::kNumeric);
  EXPECT_TRUE(Cholesky::Make(a.View(), 2));
  a.Row(1)[1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(Cholesky::Make(a.View(), 2));
  EXPECT_EQ(Cholesky(3).MinPivot(), 0);
}

TEST(Factor, CopiesAreIndependent) {
  Cholesky a(2);
  a.AddRidge(4);
  Cholesky b = a;
  const double x[] = {3, 1};
  b.Add(std::span<const double>(x));
  Matrix<double> pa(2, 2), pb(2, 2);
  a.Product(pa.View());
  b.Product(pb.View());
  EXPECT_DOUBLE_EQ(pa.Row(0)[0], 4);
  EXPECT_DOUBLE_EQ(pb.Row(0)[0], 13);
  EXPECT_DOUBLE_EQ(pb.Row(0)[1], 3);
  a = b;
  a.Product(pa.View());
  EXPECT_DOUBLE_EQ(pa.Row(0)[0], 13);
}

}  // namespace
}  // namespace croquis::linalg
