// Polynomial attention: forms against each other and against double precision, the sketch against its expectation.
#include "croquis/attention/polysketch/polysketch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "croquis/attention/partial.h"
#include "croquis/attention/test_problem.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using polysketch::PolyConfig;
using polysketch::PolyForm;
using polysketch::PolySketchState;
using polysketch::SketchKind;
using testing::Answer;
using testing::Case;
using testing::RandomProblem;
using testing::RandomTensor;

std::string Name(const Case& c) {
  return "heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " nq " + std::to_string(c.nq) +
         " nk " + std::to_string(c.nk) + " dim " + std::to_string(c.dim) + "/" + std::to_string(c.value_dim) +
         (c.causal ? " causal" : "");
}

Answer RunMethod(const std::string& method, const Problem& p, int threads = 2, RunReport* report = nullptr) {
  Answer answer(p);
  Executor executor(threads);
  const auto made = Make(method, 5);
  EXPECT_TRUE(made) << made.error().message;
  const Status ran = Run(executor, **FindMethod("polysketch"), **made, p, answer.View(), report);
  EXPECT_TRUE(ran) << ran.error().message;
  return answer;
}

ErrorReport Errors(const Problem& p, Answer& got, Answer& want) {
  Executor executor(2);
  return Compare(executor, p, got.View(), want.View());
}

Answer Reference(const std::string& method, const Problem& p) {
  Answer answer(p);
  Executor executor(2);
  const auto made = Make(method);
  EXPECT_TRUE((*made)->RunReference(executor, p, answer.View()));
  return answer;
}

// The definition with sketched weights, row by row in double; exact weights within a block when mixed.
Answer Naive(const PolyConfig& config, const Problem& p) {
  Answer answer(p);
  const Output out = answer.View();
  const PolyForm form(config, p.q.dim, p.scale);
  const int64_t nq = p.q.rows, nk = p.k.rows, d = p.q.dim, r = form.rank();
  std::vector<float> x(size_t(nq * d)), y(size_t(nk * d)), mx(size_t(nq * r)), my(size_t(nk * r)),
      scratch(size_t(form.ScratchFloats(std::max(nq, nk)))), v(static_cast<size_t>(p.v.dim));
  const auto dot = [](const float* a, const float* b, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; ++i) s += double(a[i]) * double(b[i]);
    return s;
  };
  for (int64_t h = 0; h < p.q.heads; ++h) {
    form.Prepare(p.q.Head(h), true, x.data());
    form.Prepare(p.k.Head(h / p.Group()), false, y.data());
    form.Sketch(x.data(), nq, mx.data(), r, scratch.data());
    form.Sketch(y.data(), nk, my.data(), r, scratch.data());
    for (int64_t i = 0; i < nq; ++i) {
      const int64_t last = p.Visible(i).last, block = last == 0 ? 0 : (last - 1) / config.block * config.block;
      double mass = double(form.bias());
      std::vector<double> sum(static_cast<size_t>(p.v.dim));
      for (int64_t j = 0; j < last; ++j) {
        const bool exact = config.mixed && j >= block;
        const double w = exact ? std::pow(dot(&x[size_t(i * d)], &y[size_t(j * d)], d), config.degree)
                               : std::pow(dot(&mx[size_t(i * r)], &my[size_t(j * r)], r), 2);
        mass += w;
        p.v.Head(h / p.Group()).Read(j, v.data());
        for (int64_t c = 0; c < p.v.dim; ++c) sum[size_t(c)] += w * double(v[size_t(c)]);
      }
      for (int64_t c = 0; c < p.v.dim; ++c)
        out.Head(h, nq, p.v.dim)(i, c) = last == 0 ? 0.f : float(sum[size_t(c)] / mass);
      out.lse[h * nq + i] = last == 0 ? kEmptyMax : form.Lse(float(mass));
    }
  }
  return answer;
}

const Case kCases[] = {
    {.nq = 512, .nk = 512, .dim = 16, .value_dim = 32, .causal = true},
    {.heads = 4, .kv_heads = 2, .nq = 131, .nk = 131, .dim = 24, .value_dim = 17, .causal = true},
    {.heads = 2, .kv_heads = 2, .nq = 61, .nk = 331, .dim = 16, .value_dim = 16, .causal = true},
    {.nq = 331, .nk = 61, .dim = 16, .value_dim = 16, .causal = true},  // the first 270 rows see nothing
    {.heads = 3, .kv_heads = 1, .nq = 67, .nk = 293, .dim = 16, .value_dim = 40},
    {.nq = 1, .nk = 97, .dim = 7, .value_dim = 3, .causal = true},
    {.nq = 1, .nk = 1, .dim = 1, .value_dim = 1, .causal = true},
    {.nq = 5, .nk = 1, .dim = 3, .value_dim = 5},
};

TEST(PolySketch, BlockFormEqualsTheNaiveFormOnEveryTarget) {
  for (const simd::Target target : simd::Reachable()) {
    SCOPED_TRACE(simd::Name(target));
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    for (const Case& c : kCases)
      for (const int degree : {4, 8})
        for (const int64_t block : {16, 48, 256})
          for (const bool mixed : {false, true}) {
            if (mixed && !c.causal) continue;
            if (target != simd::Reachable().back() && block != 48) continue;
            SCOPED_TRACE(Name(c) + " degree " + std::to_string(degree) + " block " + std::to_string(block));
            const RandomProblem r(c);
            PolyConfig config;
            config.degree = degree, config.rank = 12, config.block = block, config.mixed = mixed, config.seed = 5;
            Answer want = Naive(config, r.problem);
            Answer got = RunMethod("polysketch:degree=" + std::to_string(degree) +
                                       ",r=12,block=" + std::to_string(block) + ",mixed=" + std::to_string(int(mixed)),
                                   r.problem);
            const ErrorReport e = Errors(r.problem, got, want);
            EXPECT_LT(e.row_max, 1e-5);
            EXPECT_LT(e.lse_max, 1e-5);
          }
  }
  ASSERT_TRUE(simd::Force(""));
}

TEST(PolySketch, ExactFormsEqualTheReference) {
  for (const Case& base : kCases)
    for (const simd::RowType type : {simd::RowType::kF32, simd::RowType::kBf16, simd::RowType::kF16})
      for (const char* method : {"polysketch:degree=2", "polysketch:degree=2,block=32,normalise=0,bias=2.5",
                                 "polysketch:degree=4,sketch=none", "polysketch:degree=6,sketch=none,bias=0"}) {
        Case c = base;
        c.type = type;
        SCOPED_TRACE(Name(c) + " " + method);
        const RandomProblem r(c);
        RunReport report;
        Answer got = RunMethod(method, r.problem, 2, &report), want = Reference(method, r.problem);
        const ErrorReport e = Errors(r.problem, got, want);
        // dim = 1: layer-normalised rows are 0 up to rounding of the mean, which is exact there.
        EXPECT_LT(e.row_max, 2e-5);
        if (c.dim > 3) {
          EXPECT_LT(e.lse_max, 2e-5);
        }
        EXPECT_EQ(report.est_error, 0);
      }
}

// dim = 7 has 28 features: 97 keys go through the state, and through pairs where there is none.
TEST(PolySketch, StatesOfSquaresEqualPairs) {
  const RandomProblem r({.heads = 2, .kv_heads = 1, .nq = 97, .nk = 97, .dim = 7, .value_dim = 9, .causal = true});
  RunReport by_state, by_pairs;
  Answer a = RunMethod("polysketch:degree=2,block=16", r.problem, 2, &by_state);
  const RandomProblem few({.heads = 2, .kv_heads = 1, .nq = 29, .nk = 29, .dim = 7, .value_dim = 9, .causal = true});
  RunMethod("polysketch:degree=2,block=16", few.problem, 2, &by_pairs);
  Answer want = Reference("polysketch:degree=2", r.problem);
  EXPECT_LT(Errors(r.problem, a, want).row_max, 1e-5);
  EXPECT_NE(by_state.pairs, by_state.exact_pairs);
  EXPECT_EQ(by_pairs.pairs, by_pairs.exact_pairs);
}

TEST(PolySketch, SymmetricFeaturesEqualTheFullSquare) {
  const int64_t r = 19, rows = 5;
  const linear::FeatureMap map = linear::FeatureMap::Square(r);
  EXPECT_EQ(map.features(), r * (r + 1) / 2);
  RandomTensor x(1, 1, rows + 1, r), y(2, 1, rows, r);
  std::vector<float> yt(size_t(r * linear::kTileStep)), state(size_t(map.StateFloats(rows))),
      scratch(size_t(map.ScratchFloats(linear::kTileStep)));
  linear::Transpose(y.f32(), r, rows, r, yt.data(), linear::kTileStep);
  Matrix<float> one_hot(rows, rows), out(rows, rows);
  for (int64_t i = 0; i < rows; ++i) one_hot.Row(i)[i] = 1;
  std::vector<float> mass(static_cast<size_t>(rows));
  map.Add(yt.data(), linear::kTileStep, one_hot.View(), state.data(), scratch.data());
  map.Apply(x.f32(), r, state.data(), out.View(), mass.data(), scratch.data());
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < rows; ++j) {
      double full = 0;
      for (int64_t u = 0; u < r; ++u)
        for (int64_t v = 0; v < r; ++v)
          full += double(x.f32()[i * r + u]) * double(x.f32()[i * r + v]) * double(y.f32()[j * r + u]) *
                  double(y.f32()[j * r + v]);
      EXPECT_NEAR(out.Row(i)[j], full, 1e-5 * (1 + full));
      sum += full;
    }
    EXPECT_NEAR(mass[size_t(i)], sum, 1e-5 * (1 + sum));
  }
}

// E <M(x), M(y)> = <x, y>^t. The estimate of one draw has a standard deviation of about c / sqrt(r) of |x|^t |y|^t: for
// Gaussian matrices c^2 = (1 + 2 cos^2)^2 - cos^4 <= 8 at t = 2, at most that to the third power (both branches, and
// the product above them) at t = 4; no more for the Hadamard form. The mean of `draws` is tested at 5 standard errors,
// failure probability 6e-7 a comparison.
TEST(PolySketch, SketchesAreUnbiased) {
  const int64_t dim = 8, r = 8;
  RandomTensor x(1, 1, 1, dim), y(2, 1, 1, dim);
  double xx = 0, yy = 0, xy = 0;
  for (int64_t i = 0; i < dim; ++i) {
    y.f32()[i] = .8f * x.f32()[i] + .6f * y.f32()[i];  // a cosine of about .8
    xx += double(x.f32()[i]) * double(x.f32()[i]), yy += double(y.f32()[i]) * double(y.f32()[i]);
    xy += double(x.f32()[i]) * double(y.f32()[i]);
  }
  const double cosine = xy / std::sqrt(xx * yy);
  for (const SketchKind kind : {SketchKind::kGaussian, SketchKind::kSrht})
    for (const int power : {2, 4}) {
      const int draws = power == 2 ? 4000 : 20000;
      double sum = 0, squares = 0;
      std::vector<float> a(static_cast<size_t>(r)), b(static_cast<size_t>(r));
      for (int draw = 0; draw < draws; ++draw) {
        const polysketch::PolySketch sketch(dim, power, r, kind, uint64_t(draw));
        std::vector<float> scratch(size_t(sketch.ScratchFloats(1)));
        sketch.Apply(MatView<const float>(x.f32(), 1, dim), a.data(), r, scratch.data());
        sketch.Apply(MatView<const float>(y.f32(), 1, dim), b.data(), r, scratch.data());
        double s = 0;
        for (int64_t i = 0; i < r; ++i) s += double(a[size_t(i)]) * double(b[size_t(i)]);
        s /= std::pow(xx * yy, power / 2.0);
        sum += s, squares += s * s;
      }
      const double mean = sum / draws, error = std::sqrt((squares / draws - mean * mean) / draws);
      const double want = std::pow(cosine, power);
      EXPECT_NEAR(mean, want, 5 * error) << int(kind) << " " << power;
      // Tight enough to see the scale of the reference code, which is low by 1 / r.
      EXPECT_LT(5 * error, .25 * want) << int(kind) << " " << power;
    }
}

// Spec 4.5: root mean square error of <M(q), M(k)> for unit vectors is about 1.05 / sqrt(r).
TEST(PolySketch, ErrorFallsWithTheRank) {
  const int64_t dim = 64, n = 200;
  RandomTensor x(1, 1, n, dim), y(2, 1, n, dim);
  for (RandomTensor* t : {&x, &y})
    for (int64_t i = 0; i < n; ++i) {
      double norm = 0;
      for (int64_t c = 0; c < dim; ++c) norm += std::pow(double(t->f32()[i * dim + c]), 2);
      for (int64_t c = 0; c < dim; ++c) t->f32()[i * dim + c] /= float(std::sqrt(norm));
    }
  for (const int64_t r : {16, 64, 256}) {
    double squares = 0;
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const polysketch::PolySketch sketch(dim, 2, r, SketchKind::kGaussian, seed);
      std::vector<float> a(size_t(n * r)), b(size_t(n * r)), scratch(size_t(sketch.ScratchFloats(n)));
      sketch.Apply(MatView<const float>(x.f32(), n, dim), a.data(), r, scratch.data());
      sketch.Apply(MatView<const float>(y.f32(), n, dim), b.data(), r, scratch.data());
      for (int64_t i = 0; i < n; ++i) {
        double s = 0, xy = 0;
        for (int64_t c = 0; c < r; ++c) s += double(a[size_t(i * r + c)]) * double(b[size_t(i * r + c)]);
        for (int64_t c = 0; c < dim; ++c) xy += double(x.f32()[i * dim + c]) * double(y.f32()[i * dim + c]);
        squares += std::pow(s - xy * xy, 2) / double(4 * n);
      }
    }
    EXPECT_NEAR(std::sqrt(squares * double(r)), 1.05, .25) << r;
  }
}

// Layer-normalised Gaussian rows, or rows of six clusters (spread .4) with values that follow the cluster: the
// generators of the spec's check c8.
RandomProblem SpecProblem(bool clustered) {
  const int64_t n = 512, dim = 64;
  RandomProblem r({.nq = n, .nk = n, .dim = dim, .value_dim = dim, .causal = true}, 11);
  if (!clustered) return r;
  RandomTensor centres(5, 1, 6, dim);
  const Stream random{7, Purpose("polysketch.test.clusters")};
  for (int64_t i = 0; i < n; ++i) {
    const float *of_q = centres.f32() + random.U32(uint64_t(2 * i)) % 6 * dim,
                *of_k = centres.f32() + random.U32(uint64_t(2 * i + 1)) % 6 * dim;
    for (int64_t x = 0; x < dim; ++x) {
      float &q = r.q.f32()[i * dim + x], &k = r.k.f32()[i * dim + x];
      q = of_q[x] + .4f * q, k = of_k[x] + .4f * k;
      r.v.f32()[i * dim + x] += of_k[x];
    }
  }
  return r;
}

// Spec 4.5: |A~ - A|_F / sqrt(sum |q|^8 |k|^8) at degree 4 on Gaussian rows, the norm of the paper's theorem.
TEST(PolySketch, ErrorInTheNormOfTheTheorem) {
  const RandomProblem r = SpecProblem(false);
  const int64_t n = 512, dim = 64;
  const std::pair<int64_t, double> table[] = {{16, .18}, {32, .083}, {64, .037}, {128, .019}};
  const auto dot = [](const float* u, const float* v, int64_t m) {
    float s[8] = {};
    for (int64_t i = 0; i < m; i += 8)
      for (int l = 0; l < 8; ++l) s[l] += u[i + l] * v[i + l];
    return (s[0] + s[1] + s[2] + s[3]) + (s[4] + s[5] + s[6] + s[7]);
  };
  std::vector<float> x(size_t(n * dim)), y(x.size()), exact(size_t(n * n));
  for (const auto& [rank, want] : table) {
    std::vector<double> errors;
    for (uint64_t seed = 0; seed < 5; ++seed) {
      PolyConfig config;
      config.rank = rank, config.seed = seed;
      const PolyForm form(config, dim, 1);
      std::vector<float> a(size_t(n * rank)), b(a.size()), scratch(size_t(form.ScratchFloats(n)));
      form.Prepare(r.problem.q.Head(0), true, x.data());
      form.Prepare(r.problem.k.Head(0), false, y.data());
      form.Sketch(x.data(), n, a.data(), rank, scratch.data());
      form.Sketch(y.data(), n, b.data(), rank, scratch.data());
      if (exact[0] == 0)
        for (int64_t i = 0; i < n * n; ++i) {
          const float s = dot(&x[size_t(i / n * dim)], &y[size_t(i % n * dim)], dim);
          exact[size_t(i)] = s * s * s * s;
        }
      double squares = 0;  // rows have norm 1 up to the normalisation's eps
      for (int64_t i = 0; i < n * n; ++i) {
        const float s = dot(&a[size_t(i / n * rank)], &b[size_t(i % n * rank)], rank);
        squares += std::pow(double(s * s - exact[size_t(i)]), 2);
      }
      errors.push_back(std::sqrt(squares) / double(n));
    }
    std::sort(errors.begin(), errors.end());
    RecordProperty(std::string("r") + std::to_string(rank), std::to_string(errors[2]));
    EXPECT_NEAR(errors[2], want, .35 * want) << rank;  // one draw there, the median of five here
  }
}

// Spec 4.5: |O~ - O|_F / |O|_F against exact weights of degree 4, causal, on clusters; the sketch alone and with exact
// weights within blocks of 64. One draw there, the median of five here.
TEST(PolySketch, OutputErrorOnClusters) {
  struct Row {
    int64_t rank;
    double sketch, mixed;
  };
  const Row table[] = {{32, .33, .24}, {64, .21, .16}, {128, .13, .085}};
  const RandomProblem r = SpecProblem(true);
  Answer want = Reference("polysketch", r.problem);
  for (const Row& row : table)
    for (const bool mixed : {false, true}) {
      std::vector<double> errors;
      for (int seed = 0; seed < 5; ++seed) {
        Answer got = RunMethod("polysketch:block=64,r=" + std::to_string(row.rank) + ",seed=" + std::to_string(seed) +
                                   ",mixed=" + std::to_string(int(mixed)),
                               r.problem);
        errors.push_back(Errors(r.problem, got, want).frobenius);
      }
      std::sort(errors.begin(), errors.end());
      const double expected = mixed ? row.mixed : row.sketch;
      RecordProperty(std::string("r") + std::to_string(row.rank) + (mixed ? "_mixed" : "_sketch"),
                     std::to_string(errors[2]));
      EXPECT_LT(errors[2], 1.6 * expected) << row.rank << " " << mixed;
      EXPECT_GT(errors[2], expected / 2) << row.rank << " " << mixed;
    }
}

TEST(PolySketch, ChangingATokenChangesNoEarlierRow) {
  for (const char* method : {"polysketch:r=12,block=16", "polysketch:r=12,block=16,mixed=1",
                             "polysketch:degree=2,block=16", "polysketch:sketch=none", "polysketch:degree=8,r=8"}) {
    RandomProblem r({.heads = 2, .kv_heads = 1, .nq = 300, .nk = 300, .dim = 7, .value_dim = 8, .causal = true});
    const Answer before = RunMethod(method, r.problem);
    const int64_t changed = 151;
    for (int64_t c = 0; c < 7; ++c) r.k.f32()[changed * 7 + c] *= -3;
    for (int64_t c = 0; c < 8; ++c) r.v.f32()[changed * 8 + c] += 100;
    const Answer after = RunMethod(method, r.problem);
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < changed; ++i)
        for (int64_t c = 0; c < 8; ++c)
          ASSERT_EQ(before.out[size_t((h * 300 + i) * 8 + c)], after.out[size_t((h * 300 + i) * 8 + c)])
              << method << " row " << i;
    EXPECT_NE(before.out[size_t(changed * 8)], after.out[size_t(changed * 8)]);
  }
}

TEST(PolySketch, TheNumberOfThreadsChangesNothing) {
  for (const char* method : {"polysketch:block=16", "polysketch:block=32,mixed=1", "polysketch:sketch=none"}) {
    const RandomProblem r(
        {.heads = 4, .kv_heads = 2, .nq = 700, .nk = 700, .dim = 20, .value_dim = 24, .causal = true});
    const Answer one = RunMethod(method, r.problem, 1), three = RunMethod(method, r.problem, 3);
    EXPECT_EQ(one.out, three.out) << method;
    EXPECT_EQ(one.lse, three.lse) << method;
  }
}

TEST(PolySketch, StreamingEqualsTheBlockForm) {
  for (const bool mixed : {false, true})
    for (const int degree : {2, 4, 8}) {
      const Case c{.nq = 150, .nk = 150, .dim = 12, .value_dim = 10, .causal = true};
      const RandomProblem r(c);
      PolyConfig config;
      config.degree = degree, config.rank = 9, config.block = 32, config.mixed = mixed, config.seed = 5;
      auto state = PolySketchState::Make(config, c.dim, c.value_dim, r.problem.scale);
      ASSERT_TRUE(state) << state.error().message;
      Answer streamed(r.problem);
      std::vector<float> q(12), k(12), v(10);
      EXPECT_EQ(state->Attend(q, v), kEmptyMax);
      for (int64_t i = 0; i < c.nk; ++i) {
        r.problem.q.Head(0).Read(i, q.data());
        r.problem.k.Head(0).Read(i, k.data());
        r.problem.v.Head(0).Read(i, v.data());
        state->Append(k, v);
        streamed.lse[size_t(i)] = state->Attend(q, {streamed.out.data() + i * 10, 10});
      }
      EXPECT_EQ(state->tokens(), c.nk);
      Answer block =
          RunMethod("polysketch:r=9,block=32,degree=" + std::to_string(degree) + ",mixed=" + std::to_string(int(mixed)),
                    r.problem);
      const ErrorReport e = Errors(r.problem, streamed, block);
      EXPECT_LT(e.row_max, 1e-5) << degree;
      EXPECT_LT(e.lse_max, 1e-5) << degree;
    }
}

TEST(PolySketch, RefusesWhatItCannotDo) {
  EXPECT_FALSE(Make("polysketch:degree=3"));
  EXPECT_FALSE(Make("polysketch:degree=6"));
  EXPECT_TRUE(Make("polysketch:degree=6,sketch=none"));
  PolyConfig config;
  config.sketch.reset();
  EXPECT_FALSE(PolySketchState::Make(config, 8, 8));
  config.degree = 2;
  EXPECT_FALSE(PolySketchState::Make(config, 0, 8));
  EXPECT_FALSE(PolySketchState::Make(config, 8, 5000));
  EXPECT_TRUE(PolySketchState::Make(config, 8, 8));
  Executor executor(1);
  const RandomProblem r({.nq = 4, .nk = 4, .dim = 8, .value_dim = 8});
  Answer out(r.problem);
  const auto mixed = Make("polysketch:mixed=1");
  EXPECT_EQ(attention::Run(executor, **FindMethod("polysketch"), **mixed, r.problem, out.View()).error().code,
            Code::kUnsupported);
  // Without normalisation weights can leave f32, and that is said.
  const RandomProblem large({.nq = 40, .nk = 40, .dim = 8, .value_dim = 8, .size = 1e6});
  Answer other(large.problem);
  for (const char* method : {"polysketch:normalise=0,degree=8,sketch=none", "polysketch:normalise=0,degree=8"}) {
    const auto made = Make(method);
    const Status ran = attention::Run(executor, **FindMethod("polysketch"), **made, large.problem, other.View());
    ASSERT_FALSE(ran) << method;
    EXPECT_EQ(ran.error().code, Code::kNumeric);
  }
}

}  // namespace
}  // namespace croquis::attention
