// HyperAttention on heads of known structure: errors beside the published variant, and the statistics of its samples.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "croquis/attention/hyper/test_data.h"
#include "croquis/attention/test_run.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Head;
using testing::HeadData;
using testing::Reference;
using testing::RunOn;

struct Mean {
  double op = 0, pairs = 0;
};
Mean MeanError(const std::string& method, const Problem& p, Answer& want, int seeds) {
  Mean mean;
  for (int seed = 1; seed <= seeds; ++seed) {
    Answer got(p);
    mean.pairs += RunOn(method, p, got, uint64_t(seed)).pairs / double(p.q.rows) / seeds;
    mean.op += testing::ErrorOf(p, got, want, true).op / seeds;
  }
  return mean;
}

// n = 2,048, 256 keys a query for the published variant (block and samples of 128) and not more for ours.
TEST(HyperError, BelowThePublishedVariantAtTheSameBudget) {
  struct Row {
    Head head;
    double most;
  };
  for (const int64_t dim : {64, 128})
    for (const Row row : {Row{Head::kPlanted, .6}, {Head::kFlat, .6}, {Head::kClusters, .6}, {Head::kSinks, .25}}) {
      const HeadData data(row.head, 2048, dim, 11);
      const Problem p = data.Get(false);
      Answer want = Reference(p);
      const Mean paper = MeanError("hyper:variant=paper,block=128,samples=128,min_length=16,precision=f32", p, want, 2),
                 v2 = MeanError("hyper:block=48,samples=84,global=32,min_length=16,probes=0,precision=f32", p, want, 2);
      EXPECT_LE(v2.pairs, paper.pairs) << dim << " " << int(row.head);
      EXPECT_LT(v2.op, row.most * paper.op) << dim << " " << int(row.head);
      RecordProperty("ratio" + std::to_string(dim) + "_" + std::to_string(int(row.head)),
                     std::to_string(v2.op / paper.op));
    }
}

// Four times the samples halve the error: slope -1/2 of log error over log samples.
TEST(HyperError, FallsWithTheRootOfTheSamples) {
  const HeadData data(Head::kFlat, 2048, 32, 12);
  const Problem p = data.Get(false);
  Answer want = Reference(p);
  double x = 0, y = 0, xx = 0, xy = 0;
  for (const int samples : {64, 256, 1024}) {
    const double a = std::log(samples),
                 b = std::log(
                     MeanError("hyper:residual=uniform,block=32,global=16,min_length=16,precision=f32,samples=" +
                                   std::to_string(samples),
                               p, want, 3)
                         .op);
    x += a / 3, y += b / 3, xx += a * a / 3, xy += a * b / 3;
  }
  EXPECT_NEAR((xy - x * y) / (xx - x * x), -.5, .1);
}

// Mass and weighted sums, not their quotient, have the right mean over seeds: for 20 rows, the mass and four sums of
// each, within 4.5 standard errors (a chance of 1 in 1,500 that any of 100 falls out).
TEST(HyperError, SamplesAreUnbiased) {
  constexpr int kSeeds = 200;
  constexpr int64_t kRows = 1100, kDim = 16;
  const HeadData data(Head::kFlat, kRows, kDim, 13);
  for (const bool causal : {false, true})
    for (const std::string residual : {"stratified", "uniform"}) {
      const Problem p = data.Get(causal);
      Answer want = Reference(p);
      constexpr size_t kTested = 20, kEach = 5;
      std::vector<double> sum(kTested * kEach), squares(sum.size());
      for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        Answer got(p);
        RunOn("hyper:min_length=512,block=64,samples=32,global=8,recent=8,precision=f32,residual=" + residual, p, got,
              seed);
        for (size_t t = 0; t < kTested; ++t) {
          const size_t row = kRows - 1 - 13 * t;
          const double mass = std::exp(double(got.lse[row]) - double(want.lse[row]));
          for (size_t c = 0; c < kEach; ++c) {
            const double z =
                c == 0 ? mass - 1 : mass * double(got.out[row * kDim + c]) - double(want.out[row * kDim + c]);
            sum[t * kEach + c] += z, squares[t * kEach + c] += z * z;
          }
        }
      }
      for (size_t i = 0; i < sum.size(); ++i) {
        const double mean = sum[i] / kSeeds, variance = squares[i] / kSeeds - mean * mean;
        EXPECT_GT(variance, 0);
        EXPECT_LT(std::abs(mean), 4.5 * std::sqrt(variance / kSeeds)) << residual << " " << causal << " " << i;
      }
    }
}

}  // namespace
}  // namespace croquis::attention
