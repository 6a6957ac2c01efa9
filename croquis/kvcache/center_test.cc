#include "croquis/kvcache/center.h"

#include <cmath>

#include "croquis/kvcache/impl.h"
#include "croquis/kvcache/test_cache.h"

namespace croquis::kvcache {
namespace {

using testing::Config;
using testing::Fill;
using testing::MakeCache;

RopeInfo Rope(int64_t pairs, bool interleaved, double base = 10000) {
  RopeInfo r;
  r.interleaved = interleaved;
  for (int64_t i = 0; i < pairs; ++i) r.inv_freq.push_back(std::pow(base, -double(i) / double(pairs)));
  return r;
}

// R_p mu in double, from the definition.
std::vector<double> Rotated(const RopeInfo& rope, const std::vector<double>& mu, int64_t position) {
  std::vector<double> x = mu;
  const size_t n = rope.inv_freq.size();
  for (size_t i = 0; i < n; ++i) {
    const size_t a = rope.interleaved ? 2 * i : i, b = rope.interleaved ? 2 * i + 1 : i + n;
    const double angle = rope.inv_freq[i] * double(position);
    x[a] = mu[a] * std::cos(angle) - mu[b] * std::sin(angle);
    x[b] = mu[a] * std::sin(angle) + mu[b] * std::cos(angle);
  }
  return x;
}

// Full, interleaved and partial rotary, and none at all.
TEST(Center, FindsAndRemovesTheCommonPart) {
  const int64_t d = 64;
  for (const RopeInfo& rope : {Rope(32, false), Rope(32, true), Rope(16, false), Rope(12, true), RopeInfo()}) {
    const RopeTable table(rope, d);
    const Stream stream{1, Purpose("center.test")};
    std::vector<double> mu(static_cast<size_t>(d));
    for (size_t i = 0; i < mu.size(); ++i) mu[i] = 5 * double(stream.Gaussian(i));
    CenterEstimate estimate(table);
    const int64_t first = 1003, tokens = 144;
    Matrix<float> k(tokens, d);
    for (int64_t t = 0; t < tokens; ++t) {
      const auto r = Rotated(rope, mu, first + t);
      for (int64_t i = 0; i < d; ++i)
        k.Row(t)[i] = float(r[size_t(i)] + double(stream.Gaussian(uint64_t(1000 + t * d + i))));
      estimate.Add(k.Row(t), first + t);
    }
    const Center center = estimate.Decide(codecs::Center::kAuto);
    ASSERT_TRUE(center.decided);
    ASSERT_GT(center.pairs, 20);
    // Every kept pair is mu within 6 standard errors of a mean of 144 unit Gaussians, and f16's rounding.
    for (size_t s = 0; s < center.pairs; ++s) {
      const auto [a, b] = table.Dims(center.pair[s]);
      EXPECT_NEAR(double(F16ToFloat(center.mu[2 * s])), mu[size_t(a)], 6 / 12.0 + 0.01);
      EXPECT_NEAR(double(F16ToFloat(center.mu[2 * s + 1])), mu[size_t(b)], 6 / 12.0 + 0.01);
    }
    // Removing takes out R_p mu exactly (1e-5 of its size), for any page and slot; adding undoes it.
    std::vector<double> kept(static_cast<size_t>(d));
    for (size_t s = 0; s < center.pairs; ++s) {
      const auto [a, b] = table.Dims(center.pair[s]);
      kept[size_t(a)] = double(F16ToFloat(center.mu[2 * s])),
      kept[size_t(b)] = double(F16ToFloat(center.mu[2 * s + 1]));
    }
    for (const int64_t page_start : {0, 4, 900, 131076})
      for (const int64_t slot : {0, 16, 112}) {
        Matrix<float> x(16, d);
        AddCommon(table, center, page_start, slot, 1.f, x.View());
        for (int64_t t = 0; t < 16; ++t) {
          const auto want = Rotated(rope, kept, page_start + slot + t);
          for (int64_t i = 0; i < d; ++i) ASSERT_NEAR(double(x.Row(t)[i]), want[size_t(i)], 1e-5 * 40) << i;
        }
        AddCommon(table, center, page_start, slot, -1.f, x.View());
        for (int64_t i = 0; i < 16 * d; ++i) ASSERT_EQ(x.data()[i], 0.f);
      }
  }
}

TEST(Center, AutoPaysForItselfOnly) {
  const RopeInfo rope = Rope(32, false);
  const RopeTable table(rope, 64);
  const Stream stream{2, Purpose("center.test")};
  for (const double size : {0.0, 0.3, 0.5, 1.0, 3.0}) {
    CenterEstimate estimate(table);
    // The common part lies in two slow pairs; its square is size^2 times the residual energy, 64.
    std::vector<double> mu(64);
    mu[30] = mu[63] = size * std::sqrt(32.0);
    for (int64_t t = 0; t < 400; ++t) {
      std::vector<float> k(64);
      const auto r = Rotated(rope, mu, t);
      for (size_t i = 0; i < 64; ++i) k[i] = float(r[i] + double(stream.Gaussian(uint64_t(t) * 64 + i)));
      estimate.Add(k.data(), t);
    }
    const Center by_auto = estimate.Decide(codecs::Center::kAuto), always = estimate.Decide(codecs::Center::kRope);
    EXPECT_EQ(by_auto.pairs > 0, size * size > CenterEstimate::kPays) << size;
    EXPECT_EQ(estimate.Decide(codecs::Center::kNone).pairs, 0);
    if (size >= 0.5) {
      EXPECT_EQ(always.pairs, 2) << size;
    }
    if (by_auto.pairs > 0) {
      EXPECT_EQ(by_auto.pair[0], 30);
      EXPECT_EQ(by_auto.pair[1], 31);
    }
  }
}

TEST(Center, CacheStoresLessAndReportsIt) {
  for (const char* center : {"none", "auto", "rope"}) {
    const bool on = center[0] != 'n';
    auto cache = MakeCache(Config(std::string("k=eden:bits=4,center=") + center + ",v=eden:bits=4"));
    Fill(*cache, 400, 50, 20);  // the common part is 20 times a coordinate's spread: 2.5 times the residual's norm
    const Report r = cache->GetReport();
    EXPECT_EQ(r.centered_heads, on ? 4 : 0) << center;
    EXPECT_EQ(r.centered_pairs > 0, on) << center;
    // Decoded keys: the error of a 4-bit code is .0093 of the energy that was stored.
    double error = 0, energy = 0;
    const HeadView view = ViewHead(*cache, 0, 0);
    const auto k = testing::Rows(cache->config(), 0, true, 0, 400, 20);
    for (int64_t t = 0; t < view.encoded; ++t) {
      std::vector<float> x(64);
      const MatView<float> row(x.data(), 1, 64);
      view.key->Decode(view.KeyPage(t / 128), t % 128, row);
      if (view.center) AddCommon(*view.rope, *view.center, 4 + t / 128 * 128, t % 128, 1.f, row);
      for (int64_t i = 0; i < 64; ++i) error += std::pow(double(x[size_t(i)] - k.Row(4 + t)[i]), 2), energy += 1;
    }
    // Residual energy 1 a number, plus at most 5 % and the estimate's own 1/144; 16 rows' spread is below 20 %.
    if (on) {
      EXPECT_LT(error / energy, 1.2 * 0.0097 * 1.06) << center;
    } else {
      EXPECT_GT(error / energy, 4 * 0.0093) << center;
    }
  }
}

}  // namespace
}  // namespace croquis::kvcache
