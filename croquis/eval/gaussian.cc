// Gaussian numbers by the hundred million: the data of benchmarks.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "croquis/base/rng.h"
#include "croquis/eval/attention_bench.h"

namespace croquis::eval {
namespace {

// Quantile of the standard normal at p in (0, 1): Newton steps on erfc from a logistic start.
double NormalQuantile(double p) {
  double x = std::log(p / (1 - p)) / 1.702;
  for (int i = 0; i < 30; i++) {
    const double f = 0.5 * std::erfc(-x * std::numbers::sqrt2 / 2) - p;
    const double step = f / (std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi));
    x -= std::clamp(step, -1.0, 1.0);
    if (std::abs(step) < 1e-13) break;
  }
  return x;
}

// Values at the middles of 65,536 equal parts of the distribution, scaled to variance 1.
const std::vector<float>& Table() {
  static const std::vector<float> table = [] {
    std::vector<double> x(65536);
    double square = 0;
    for (size_t i = 0; i < x.size(); i++) {
      const size_t mirror = x.size() - 1 - i;
      x[i] = i < x.size() / 2 ? NormalQuantile((double(i) + 0.5) / double(x.size())) : -x[mirror];
      square += x[i] * x[i];
    }
    std::vector<float> t(x.size());
    for (size_t i = 0; i < x.size(); i++) t[i] = float(x[i] / std::sqrt(square / double(x.size())));
    return t;
  }();
  return table;
}

}  // namespace

void FillGaussian(uint64_t seed, uint64_t stream, uint64_t index, int64_t count, float* out) {
  const std::vector<float>& table = Table();
  const uint64_t purpose = Purpose("eval.gaussian") + stream * 0x9E3779B97F4A7C15ull;
  const r123::Philox4x32::key_type key = {{uint32_t(seed), uint32_t(seed >> 32)}};
  for (uint64_t i = index, end = index + uint64_t(count); i < end;) {
    const uint64_t block = i >> 3;
    const r123::Philox4x32::ctr_type counter = {
        {uint32_t(block), uint32_t(block >> 32), uint32_t(purpose), uint32_t(purpose >> 32)}};
    const auto words = r123::Philox4x32()(counter, key);
    for (; i < end && (i >> 3) == block; i++) *out++ = table[(words[(i & 7) >> 1] >> (16 * (i & 1))) & 0xFFFF];
  }
}

}  // namespace croquis::eval
