// What sets chosen by leverage are worth for softmax, beside the plainest rivals: keys of largest norm, keys at random.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/attention/lev/test_keys.h"

namespace croquis::attention::lev {
namespace {

using testing::Gaussian;

constexpr int64_t kKeys = 2048, kQueries = 512, kDim = 64, kTop = 128;

struct Data {
  Matrix<float> q, k;
};

Data Independent() { return {Gaussian(kQueries, kDim, 1), Gaussian(kKeys, kDim, 2)}; }

// 24 keys two and a half times as long as the others.
Data LongKeys() {
  Data x = Independent();
  for (int64_t j = 40; j < kKeys; j += 85)
    for (int64_t i = 0; i < kDim; ++i) x.k.Row(j)[i] *= 2.5f;
  return x;
}

// Eight channels in which keys are large and queries small, as models have them; 24 keys that are short there and stand
// out elsewhere. They are no longer than the others.
Data LargeChannels() {
  Data x = Independent();
  for (int64_t j = 0; j < kKeys; ++j)
    for (int64_t i = 0; i < kDim; ++i) x.k.Row(j)[i] *= j % 85 == 40 ? (i < 8 ? .1f : 1.5f) : (i < 8 ? 4.f : .5f);
  for (int64_t r = 0; r < kQueries; ++r)
    for (int64_t i = 0; i < kDim; ++i) x.q.Row(r)[i] *= i < 8 ? .1f : 3.f;
  return x;
}

// A large mean that all keys share, longer than what tells them apart.
Data SharedMean() {
  Data x = LongKeys();
  const Matrix<float> mean = Gaussian(1, kDim, 5);
  for (int64_t j = 0; j < kKeys; ++j)
    for (int64_t i = 0; i < kDim; ++i) x.k.Row(j)[i] += (j % 85 == 40 ? -1.f : 6.f) * mean.Row(0)[i];
  return x;
}

// 16 directions that queries look for, each held by 32 like keys: they share their leverage.
Data ManyLikeKeys() {
  Data x = Independent();
  const Matrix<float> centre = Gaussian(16, kDim, 6);
  for (int64_t j = 0; j < 512; ++j)
    for (int64_t i = 0; i < kDim; ++i) x.k.Row(4 * j)[i] = 2 * centre.Row(j % 16)[i] + .1f * x.k.Row(4 * j)[i];
  for (int64_t r = 0; r < kQueries; ++r)
    for (int64_t i = 0; i < kDim; ++i) x.q.Row(r)[i] = .4f * x.q.Row(r)[i] + .7f * centre.Row(r % 16)[i];
  return x;
}

enum Chooser { kLeverage, kLeverageAboutMean, kLewis4, kNorm, kNormAboutMean, kRandom, kOracle, kChoosers };
constexpr std::array<const char*, kChoosers> kNames = {
    "leverage", "leverage about mean",           "Lewis weights p=4", "norm", "norm about mean",
    "random",   "largest sum of squared weights"};

// Softmax weights [kQueries, kKeys].
Matrix<double> Weights(const Data& x) {
  Matrix<double> p(kQueries, kKeys);
  for (int64_t r = 0; r < kQueries; ++r) {
    const std::span<double> row(p.Row(r), size_t(kKeys));
    double top = -1e300, sum = 0;
    for (int64_t j = 0; j < kKeys; ++j) {
      double dot = 0;
      for (int64_t i = 0; i < kDim; ++i) dot += double(x.q.Row(r)[i]) * double(x.k.Row(j)[i]);
      top = std::max(top, row[size_t(j)] = dot / 8);
    }
    for (double& v : row) sum += v = std::exp(v - top);
    for (double& v : row) v /= sum;
  }
  return p;
}

std::vector<double> Scores(const Data& x, const Matrix<double>& weights, Chooser chooser) {
  Executor executor(2);
  std::vector<double> out(kKeys), mean(kDim);
  Matrix<float> centred(kKeys, kDim + 1);
  for (int64_t j = 0; j < kKeys; ++j)
    for (int64_t i = 0; i < kDim; ++i) mean[size_t(i)] += double(x.k.Row(j)[i]) / kKeys;
  for (int64_t j = 0; j < kKeys; ++j) {
    std::copy_n(x.k.Row(j), kDim, centred.Row(j));
    centred.Row(j)[kDim] = 1;
    double norm = 0;
    for (int64_t i = 0; i < kDim; ++i)
      norm += std::pow(double(x.k.Row(j)[i]) - (chooser == kNormAboutMean ? mean[size_t(i)] : 0), 2);
    out[size_t(j)] = chooser == kRandom ? double(Stream{1, 2}.Uniform(uint64_t(j))) : norm;
  }
  if (chooser == kOracle) {
    std::fill(out.begin(), out.end(), 0.);
    for (int64_t r = 0; r < kQueries; ++r)
      for (size_t j = 0; j < size_t(kKeys); ++j) out[j] += weights.Row(r)[j] * weights.Row(r)[j];
  }
  if (chooser == kLeverage) LeverageScores(executor, x.k.View(), kDefaultRidge, out);
  if (chooser == kLeverageAboutMean) LeverageScores(executor, centred.View(), kDefaultRidge, out);
  if (chooser == kLewis4) LewisWeights(executor, x.k.View(), 4, kDefaultRidge, out, 20);
  return out;
}

struct Coverage {
  double mass = 0;         // of softmax, mean over queries
  double heavy = 0;        // share of the entries of .05 and more
  int64_t heavy_keys = 0;  // how many such entries there are
};

Coverage Cover(const Matrix<double>& weights, const std::vector<double>& scores) {
  std::vector<int64_t> order(kKeys);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return scores[size_t(a)] > scores[size_t(b)]; });
  std::vector<char> in(kKeys);
  for (size_t i = 0; i < kTop; ++i) in[size_t(order[i])] = 1;
  Coverage c;
  int64_t found = 0;
  for (int64_t r = 0; r < kQueries; ++r)
    for (size_t j = 0; j < size_t(kKeys); ++j) {
      const double weight = weights.Row(r)[j];
      if (in[j]) c.mass += weight / kQueries;
      if (weight < .05) continue;
      ++c.heavy_keys;
      found += in[j];
    }
  c.heavy = c.heavy_keys > 0 ? double(found) / double(c.heavy_keys) : 0;
  return c;
}

using Table = std::array<Coverage, kChoosers>;

Table Measure(const char* name, const Data& x) {
  Table table;
  const Matrix<double> weights = Weights(x);
  for (int c = 0; c < kChoosers; ++c) {
    table[size_t(c)] = Cover(weights, Scores(x, weights, Chooser(c)));
    // Read with --gtest_output=json: the table of docs/methods/lev.md.
    ::testing::Test::RecordProperty(std::string(name).append(", ").append(kNames[size_t(c)]),
                                    std::to_string(table[size_t(c)].mass)
                                        .append(" mass, ")
                                        .append(std::to_string(table[size_t(c)].heavy))
                                        .append(" of ")
                                        .append(std::to_string(table[size_t(c)].heavy_keys)));
  }
  return table;
}

TEST(Coverage, IndependentKeysLeaveNothingToChoose) {
  const Table t = Measure("independent", Independent());
  EXPECT_LT(t[kLeverage].mass, .12);  // 128 of 2,048 keys are .0625 of them
  EXPECT_GT(t[kLeverage].mass, .05);
}

TEST(Coverage, LongKeysAreFoundByAnything) {
  const Table t = Measure("long keys", LongKeys());
  EXPECT_GT(t[kLeverage].heavy, .98);
  EXPECT_GT(t[kNorm].heavy, .98);
  EXPECT_LT(t[kRandom].heavy, .3);
}

TEST(Coverage, LeverageFindsWhatNormMisses) {
  const Table t = Measure("large channels", LargeChannels());
  EXPECT_GT(t[kLeverage].heavy, .9);
  EXPECT_LT(t[kNorm].heavy, .3);
  const Table m = Measure("shared mean", SharedMean());
  EXPECT_GT(m[kLeverageAboutMean].heavy, .98);
  EXPECT_LT(m[kNorm].heavy, .3);
  EXPECT_GT(m[kNormAboutMean].heavy, .98);
}

TEST(Coverage, LikeKeysHideFromLeverage) {
  const Table t = Measure("many like keys", ManyLikeKeys());
  EXPECT_LT(t[kLeverage].mass, t[kNorm].mass);
}

}  // namespace
}  // namespace croquis::attention::lev
