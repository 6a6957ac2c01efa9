#include "croquis/model/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "croquis/base/rng.h"

namespace croquis::model {
namespace {

Sampler Make(const SamplerOptions& options) {
  auto sampler = Sampler::Make(options);
  EXPECT_TRUE(sampler) << (sampler ? "" : sampler.error().message);
  return *sampler;
}

std::vector<float> RandomLogits(size_t n, uint64_t seed, float scale = 2) {
  std::vector<float> out(n);
  const Stream stream{seed, Purpose("test.logits")};
  for (size_t i = 0; i < n; ++i) out[i] = scale * stream.Gaussian(i);
  return out;
}

// Probabilities by the steps of transformers' processors, written plainly: every step gives -inf to what it removes,
// and the softmax is taken anew.
std::vector<double> Reference(const SamplerOptions& o, std::vector<double> x, std::span<const int32_t> history) {
  const double none = -std::numeric_limits<double>::infinity();
  std::vector<bool> seen(x.size(), false);
  for (const int32_t id : history) seen[size_t(id)] = true;
  for (size_t i = 0; i < x.size(); ++i) {
    if (seen[i]) x[i] = x[i] < 0 ? x[i] * o.repetition_penalty : x[i] / o.repetition_penalty;
    x[i] /= o.temperature;
  }
  const auto softmax = [](const std::vector<double>& v) {
    double best = v[0], total = 0;
    for (const double e : v) best = std::max(best, e);
    std::vector<double> p(v.size());
    for (size_t i = 0; i < v.size(); ++i) total += p[i] = std::exp(v[i] - best);
    for (double& e : p) e /= total;
    return p;
  };
  if (o.top_k > 0 && size_t(o.top_k) < x.size()) {
    std::vector<double> sorted = x;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& e : x) {
      if (e < sorted[size_t(o.top_k) - 1]) e = none;
    }
  }
  if (o.top_p < 1) {
    const std::vector<double> p = softmax(x);
    std::vector<size_t> order(x.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
    double mass = 0;  // ascending: removed while the sum stays within 1 - top_p, but never the last
    for (size_t i = 0; i + 1 < order.size(); ++i) {
      mass += p[order[i]];
      if (mass <= 1 - o.top_p) x[order[i]] = none;
    }
  }
  if (o.min_p > 0) {
    const std::vector<double> p = softmax(x);
    const double best = *std::max_element(p.begin(), p.end());
    for (size_t i = 0; i < x.size(); ++i) {
      if (p[i] < o.min_p * best) x[i] = none;
    }
  }
  return softmax(x);
}

// Chi-square of 20,000 draws against the reference; cells of an expected count below 10 are joined. A chi-square
// variable X with k degrees of freedom has P(X > k + 2 sqrt(k t) + 2 t) < exp(-t) (Laurent and Massart 2000, lemma 1):
// with t = 12 a right sampler fails with probability below 6e-6 for each case.
void ExpectDistribution(const SamplerOptions& options, std::span<const float> logits,
                        std::span<const int32_t> history) {
  constexpr int kDraws = 20000;
  const Sampler sampler = Make(options);
  const std::vector<double> p = Reference(options, {logits.begin(), logits.end()}, history);
  std::vector<int> counts(logits.size(), 0);
  for (int step = 0; step < kDraws; ++step) {
    const int32_t id = sampler.Sample(logits, history, step);
    ASSERT_GE(id, 0);
    ASSERT_GT(p[size_t(id)], 0) << "token " << id << " should have been removed";
    ++counts[size_t(id)];
  }
  double chi = 0, rest_p = 0, rest_n = 0;
  int cells = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] * kDraws < 10) {
      rest_p += p[i], rest_n += counts[i];
      continue;
    }
    const double d = counts[i] - p[i] * kDraws;
    chi += d * d / (p[i] * kDraws);
    ++cells;
  }
  if (rest_p * kDraws >= 10) {
    const double d = rest_n - rest_p * kDraws;
    chi += d * d / (rest_p * kDraws);
    ++cells;
  }
  const double k = std::max(1, cells - 1), t = 12;
  EXPECT_LT(chi, k + 2 * std::sqrt(k * t) + 2 * t) << "cells " << cells;
}

TEST(Sampler, DistributionsAsTransformers) {
  const std::vector<float> logits = RandomLogits(200, 1);
  const std::vector<int32_t> history = {3, 3, 17, 60, 199};
  const SamplerOptions kCases[] = {
      {.temperature = 1, .seed = 1},
      {.temperature = 0.7, .seed = 2},
      {.temperature = 1.5, .top_k = 20, .seed = 3},
      {.temperature = 1, .top_p = 0.8, .seed = 4},
      {.temperature = 1, .min_p = 0.1, .seed = 5},
      {.temperature = 0.9, .top_k = 50, .top_p = 0.9, .min_p = 0.02, .repetition_penalty = 1.3, .seed = 6},
      {.temperature = 1, .top_k = 1, .seed = 7},
      {.temperature = 1, .top_p = 1e-9, .seed = 8},
  };
  for (const SamplerOptions& options : kCases) ExpectDistribution(options, logits, history);
}

TEST(Sampler, TiesAtTheThresholdStay) {
  // Equal logits: top-k keeps all that equal the k-th.
  const std::vector<float> logits = {1, 2, 2, 2, 0};
  ExpectDistribution({.temperature = 1, .top_k = 2, .seed = 9}, logits, {});
}

TEST(Sampler, Greedy) {
  const std::vector<float> logits = {0, 5, -1, 5, 4};
  EXPECT_EQ(Make({}).Sample(logits, {}, 0), 1);  // ties go to the lowest id
  EXPECT_EQ(Make({.top_k = 1, .top_p = 0.1, .min_p = 0.5}).Sample(logits, {}, 7), 1);
  const std::vector<int32_t> history = {1, 1, 1, -4, 99};  // ids outside are left out; once is as often as thrice
  EXPECT_EQ(Make({.repetition_penalty = 1.2}).Sample(logits, history, 0), 3);
  const std::vector<float> negative = {-1, -1.1f};
  EXPECT_EQ(Make({.repetition_penalty = 2}).Sample(negative, std::vector<int32_t>{0}, 0), 1);  // away from zero
}

TEST(Sampler, ChoicesDependOnStepAndSeedAlone) {
  const std::vector<float> logits = RandomLogits(1000, 2);
  const Sampler a = Make({.temperature = 1, .seed = 1}), b = Make({.temperature = 1, .seed = 2});
  int same_seed = 0, same_step = 0;
  for (int64_t step = 0; step < 200; ++step) {
    EXPECT_EQ(a.Sample(logits, {}, step), a.Sample(logits, {}, step));
    same_seed += a.Sample(logits, {}, step) == b.Sample(logits, {}, step);
    same_step += a.Sample(logits, {}, step) == a.Sample(logits, {}, step + 1);
  }
  // The sum of squared probabilities of these logits is below .1: more than 60 of 200 has probability below 1e-15.
  EXPECT_LT(same_seed, 60);
  EXPECT_LT(same_step, 60);
  // Filters that remove nothing change nothing, in whatever order they sort.
  const Sampler loose = Make({.temperature = 1, .top_k = 1000, .min_p = 1e-30, .seed = 1});
  for (int64_t step = 0; step < 50; ++step) EXPECT_EQ(a.Sample(logits, {}, step), loose.Sample(logits, {}, step));
}

TEST(Sampler, OddLogits) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const Sampler sampler = Make({.temperature = 1, .top_p = 0.9, .seed = 1});
  EXPECT_EQ(sampler.Sample({}, {}, 0), -1);
  EXPECT_EQ(sampler.Sample(std::vector<float>{nan, nan}, {}, 0), 0);
  EXPECT_EQ(sampler.Sample(std::vector<float>{-inf, -inf, -inf}, {}, 0), 0);
  for (int64_t step = 0; step < 50; ++step) {
    EXPECT_EQ(sampler.Sample(std::vector<float>{nan, 1, -inf}, {}, step), 1);
    EXPECT_EQ(sampler.Sample(std::vector<float>{3, inf, 2}, {}, step), 1);
    EXPECT_EQ(Make({.temperature = 1e-300}).Sample(std::vector<float>{1, 1.0001f}, {}, step), 1);
  }
  EXPECT_EQ(Make({}).Sample(std::vector<float>{nan, -5}, {}, 0), 1);
}

// Sorting in growing chunks gives what sorting everything gives.
TEST(Sampler, LargeVocabularies) {
  const std::vector<float> logits = RandomLogits(50000, 3, 0.5f);  // flat: top-p keeps tens of thousands
  const SamplerOptions options{.temperature = 1, .top_p = 0.7, .seed = 4};
  const Sampler sampler = Make(options);
  const std::vector<double> p = Reference(options, {logits.begin(), logits.end()}, {});
  for (int64_t step = 0; step < 50; ++step) EXPECT_GT(p[size_t(sampler.Sample(logits, {}, step))], 0);
}

TEST(Sampler, RangesAreNamed) {
  const std::pair<SamplerOptions, const char*> kCases[] = {{{.temperature = -1}, "temperature"},
                                                           {{.temperature = std::nan("")}, "temperature"},
                                                           {{.top_k = -1}, "top_k"},
                                                           {{.top_p = 0}, "top_p"},
                                                           {{.top_p = 1.1}, "top_p"},
                                                           {{.min_p = 2}, "min_p"},
                                                           {{.repetition_penalty = 0}, "repetition_penalty"}};
  for (const auto& [options, named] : kCases) {
    const auto sampler = Sampler::Make(options);
    ASSERT_FALSE(sampler);
    EXPECT_EQ(sampler.error().code, Code::kOutOfRange);
    EXPECT_NE(sampler.error().message.find(named), std::string::npos);
  }
}

}  // namespace
}  // namespace croquis::model
