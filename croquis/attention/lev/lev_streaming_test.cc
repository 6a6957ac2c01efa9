// The streaming sets against the definition: no key that any query can find heavy is ever missing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "croquis/attention/lev/leverage.h"
#include "croquis/attention/lev/streaming.h"
#include "croquis/attention/lev/test_keys.h"

namespace croquis::attention::lev {
namespace {

using testing::Gaussian;
using testing::LowRank;

struct KeyStream {
  std::string name;
  Matrix<float> keys;
};

void ScaleRow(Matrix<float>& keys, int64_t j, double by) {
  for (int64_t i = 0; i < keys.cols(); ++i) keys.Row(j)[i] = float(double(keys.Row(j)[i]) * by);
}

double Norm(const Matrix<float>& keys, int64_t j) {
  double sum = 0;
  for (int64_t i = 0; i < keys.cols(); ++i) sum += double(keys.Row(j)[i]) * double(keys.Row(j)[i]);
  return sum;
}

Matrix<float> Permuted(const Matrix<float>& keys, const std::vector<int64_t>& order) {
  Matrix<float> out(keys.rows(), keys.cols());
  for (int64_t j = 0; j < keys.rows(); ++j) std::copy_n(keys.Row(order[size_t(j)]), keys.cols(), out.Row(j));
  return out;
}

// Streams made to break a one-pass method: n keys each, d dimensions.
std::vector<KeyStream> AdversarialStreams(int64_t n, int64_t d) {
  std::vector<KeyStream> all;
  const auto add = [&](const char* name, Matrix<float> keys) { all.push_back({name, std::move(keys)}); };
  add("Gaussian", Gaussian(n, d, 1));

  Matrix<float> keys = Gaussian(n, d, 2);
  for (int64_t j = 0; j < n; ++j) ScaleRow(keys, j, std::pow(10, 8. * double(j) / double(n) - 4));
  add("growing norms", std::move(keys));
  keys = Gaussian(n, d, 3);
  for (int64_t j = 0; j < n; ++j) ScaleRow(keys, j, std::pow(10, 4 - 8. * double(j) / double(n)));
  add("shrinking norms", std::move(keys));

  keys = Gaussian(n, d, 4);
  for (int64_t j = 0; j < n; j += 37) ScaleRow(keys, j, 8);
  add("outliers", std::move(keys));

  keys = Gaussian(n, d, 5);
  for (int64_t j = 0; j < n; ++j) std::copy_n(keys.Row(j % 5), d, keys.Row(j));
  add("five keys again and again", std::move(keys));
  keys = Gaussian(n, d, 6);
  for (int64_t j = 100; j < n; ++j) std::copy_n(keys.Row(j % 100), d, keys.Row(j));
  add("a block again and again", std::move(keys));

  // A plane for most of the time, then directions never seen, once each.
  keys = LowRank(n, d, 2, 7);
  const Matrix<float> fresh = Gaussian(d, d, 8);
  for (int64_t i = 0; i < d; ++i) std::copy_n(fresh.Row(i), d, keys.Row(n - d + i));
  add("a plane, then new directions", std::move(keys));
  // A direction at a time: each comes once and is diluted later.
  keys = Matrix<float>(n, d);
  for (int64_t j = 0; j < n; ++j) keys.Row(j)[j * d / n] = float(1 + j % 7);
  add("axes one after another", std::move(keys));

  for (const bool up : {true, false}) {
    keys = Gaussian(n, d, 9);
    for (int64_t j = 0; j < n; ++j) ScaleRow(keys, j, std::exp(double(keys.Row(j)[0])));
    std::vector<int64_t> order(static_cast<size_t>(n));
    for (int64_t j = 0; j < n; ++j) order[size_t(j)] = j;
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return up ? Norm(keys, a) < Norm(keys, b) : Norm(keys, a) > Norm(keys, b); });
    add(up ? "sorted by norm, up" : "sorted by norm, down", Permuted(keys, order));
  }

  keys = Gaussian(n, d, 10);
  for (int64_t j = 0; j < n; ++j) ScaleRow(keys, j, 1e-18);
  add("tiny", std::move(keys));
  keys = Gaussian(n, d, 10);
  for (int64_t j = 0; j < n; ++j) ScaleRow(keys, j, 1e18);
  add("huge", std::move(keys));
  keys = Gaussian(n, d, 11);
  for (int64_t j = 0; j < n; ++j) ScaleRow(keys, j, j % 3 == 0 ? 1e5 : 1);
  add("mixed scales", std::move(keys));
  // Coordinates of very different sizes: the leverage does not see them, a Gram matrix in f32 would.
  keys = Gaussian(n, d, 12);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t i = 0; i < d; ++i) keys.Row(j)[i] *= float(std::pow(10, -4. * double(i) / double(d)));
  add("graded coordinates", std::move(keys));

  keys = Gaussian(n, d, 13);
  for (int64_t j = 0; j < n; ++j)
    if (j % 4 != 1) ScaleRow(keys, j, 0);
  add("zeros between", std::move(keys));
  keys = LowRank(n, d, std::max<int64_t>(1, d / 4), 14);
  for (int64_t j = 0; j < n; j += 29) ScaleRow(keys, j, 5);
  add("low rank with outliers", std::move(keys));
  // Just above the threshold when they come, just below at the end, and the other way around.
  keys = Matrix<float>(n, d);
  for (int64_t j = 0; j < n; ++j) keys.Row(j)[j % d] = j % d == j / d % d ? 3.f : 1.f;
  add("near the threshold", std::move(keys));
  return all;
}

MatView<const float> First(const Matrix<float>& keys, int64_t n) { return keys.View().Rows(0, n); }

TEST(Streaming, NeverMissesAKeyAboveTheThreshold) {
  Executor executor(2);
  for (const int64_t d : {8, 20})
    for (const KeyStream& stream : AdversarialStreams(1500, d))
      for (const double eps : {.02, .1, .5}) {
        StreamingLeverage set({.dim = d, .eps = eps});
        int64_t done = 0;
        // At several times, in the middle of chunks too: the set is universal then, not at the end only.
        for (const int64_t at : {1, 30, 64, 65, 200, 333, 700, 1024, 1499, 1500}) {
          SCOPED_TRACE(stream.name + " d " + std::to_string(d) + " eps " + std::to_string(eps) + " at " +
                       std::to_string(at));
          set.Append(stream.keys.View().Rows(done, at - done));
          done = at;
          std::vector<double> scores(static_cast<size_t>(at));
          LeverageScores(executor, First(stream.keys, at), kDefaultRidge, scores);
          const auto expect_all = [&] {
            const auto kept = set.Kept();
            ASSERT_TRUE(std::is_sorted(kept.begin(), kept.end()));
            for (int64_t j = 0; j < at; ++j)
              if (scores[size_t(j)] >= eps) {
                ASSERT_TRUE(std::binary_search(kept.begin(), kept.end(), j))
                    << j << " of leverage " << scores[size_t(j)];
              }
          };
          expect_all();
          const int64_t open = (at > 333 ? at - 333 : at) % StreamingLeverage::kChunk;  // Prune at 333 closed a chunk
          EXPECT_LE(double(set.Kept().size()), double(d) / eps + double(open));
          if (at != 333 && at != 1500) continue;
          set.Prune();
          expect_all();
          EXPECT_LE(double(set.Kept().size()), double(d) / eps);
          EXPECT_LT(set.Epsilon(), eps);
          EXPECT_LT(set.Margin(), 1e-3);
          // After a check the set is the two-pass set: nothing below it either, up to rounding and the margin.
          for (const int64_t j : set.Kept()) EXPECT_GE(scores[size_t(j)], eps * (1 - 1e-3)) << j;
        }
      }
}

// By its own definition, whatever p: no query of many gives a key that is not in the set eps or more.
TEST(Streaming, NoQueryFindsADroppedKeyHeavy) {
  const int64_t n = 200, d = 4;
  for (const double p : {1., 1.5, 2., 3., 4.})
    for (const KeyStream& stream : AdversarialStreams(n, d)) {
      const double eps = p > 2 ? .25 : .1;
      SCOPED_TRACE(stream.name + " p " + std::to_string(p));
      StreamingLeverage set({.dim = d, .p = p, .eps = eps});
      set.Append(stream.keys.View());
      set.Prune();
      const std::vector<int64_t> kept(set.Kept().begin(), set.Kept().end());
      std::vector<double> scores(static_cast<size_t>(n));
      testing::ForHardQueries(stream.keys, p, 100, [&](const std::vector<double>& y) {
        testing::Score(stream.keys, y, p, scores);
        for (int64_t j = 0; j < n; ++j)
          if (scores[size_t(j)] >= eps) {
            ASSERT_TRUE(std::binary_search(kept.begin(), kept.end(), j)) << j << " has " << scores[size_t(j)];
          }
      });
      if (p <= 2) {
        EXPECT_LE(double(kept.size()), 2 * d / eps);
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
}

// Sets are not only complete but small: for p != 2 within a factor of the bound of the two-pass form.
TEST(Streaming, DropsWhatItCan) {
  Executor executor(2);
  const int64_t n = 6000, d = 4;
  Matrix<float> keys = Gaussian(n, d, 21);
  for (int64_t j = 0; j < n; j += 500) ScaleRow(keys, j, 10);
  for (const double p : {1., 1.5, 2., 3., 4.}) {
    StreamingLeverage set({.dim = d, .p = p, .eps = .05});
    set.Append(keys.View());
    set.Prune();
    std::vector<double> weights(n), bounds(n);
    LewisWeights(executor, keys.View(), p, kDefaultRidge, weights);
    SensitivityBounds(executor, keys.View(), p, kDefaultRidge, weights, bounds);
    const auto two_pass = std::count_if(bounds.begin(), bounds.end(), [](double b) { return b >= .05; });
    EXPECT_GE(int64_t(set.Kept().size()), p == 2 ? two_pass : 0);
    EXPECT_LE(double(set.Kept().size()), 4 * std::pow(d, std::max(1., p / 2)) / .05) << p;
    EXPECT_LT(double(set.Kept().size()), .2 * n) << p;
  }
}

TEST(Streaming, MemoryStaysBounded) {
  const int64_t d = 16;
  const double eps = .1;
  StreamingLeverage set({.dim = d, .eps = eps});
  size_t most = 0;
  for (int64_t piece = 0; piece < 100; ++piece) {
    set.Append(Gaussian(200, d, uint64_t(100 + piece)).View());
    most = std::max(most, set.Kept().size());
  }
  EXPECT_EQ(set.seen(), 20000);
  EXPECT_LE(double(most), double(d) / eps + StreamingLeverage::kChunk);
  EXPECT_LE(set.bytes(), int64_t(most) * (d * 4 + 24) + 2 * 512 * d * 4 + d * d * 28);
}

TEST(Streaming, TopKeepsTheLargestAndSaysWhatThatGuarantees) {
  Executor executor(2);
  const int64_t n = 3000, d = 16, top = 40;
  Matrix<float> keys = Gaussian(n, d, 31);
  for (int64_t j = 50; j < n; j += 150) ScaleRow(keys, j, 7);
  for (const double p : {1., 2., 4.}) {
    StreamingLeverage set({.dim = d, .p = p, .top = top});
    size_t most = 0;
    for (int64_t j = 0; j < n; j += 100) {
      set.Append(keys.View().Rows(j, 100));
      most = std::max(most, set.Kept().size());
    }
    EXPECT_LE(most, size_t(p > 2 ? 2 * top + 5 * 64 : top + top / 4 + 2 * 64));
    set.Prune();
    const auto kept = set.Kept();
    EXPECT_EQ(kept.size(), size_t(top));
    for (int64_t j = 50; j < n; j += 150) EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), j)) << j;
    if (p != 2) continue;
    std::vector<double> scores(n);
    LeverageScores(executor, keys.View(), kDefaultRidge, scores);
    for (int64_t j = 0; j < n; ++j)
      if (scores[size_t(j)] > set.Epsilon()) {
        EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), j));
      }
  }
}

TEST(Streaming, DoesNotDependOnHowKeysArrive) {
  const Matrix<float> keys = Gaussian(1000, 12, 41);
  StreamingLeverage a({.dim = 12, .eps = .02}), b({.dim = 12, .eps = .02});
  a.Append(keys.View());
  for (int64_t j = 0; j < 1000;) {
    const int64_t n = std::min<int64_t>(1 + j % 97, 1000 - j);
    b.Append(keys.View().Rows(j, n));
    j += n;
  }
  EXPECT_EQ(std::vector<int64_t>(a.Kept().begin(), a.Kept().end()),
            std::vector<int64_t>(b.Kept().begin(), b.Kept().end()));
}

TEST(Streaming, ZeroKeysOnly) {
  for (const double p : {1., 2., 4.}) {
    StreamingLeverage set({.dim = 8, .p = p});
    set.Append(Matrix<float>(700, 8).View());
    set.Prune();
    EXPECT_TRUE(set.Kept().empty());
    EXPECT_EQ(set.Epsilon(), 0);
    const Matrix<float> one = Gaussian(1, 8, 1);
    set.Append(one.View());
    set.Prune();
    ASSERT_EQ(set.Kept().size(), 1u);
    EXPECT_EQ(set.Kept()[0], 700);
  }
}

}  // namespace
}  // namespace croquis::attention::lev
