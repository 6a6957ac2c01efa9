// Third-order attention: exact and by monomial features against the definition in double, and the bound.
#include "croquis/attention/tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "croquis/attention/partial.h"
#include "croquis/attention/test_problem.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using tensor::Series;
using testing::Answer;
using testing::RandomTensor;

struct TensorCase {
  int64_t heads = 1, kv_heads = 1, nq = 48, nk = 48, dim = 4, value_dim = 4;
  float bound = 1;  // entries are uniform in [-bound, bound]
  bool causal = false;
  bool second = true;  // own k2 and v2
  simd::RowType type = simd::RowType::kF32;
};

// Uniform entries, scale 1 / dim as in the paper.
struct TensorProblem {
  RandomTensor q, k, v, k2, v2;
  Problem problem;

  explicit TensorProblem(const TensorCase& c, uint64_t seed = 1)
      : q(1, c.heads, c.nq, c.dim, c.type),
        k(2, c.kv_heads, c.nk, c.dim, c.type),
        v(3, c.kv_heads, c.nk, c.value_dim, c.type),
        k2(4, c.kv_heads, c.nk, c.dim, c.type),
        v2(5, c.kv_heads, c.nk, c.value_dim, c.type) {
    uint64_t at = 0;
    const Stream random{seed, Purpose("tensor.test")};
    for (RandomTensor* t : {&q, &k, &v, &k2, &v2}) {
      const TensorView view = t->View();
      for (int64_t i = 0; i < view.heads * view.rows * view.dim; ++i)
        t->Set(i, c.bound * (2 * random.Uniform(at++) - 1));
    }
    problem = {q.View(), k.View(), v.View(), 1 / float(c.dim), {c.causal, c.nk - c.nq, 0}};
    if (c.second) problem.k2 = k2.View(), problem.v2 = v2.View();
  }
};

Status RunInto(const std::string& method, const Problem& p, Answer& answer, RunReport* report = nullptr,
               int threads = 2) {
  Executor executor(threads);
  const auto made = Make(method);
  if (!made) return made.error();
  return Run(executor, **FindMethod("tensor"), **made, p, answer.View(), report);
}

Answer Definition(const Problem& p) {
  Answer answer(p);
  Executor executor(2);
  EXPECT_TRUE((*Make("tensor"))->RunReference(executor, p, answer.View()));
  return answer;
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(double(a[i]) - double(b[i])));
  return most;
}

const TensorCase kCases[] = {
    {.heads = 1, .nq = 48, .nk = 48},
    {.heads = 4, .kv_heads = 2, .nq = 67, .nk = 67, .dim = 5, .value_dim = 17, .causal = true},
    {.heads = 2, .kv_heads = 1, .nq = 7, .nk = 83, .dim = 3, .value_dim = 64, .causal = true},
    {.nq = 83, .nk = 7, .dim = 3, .value_dim = 9, .causal = true},  // the first 76 rows see nothing
    {.heads = 3, .kv_heads = 3, .nq = 5, .nk = 70, .dim = 2, .value_dim = 33, .second = false},
    {.nq = 1, .nk = 1, .dim = 1, .value_dim = 1, .causal = true},
    {.heads = 2, .nq = 31, .nk = 31, .dim = 4, .value_dim = 8, .causal = true, .type = simd::RowType::kBf16},
};

TEST(Tensor, ExactAndFeaturesEqualTheDefinitionOnEveryTarget) {
  for (const simd::Target target : simd::Reachable()) {
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    for (const TensorCase& c : kCases)
      for (const char* method :
           {"tensor:variant=exact", "tensor:eps=0.000001", "tensor:eps=0.000001,series=chebyshev"}) {
        SCOPED_TRACE(std::string(simd::Name(target)) + " " + method + " nq " + std::to_string(c.nq) + " nk " +
                     std::to_string(c.nk) + " dim " + std::to_string(c.dim));
        const TensorProblem t(c);
        Answer got(t.problem), want = Definition(t.problem);
        RunReport report;
        const Status ran = RunInto(method, t.problem, got, &report);
        ASSERT_TRUE(ran) << ran.error().message;
        EXPECT_LT(LargestDifference(got.out, want.out), 4e-6);
        for (size_t i = 0; i < got.lse.size(); ++i) ASSERT_NEAR(got.lse[i], want.lse[i], 1e-5) << i;
        EXPECT_EQ(report.fallback_rows, 0);
        EXPECT_LT(report.est_error, 1e-4);
      }
  }
  ASSERT_TRUE(simd::Force(""));
}

// An offset puts queries before and past the keys.
TEST(Tensor, QueriesMayStandAnywhere) {
  for (const int64_t offset : {-5, 3, 40}) {
    TensorProblem t({.heads = 2, .nq = 30, .nk = 31, .dim = 3, .value_dim = 6, .causal = true});
    t.problem.mask.offset = offset;
    Answer got(t.problem), want = Definition(t.problem);
    ASSERT_TRUE(RunInto("tensor:degree=6", t.problem, got));
    EXPECT_LT(LargestDifference(got.out, want.out), 4e-6) << offset;
  }
}

// Spec 7.5: the largest error at n = 48, dim 4, by the bound on entries and the degree: one draw there, the median of
// nine here. Between draws the largest error varies by a factor of three, so the median is held to twice the table.
TEST(Tensor, ErrorsByBoundAndDegree) {
  struct Row {
    float bound;
    int degree;
    double error;
  };
  const Row table[] = {{.5f, 1, 9e-7},  {.5f, 2, 7e-9},    {1, 1, 1.7e-4},   {1, 2, 1e-5},
                       {1, 3, 1.5e-6},  {1, 4, 8.6e-8},    {1.5f, 1, 9e-3},  {1.5f, 2, 1.6e-3},
                       {1.5f, 3, 6e-4}, {1.5f, 4, 1.2e-4}, {1.5f, 6, 6.9e-6}};
  for (const Row& row : table) {
    std::vector<double> errors;
    for (uint64_t seed = 1; seed <= 9; ++seed) {
      const TensorProblem t({.bound = row.bound}, seed);
      Answer got(t.problem), want = Definition(t.problem);
      const Status ran = RunInto("tensor:check=0,degree=" + std::to_string(row.degree), t.problem, got);
      ASSERT_TRUE(ran) << ran.error().message;
      errors.push_back(LargestDifference(got.out, want.out));
    }
    std::sort(errors.begin(), errors.end());
    EXPECT_LT(errors[4], 2.2 * row.error + 1e-7) << row.bound << " " << row.degree;
    if (row.bound == 1 && row.degree == 3) {
      EXPECT_LT(errors[4], 2e-6);
    }
  }
}

TEST(Tensor, RefusesEntriesOutsideTheBound) {
  const TensorProblem t({.bound = 3});
  Answer out(t.problem);
  const Status ran = RunInto("tensor:degree=3", t.problem, out);
  ASSERT_FALSE(ran);
  EXPECT_EQ(ran.error().code, Code::kOutOfRange);
  for (const char* part : {"B = 2.9", "logits may reach", "variant=exact", "check=0"})
    EXPECT_NE(ran.error().message.find(part), std::string::npos) << ran.error().message;
  // What the message asks for is enough: entries that much smaller are taken.
  const std::string& text = ran.error().message;
  const double smaller = std::stod(text.substr(text.find("with entries ") + 13));
  EXPECT_GT(smaller, 1);
  const TensorProblem fits({.bound = float(3 / (1.01 * smaller))});
  EXPECT_TRUE(RunInto("tensor:degree=3", fits.problem, out));
  // No degree that this many features allow does for large heads.
  const TensorProblem wide({.nq = 8, .nk = 8, .dim = 64, .value_dim = 8, .bound = 2});
  Answer other(wide.problem);
  EXPECT_FALSE(RunInto("tensor", wide.problem, other));
  EXPECT_FALSE(RunInto("tensor:degree=5", wide.problem, other));
  EXPECT_TRUE(RunInto("tensor:variant=exact", wide.problem, other));
}

// Degree 1 far outside the bound: weights 1 + s turn negative, and rows whose sum does are computed exactly.
TEST(Tensor, RowsWithoutAPositiveNormaliserAreExact) {
  TensorProblem t({.nq = 40, .nk = 40, .dim = 2, .value_dim = 3, .bound = 6, .causal = true});
  Answer got(t.problem), want = Definition(t.problem);
  RunReport report;
  ASSERT_TRUE(RunInto("tensor:degree=1,check=0", t.problem, got, &report));
  ASSERT_GT(report.fallback_rows, 0);
  int64_t exact = 0;
  for (int64_t i = 0; i < 40; ++i) {
    double difference = 0;
    for (int64_t c = 0; c < 3; ++c)
      difference =
          std::max(difference, std::abs(double(got.out[size_t(i * 3 + c)]) - double(want.out[size_t(i * 3 + c)])));
    exact += difference < 1e-4;
  }
  EXPECT_GE(exact, report.fallback_rows);
}

TEST(Tensor, ThePolynomialsErrorIsWhatItSays) {
  for (const Series series : {Series::kTaylor, Series::kChebyshev})
    for (const double largest : {.01, .5, 1., 3., 8.})
      for (const int degree : {1, 2, 5, 10}) {
        const tensor::Polynomial p = tensor::ExpPolynomial(series, degree, largest);
        ASSERT_EQ(p.degree(), degree);
        double worst = 0;
        for (int i = -777; i <= 777; ++i) {
          const double s = largest * i / 777;
          double value = 0;
          for (size_t t = p.coefficients.size(); t-- > 0;) value = value * s + p.coefficients[t];
          worst = std::max(worst, std::abs(value * std::exp(-s) - 1));
        }
        EXPECT_LT(worst, p.relative_error * 1.001 + 1e-12) << largest << " " << degree;
        EXPECT_GT(worst, p.relative_error * .99 - 1e-12) << largest << " " << degree;
      }
}

TEST(Tensor, MonomialsSpanThePowers) {
  for (const int64_t dim : {1, 2, 5})
    for (const int degree : {1, 3, 4}) {
      const tensor::Monomials m(dim, degree);
      EXPECT_EQ(m.count(), tensor::Monomials::Count(dim, degree, 1 << 20));
      const std::vector<float> c = m.Coefficients(tensor::ExpPolynomial(tensor::Series::kTaylor, degree, 1), .7);
      RandomTensor x(9, 1, 3, dim);
      std::vector<std::vector<float>> f(3, std::vector<float>(size_t(m.count())));
      for (int64_t r = 0; r < 3; ++r) m.Evaluate(x.f32() + r * dim, f[size_t(r)].data());
      double s = 0, sum = 0, want = 0, term = 1;
      for (int64_t i = 0; i < dim; ++i)
        s += .7 * double(x.f32()[i]) * double(x.f32()[dim + i]) * double(x.f32()[2 * dim + i]);
      for (size_t i = 0; i < c.size(); ++i) sum += double(c[i]) * double(f[0][i]) * double(f[1][i]) * double(f[2][i]);
      for (int t = 0; t <= degree; ++t, term *= s / t) want += term;
      EXPECT_NEAR(sum, want, 1e-5 * (1 + std::abs(want))) << dim << " " << degree;
    }
}

TEST(Tensor, ChangingATokenChangesNoEarlierRow) {
  EXPECT_FALSE((*FindMethod("tensor"))->strict_causal(*ResolveSpec("tensor")));
  for (const char* method : {"tensor:degree=4", "tensor:variant=exact"}) {
    ASSERT_TRUE((*FindMethod("tensor"))->strict_causal(*ResolveSpec(method)));
    TensorProblem t({.heads = 2, .nq = 150, .nk = 150, .dim = 3, .value_dim = 5, .bound = .8f, .causal = true});
    Answer before(t.problem), after(t.problem);
    ASSERT_TRUE(RunInto(method, t.problem, before));
    const int64_t changed = 71;
    for (int64_t c = 0; c < 3; ++c) t.k.Set(changed * 3 + c, 1.1f), t.k2.Set(changed * 3 + c, -1.1f);
    for (int64_t c = 0; c < 5; ++c) t.v.Set(changed * 5 + c, 50), t.v2.Set(changed * 5 + c, -50);
    const Status ran = RunInto(method, t.problem, after);
    ASSERT_TRUE(ran) << ran.error().message;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < changed * 5; ++i)
        ASSERT_EQ(before.out[size_t(h * 750 + i)], after.out[size_t(h * 750 + i)]) << method << " " << i / 5;
    EXPECT_NE(before.out[size_t(changed * 5)], after.out[size_t(changed * 5)]);
  }
}

TEST(Tensor, TheNumberOfThreadsChangesNothing) {
  for (const bool causal : {false, true})
    for (const char* method : {"tensor:degree=4", "tensor:variant=exact"}) {
      const TensorProblem t({.heads = 4, .kv_heads = 2, .nq = 90, .nk = 90, .value_dim = 20, .causal = causal});
      Answer one(t.problem), three(t.problem);
      ASSERT_TRUE(RunInto(method, t.problem, one, nullptr, 1));
      ASSERT_TRUE(RunInto(method, t.problem, three, nullptr, 3));
      EXPECT_EQ(one.out, three.out);
      EXPECT_EQ(one.lse, three.lse);
    }
}

TEST(Tensor, SecondKeysAreChecked) {
  TensorProblem t({});
  Answer out(t.problem);
  Problem p = t.problem;
  p.k2.dim = 3;
  EXPECT_EQ(RunInto("tensor", p, out).error().code, Code::kInvalidArgument);
  Executor executor(1);
  const auto exact = Make("exact");
  EXPECT_EQ(attention::Run(executor, **FindMethod("exact"), **exact, t.problem, out.View()).error().code,
            Code::kUnsupported);
  t.v2.Set(5, std::numeric_limits<float>::quiet_NaN());
  const Status ran = RunInto("tensor", t.problem, out);
  EXPECT_EQ(ran.error().code, Code::kNumeric);
  EXPECT_NE(ran.error().message.find("v2"), std::string::npos);
  // Products of entries that leave f32.
  TensorProblem large({.bound = 1e25f});
  EXPECT_EQ(RunInto("tensor:variant=exact", large.problem, out).error().code, Code::kNumeric);
  EXPECT_EQ(RunInto("tensor", large.problem, out).error().code, Code::kOutOfRange);
}

}  // namespace
}  // namespace croquis::attention
