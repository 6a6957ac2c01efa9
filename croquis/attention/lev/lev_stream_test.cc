// Decoding with bounded memory against exact attention over everything.
#include "croquis/attention/lev/lev_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "croquis/attention/lev/test_keys.h"
#include "croquis/attention/partial.h"

namespace croquis::attention::lev {
namespace {

using testing::Gaussian;

// Softmax attention of q over the first n keys, in double.
std::vector<double> Exact(const Matrix<float>& k, const Matrix<float>& v, int64_t n, const float* q, float scale,
                          double* lse) {
  std::vector<double> x(static_cast<size_t>(n)), out(static_cast<size_t>(v.cols()));
  double top = -1e300, mass = 0;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k.cols(); ++i) x[size_t(j)] += double(scale) * double(q[i]) * double(k.Row(j)[i]);
    top = std::max(top, x[size_t(j)]);
  }
  for (int64_t j = 0; j < n; ++j) {
    const double w = std::exp(x[size_t(j)] - top);
    mass += w;
    for (size_t c = 0; c < out.size(); ++c) out[c] += w * double(v.Row(j)[c]);
  }
  for (double& o : out) o /= mass;
  *lse = top + std::log(mass);
  return out;
}

double Difference(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double(a[i]) - b[i]) * (double(a[i]) - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

TEST(LevStream, IsExactWhileNothingIsLetGo) {
  const int64_t n = 400, d = 12, dv = 7;
  const Matrix<float> k = Gaussian(n, d, 1), v = Gaussian(n, dv, 2), q = Gaussian(n, d, 3);
  // By eps; by the window; by a sample that holds all the others.
  LevStream::Options by_eps{.dim = d, .value_dim = dv, .scale = .5f, .eps = 1e-6, .window = 0},
      by_window{.dim = d, .value_dim = dv, .scale = .5f, .eps = .9, .window = 1000},
      by_sample{.dim = d, .value_dim = dv, .scale = .5f, .eps = .9, .window = 10, .samples = 1000};
  for (const auto& o : {by_eps, by_window, by_sample}) {
    auto made = LevStream::Make(o);
    ASSERT_TRUE(made);
    LevStream& stream = *made;
    std::vector<float> out(dv, 1.f);
    double est_error = -2, lse = 0;
    EXPECT_EQ(stream.Attend({q.Row(0), size_t(d)}, out, &est_error), kEmptyMax);
    EXPECT_EQ(out, std::vector<float>(dv));
    for (int64_t j = 0; j < n; ++j) {
      stream.Append({k.Row(j), size_t(d)}, {v.Row(j), size_t(dv)});
      const auto want = Exact(k, v, j + 1, q.Row(j), .5f, &lse);
      EXPECT_NEAR(stream.Attend({q.Row(j), size_t(d)}, out, &est_error), lse, 1e-5);
      ASSERT_LT(Difference(out, want), 2e-5) << j;
      EXPECT_EQ(est_error, 0);
    }
    EXPECT_EQ(stream.seen(), n);
  }
}

TEST(LevStream, HoldsTheUniversalSetInBoundedMemory) {
  const int64_t n = 5000, d = 8;
  Matrix<float> k = Gaussian(n, d, 4);
  for (int64_t j = 30; j < n; j += 250)
    for (int64_t i = 0; i < d; ++i) k.Row(j)[i] = 6 * k.Row(j)[i] + 1;
  const Matrix<float> v = Gaussian(n, d, 5);
  LevStream::Options o{.dim = d, .value_dim = d, .eps = .1, .center = false, .window = 100, .samples = 50};
  auto made = LevStream::Make(o);
  ASSERT_TRUE(made);
  Executor executor;
  size_t most = 0;
  int64_t bytes = 0;
  for (int64_t j = 0; j < n; ++j) {
    made->Append({k.Row(j), size_t(d)}, {v.Row(j), size_t(d)});
    most = std::max(most, made->Held().size());
    if (j == n / 2) bytes = made->bytes();
    if (j % 613 != 0) continue;
    std::vector<double> scores(size_t(j + 1));
    LeverageScores(executor, k.View().Rows(0, j + 1), kDefaultRidge, scores);
    const auto held = made->Held();
    for (int64_t l = 0; l <= j; ++l)
      if (scores[size_t(l)] >= .1 || l < 4 || l > j - 100) {
        ASSERT_TRUE(std::binary_search(held.begin(), held.end(), l)) << l << " of " << j;
      }
  }
  EXPECT_LE(double(most), d / .1 + 64 + 100 + 4);
  EXPECT_LE(made->bytes(), bytes * 3 / 2);
}

// A heavy key from long ago is found; a window alone has forgotten it. The sample makes up for the rest.
TEST(LevStream, RemembersAndEstimates) {
  const int64_t n = 4000, d = 16;
  Matrix<float> k = Gaussian(n, d, 6), v = Gaussian(n, d, 7);
  for (int64_t i = 0; i < n * d; ++i) v.data()[i] += 1;
  for (int64_t i = 0; i < d; ++i) {
    k.Row(77)[i] *= 5;
    v.Row(77)[i] = float(10 + i);
  }
  const auto make = [&](double eps, int64_t samples) {
    return std::move(*LevStream::Make(
        {.dim = d, .value_dim = d, .scale = .25f, .eps = eps, .window = 64, .sinks = 4, .samples = samples}));
  };
  LevStream lev = make(.05, 0), with_sample = make(.05, 256), window = make(1, 0);
  for (int64_t j = 0; j < n; ++j)
    for (LevStream* s : {&lev, &with_sample, &window}) s->Append({k.Row(j), size_t(d)}, {v.Row(j), size_t(d)});
  std::vector<float> out(d);
  double lse = 0, est_error = 0, found = 0, lost = 0, sampled = 0, unsampled = 0, told = 0;
  for (uint64_t r = 0; r < 40; ++r) {
    // One query finds key 77 heavy, one looks at everything.
    std::vector<float> needle(d), broad(d);
    for (int64_t i = 0; i < d; ++i) {
      broad[size_t(i)] = Stream{r, 9}.Gaussian(uint64_t(i));
      needle[size_t(i)] = .3f * k.Row(77)[i] + broad[size_t(i)];
    }
    auto want = Exact(k, v, n, needle.data(), .25f, &lse);
    lev.Attend(needle, out, &est_error);
    EXPECT_EQ(est_error, -1);
    found += Difference(out, want) / 40;
    window.Attend(needle, out);
    lost += Difference(out, want) / 40;
    want = Exact(k, v, n, broad.data(), .25f, &lse);
    lev.Attend(broad, out);
    unsampled += Difference(out, want) / 40;
    EXPECT_NEAR(with_sample.Attend(broad, out, &est_error), lse, .5);
    sampled += Difference(out, want) / 40;
    told += est_error / 40;
  }
  EXPECT_LT(found, .02);
  EXPECT_GT(lost, .5);
  EXPECT_LT(sampled, .6 * unsampled);
  EXPECT_LT(sampled, 1.5 * told);
  EXPECT_GT(sampled, .6 * told);
}

TEST(LevStream, RefusesOptionsOutOfRange) {
  const LevStream::Options good{.dim = 4, .value_dim = 4};
  EXPECT_TRUE(LevStream::Make(good));
  const auto refuses = [&](auto change) {
    LevStream::Options o = good;
    change(o);
    const auto made = LevStream::Make(o);
    EXPECT_FALSE(made);
    if (!made) {
      EXPECT_FALSE(made.error().message.empty());
    }
  };
  refuses([](auto& o) { o.dim = 0; });
  refuses([](auto& o) { o.value_dim = 5000; });
  refuses([](auto& o) { o.p = .5; });
  refuses([](auto& o) { o.eps = 0; });
  refuses([](auto& o) { o.eps = std::nan(""); });
  refuses([](auto& o) { o.ridge = 0; });
  refuses([](auto& o) { o.samples = 3; });
  refuses([](auto& o) { o.window = -1; });
  refuses([](auto& o) { o.scale = INFINITY; });
}

}  // namespace
}  // namespace croquis::attention::lev
