// The two forms of subgen against exact sums.
#include <gtest/gtest.h>

#include <cmath>

#include "croquis/base/dtype.h"
#include "croquis/kvcache/policies/policy.h"

namespace croquis::kvcache {
namespace {

constexpr int64_t kDim = 16;

struct Tokens {
  Matrix<float> k, v;  // [n, kDim], k after RoPE; rounded to f16
};

RopeInfo TestRope() {
  RopeInfo rope;
  for (int64_t i = 0; i < kDim / 2; ++i) rope.inv_freq.push_back(std::pow(1000.0, -2.0 * double(i) / kDim));
  return rope;
}

void Rotate(const RopeInfo& rope, int64_t position, float* x) {
  for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
    const double a = rope.inv_freq[i] * double(position), re = double(x[i]), im = double(x[i + rope.inv_freq.size()]);
    x[i] = float(re * std::cos(a) - im * std::sin(a));
    x[i + rope.inv_freq.size()] = float(re * std::sin(a) + im * std::cos(a));
  }
}

// `clusters` centres, members with `spread` around them, in a fixed pseudo-random order; values Gaussian.
Tokens Planted(int64_t n, int64_t clusters, float spread, const RopeInfo& rope) {
  const Stream s{5, Purpose("subgen.test")};
  Tokens t{Matrix<float>(n, kDim), Matrix<float>(n, kDim)};
  for (int64_t p = 0; p < n; ++p) {
    const auto c = int64_t(s.Sub(1).U32(uint64_t(p)) % uint64_t(clusters));
    for (int64_t i = 0; i < kDim; ++i) {
      t.k.Row(p)[i] = s.Sub(2).Gaussian(uint64_t(c * kDim + i)) + spread * s.Sub(3).Gaussian(uint64_t(p * kDim + i));
      t.v.Row(p)[i] = F16ToFloat(FloatToF16(s.Sub(4).Gaussian(uint64_t(p * kDim + i))));
    }
    Rotate(rope, p, t.k.Row(p));
    for (int64_t i = 0; i < kDim; ++i) t.k.Row(p)[i] = F16ToFloat(FloatToF16(t.k.Row(p)[i]));
  }
  return t;
}

std::unique_ptr<const Policy> Make(const std::string& method, uint64_t seed, const RopeInfo& rope) {
  auto made = MakePolicy(
      method, {.spec = {}, .head_dim = kDim, .sinks = 0, .ring = 0, .capacity = 1 << 20, .rope = rope, .seed = seed});
  EXPECT_TRUE(made) << made.error().message;
  return *std::move(made);
}

PolicyState Feed(const Policy& policy, const Tokens& t) {
  PolicyState state(policy.Layout(0));
  std::vector<uint16_t> k(size_t(kPolicyRun * kDim)), v(k.size());
  for (int64_t p = 0; p < t.k.rows(); p += kPolicyRun) {
    for (size_t i = 0; i < k.size(); ++i) k[i] = FloatToF16(t.k.Row(p)[i]), v[i] = FloatToF16(t.v.Row(p)[i]);
    policy.Absorb({.k = reinterpret_cast<const std::byte*>(k.data()),
                   .v = reinterpret_cast<const std::byte*>(v.data()),
                   .mass = nullptr,
                   .position = p,
                   .head = 0},
                  state);
  }
  EXPECT_TRUE(policy.Valid(state)) << policy.Method();
  return state;
}

// sum e^<q,k> v and sum e^<q,k>.
struct Sums {
  std::array<double, kDim> values{};
  double mass = 0;
};

template <class Row>
void AddRow(const std::vector<double>& q, const Row& k, const Row& v, double weight, bool values, bool mass, Sums& to) {
  double dot = 0;
  for (size_t i = 0; i < size_t(kDim); ++i) dot += q[i] * double(k[i]);
  const double w = weight * std::exp(dot);
  if (mass) to.mass += w;
  for (size_t i = 0; i < size_t(kDim) && values; ++i) to.values[i] += w * double(v[i]);
}

Sums Exact(const std::vector<double>& q, const Tokens& t) {
  Sums s;
  for (int64_t p = 0; p < t.k.rows(); ++p) AddRow(q, t.k.Row(p), t.v.Row(p), 1, true, true, s);
  return s;
}

Sums Estimated(const std::vector<double>& q, const Policy& policy, const PolicyState& state) {
  Sums s;
  std::vector<float> k(kDim), v(kDim);
  for (const KeptRows& kept : policy.View(state))
    for (int64_t r = 0; r < kept.rows; ++r) {
      const bool values = kept.use != KeptRows::Use::kMass, mass = kept.use != KeptRows::Use::kValues;
      for (int64_t i = 0; i < kDim; ++i) {
        k[size_t(i)] = F16ToFloat(reinterpret_cast<const uint16_t*>(kept.k)[r * kDim + i]);
        v[size_t(i)] = values ? F16ToFloat(reinterpret_cast<const uint16_t*>(kept.v)[r * kDim + i]) : 0;
      }
      const double weight = kept.log2_weight == nullptr ? 1 : std::exp2(double(kept.log2_weight[r]));
      AddRow(q, k.data(), v.data(), weight, values, mass, s);
    }
  return s;
}

std::vector<double> Query(double size) {
  std::vector<double> q;
  for (int64_t i = 0; i < kDim; ++i)
    q.push_back(size * double(Stream{8, Purpose("subgen.test.q")}.Gaussian(uint64_t(i))));
  return q;
}

double Difference(const Sums& a, const Sums& b) {
  double d = 0, n = 0;
  for (size_t i = 0; i < size_t(kDim); ++i)
    d += std::pow(a.values[i] / a.mass - b.values[i] / b.mass, 2), n += std::pow(b.values[i] / b.mass, 2);
  return std::sqrt(d / n);
}

TEST(SubgenPaper, ExactWhenEverythingFits) {
  // 4 clusters of about 24 keys, at most 64 kept of each; room for more samples than there are values.
  const Tokens t = Planted(96, 4, 0.1f, TestRope());
  const auto policy = Make("subgen:variant=paper,slots=1000,clusters=4,samples=64", 1, TestRope());
  const PolicyState state = Feed(*policy, t);
  EXPECT_LE(state.header().rows[0], 4);
  const auto q = Query(0.5);
  EXPECT_LT(Difference(Estimated(q, *policy, state), Exact(q, t)), 1e-6);
  EXPECT_NEAR(Estimated(q, *policy, state).mass / Exact(q, t).mass, 1, 1e-6);
}

// The centres are keys before RoPE: one of each planted cluster, although the keys that come in have turned.
TEST(SubgenPaper, FindsPlantedClustersBeneathRope) {
  const RopeInfo rope = TestRope();
  const Tokens t = Planted(512, 6, 0.05f, rope);
  const auto policy = Make("subgen:variant=paper,slots=1000,clusters=6", 1, rope);
  const PolicyState state = Feed(*policy, t);
  ASSERT_EQ(state.header().rows[0], 6);
  const Stream s{5, Purpose("subgen.test")};
  for (int64_t c = 0; c < 6; ++c) {
    int64_t near = 0;
    for (int64_t x = 0; x < 6; ++x) {
      double distance = 0;
      for (int64_t i = 0; i < kDim; ++i)
        distance += std::pow(double(F16ToFloat(state.Part<uint16_t>(0)[x * kDim + i])) -
                                 double(s.Sub(2).Gaussian(uint64_t(c * kDim + i))),
                             2);
      near += distance < 1;  // |noise|^2 is .04; centres are 2 * kDim = 32 apart
    }
    EXPECT_EQ(near, 1) << c;
  }
}

// The root mean square error of the normaliser over seeds falls as t^-1/2. 96 seeds: its relative standard error is
// 1 / sqrt(192) = .072, that of the slope over a factor of 16 sqrt(2) * .072 / ln 16 = .037; sampling 64 of some 256
// without replacement adds ln(sqrt(3/4)) / ln 16 = -.05. Bounds: 4 standard errors, failing once in 10,000 tries.
TEST(SubgenPaper, ErrorFallsWithTheRootOfTheSamples) {
  const Tokens t = Planted(1024, 4, 0.3f, {});
  const auto q = Query(0.5);
  const double exact = Exact(q, t).mass;
  std::vector<double> error;
  for (const int64_t samples : {4, 64}) {
    double sum = 0;
    for (uint64_t seed = 0; seed < 96; ++seed) {
      const auto policy =
          Make("subgen:variant=paper,slots=1500,clusters=4,samples=" + std::to_string(samples), seed, {});
      sum += std::pow(Estimated(q, *policy, Feed(*policy, t)).mass / exact - 1, 2);
    }
    error.push_back(std::sqrt(sum / 96));
  }
  const double slope = std::log(error[1] / error[0]) / std::log(16.0);
  EXPECT_NEAR(slope, -0.525, 0.025 + 4 * 0.037) << error[0] << " " << error[1];
  EXPECT_LT(error[0], 0.5);
}

// Mean over 3,000 seeds within 5 standard errors (a failure in 10^6), for the normaliser and every value coordinate.
TEST(SubgenPaper, SumsAreUnbiased) {
  const Tokens t = Planted(96, 8, 0.5f, {});
  const auto q = Query(0.5);
  const Sums exact = Exact(q, t);
  constexpr int kRuns = 3000;
  std::array<double, kDim + 1> sum{}, square{};
  for (uint64_t seed = 0; seed < kRuns; ++seed) {
    const auto policy = Make("subgen:variant=paper,slots=100,clusters=5,samples=2", seed, {});
    const PolicyState state = Feed(*policy, t);
    ASSERT_LT(state.header().rows[1], 96);
    const Sums s = Estimated(q, *policy, state);
    for (size_t i = 0; i <= size_t(kDim); ++i) {
      const double x = i < size_t(kDim) ? s.values[i] : s.mass;
      sum[i] += x, square[i] += x * x;
    }
  }
  for (size_t i = 0; i <= size_t(kDim); ++i) {
    const double mean = sum[i] / kRuns, deviation = std::sqrt(square[i] / kRuns - mean * mean);
    EXPECT_NEAR(mean, i < size_t(kDim) ? exact.values[i] : exact.mass, 5 * deviation / std::sqrt(double(kRuns))) << i;
  }
}

// A value 100 times as long as the others has nine tenths of |v|^2: each of 24 slots misses it with probability .1.
TEST(SubgenPaper, OneLongValueIsKept) {
  Tokens t = Planted(1024, 8, 0.5f, {});
  for (int64_t i = 0; i < kDim; ++i) t.v.Row(100)[i] *= 100;
  const auto policy = Make("subgen:variant=paper,slots=100", 3, {});
  const PolicyState state = Feed(*policy, t);
  const KeptRows samples = policy->View(state)[1];
  int64_t found = 0;
  for (int64_t r = 0; r < samples.rows; ++r)
    found += std::fabs(F16ToFloat(reinterpret_cast<const uint16_t*>(samples.v)[r * kDim])) ==
             std::fabs(F16ToFloat(FloatToF16(t.v.Row(100)[0])));
  EXPECT_GT(found, samples.rows / 2);
}

TEST(SubgenMerge, DuplicatesMergeWithoutError) {
  // 40 distinct tokens, each some 25 times.
  const Tokens few = Planted(40, 40, 0, {});
  Tokens t{Matrix<float>(1024, kDim), Matrix<float>(1024, kDim)};
  for (int64_t p = 0; p < 1024; ++p) {
    const auto which = int64_t(Stream{2, Purpose("subgen.test")}.U32(uint64_t(p)) % 40);
    std::copy_n(few.k.Row(which), kDim, t.k.Row(p));
    std::copy_n(few.v.Row(which), kDim, t.v.Row(p));
  }
  const auto policy = Make("subgen:slots=110", 1, {});
  const PolicyState state = Feed(*policy, t);
  EXPECT_EQ(policy->View(state)[0].rows, 64);
  const auto q = Query(0.5);
  EXPECT_LT(Difference(Estimated(q, *policy, state), Exact(q, t)), 1e-5);
  EXPECT_NEAR(Estimated(q, *policy, state).mass / Exact(q, t).mass, 1, 1e-5);
}

// A token unlike all others keeps a row of its own, bit for bit, with weight 1.
TEST(SubgenMerge, ANeedleSurvives) {
  Tokens t = Planted(2048, 8, 0.3f, {});
  for (int64_t i = 0; i < kDim; ++i) t.k.Row(700)[i] = i == 3 ? 6.f : -1.f;
  const auto policy = Make("subgen:slots=110", 1, {});
  const PolicyState state = Feed(*policy, t);
  const KeptRows kept = policy->View(state)[0];
  int64_t found = 0;
  for (int64_t r = 0; r < kept.rows; ++r) {
    bool same = true;
    for (int64_t i = 0; i < kDim; ++i)
      same = same && reinterpret_cast<const uint16_t*>(kept.k)[r * kDim + i] == FloatToF16(t.k.Row(700)[i]) &&
             reinterpret_cast<const uint16_t*>(kept.v)[r * kDim + i] == FloatToF16(t.v.Row(700)[i]);
    found += same && kept.log2_weight[r] == 0;
  }
  EXPECT_EQ(found, 1);
}

// 2,048 tokens of 8 tight clusters in 64 rows, against as many of the most recent tokens.
TEST(SubgenMerge, ClustersCostLessThanForgetting) {
  const Tokens t = Planted(2048, 8, 0.1f, {});
  const auto q = Query(0.5);
  const auto merge = Make("subgen:slots=110", 1, {}), window = Make("window:slots=110", 1, {});
  const double merged = Difference(Estimated(q, *merge, Feed(*merge, t)), Exact(q, t));
  const double recent = Difference(Estimated(q, *window, Feed(*window, t)), Exact(q, t));
  EXPECT_LT(merged, 0.25 * recent) << merged << " " << recent;
}

}  // namespace
}  // namespace croquis::kvcache
