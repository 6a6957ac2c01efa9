#include "croquis/codecs/lloyd_max_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/rng.h"

namespace croquis::codecs {
namespace {

constexpr float kF16Max = 65504;

// Eight running sums in a fixed order: the compiler vectorises it, and every machine gets the same bits, so that codes
// do not depend on the instruction set.
float SquaredNorm(const float* y, int64_t dim) {
  float s[8] = {};
  for (int64_t i = 0; i < dim; i += 8)
    for (int64_t k = 0; k < 8; ++k) s[k] += y[i + k] * y[i + k];
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

RelMse Simulate(const Codebook& book, int64_t head_dim, int rounds) {
  constexpr int kRotations = 512, kRows = 8;
  const int64_t padded = transforms::Rotation::Padded(head_dim);
  const auto last = book.threshold.begin() + (1 << book.bits) - 1;
  const size_t d = size_t(head_dim), n = size_t(padded);
  std::vector<float> x(d), y(n), c(n), back(d);
  RelMse sum;
  for (int k = 0; k < kRotations; ++k) {
    const Stream rows = Stream{1, Purpose("lloyd_max.simulation")}.Sub(uint64_t(k));
    const auto rotation = transforms::Rotation::Make(head_dim, rounds, rows.purpose);
    if (!rotation) return {};
    for (int r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < head_dim; ++i) x[size_t(i)] = rows.Gaussian(uint64_t(r * head_dim + i));
      rotation->Apply(x.data(), y.data());
      double yy = 0, yc = 0;
      for (float v : y) yy += double(v) * double(v);
      const double rms = std::sqrt(yy / double(padded));
      for (size_t i = 0; i < y.size(); ++i) {
        const auto cell = std::lower_bound(book.threshold.begin(), last, float(double(y[i]) / rms));
        c[i] = book.value[size_t(cell - book.threshold.begin())];
        yc += double(y[i]) * double(c[i]);
      }
      rotation->Inverse(c.data(), back.data());
      double raw = 0, unbiased = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double er = rms * double(back[i]) - double(x[i]), eu = yy / yc * double(back[i]) - double(x[i]);
        raw += er * er, unbiased += eu * eu;
      }
      sum.raw += raw / yy / (kRotations * kRows), sum.unbiased += unbiased / yy / (kRotations * kRows);
    }
  }
  return sum;
}

}  // namespace

int ResolveRounds(std::string_view word, int64_t bits, int64_t head_dim) {
  if (word != "auto") return word == "2" ? 2 : 1;
  return bits <= 2 || transforms::Rotation::Padded(head_dim) != head_dim ? 2 : 1;
}

RelMse LloydMaxRelMse(int bits, int64_t head_dim, int rounds) {
  const Codebook& book = GaussianCodebook(bits);
  if (transforms::Rotation::Padded(head_dim) == head_dim) {
    const RotatedMoments m = MomentsOnSphere(book, head_dim);
    return {m.unbiased_mse, m.raw_mse};
  }
  static std::mutex mutex;
  static std::map<std::tuple<int, int64_t, int>, RelMse> known;
  const std::lock_guard lock(mutex);
  const auto [it, added] = known.try_emplace({bits, head_dim, rounds});
  if (added) it->second = Simulate(book, head_dim, rounds);
  return it->second;
}

uint16_t QuantizeLloydMax(const Codebook& book, ScaleRule rule, const float* y, int64_t dim, uint8_t* codes) noexcept {
  alignas(64) float z[ScalarPageCodec::kMaxDim];
  float norm2 = SquaredNorm(y, dim), unit = 1;
  if (!(norm2 > 1e-24f && norm2 < 1e37f)) {  // squares left the range of floats: bring the row near 1 first
    float top = 0;
    for (int64_t i = 0; i < dim; ++i) top = std::max(top, std::fabs(y[i]));
    const bool usable = norm2 == norm2 && top > 1e-12f && top <= 3e38f;
    if (!usable) {
      std::memset(codes, 0, size_t(dim));
      return 0;
    }
    unit = top;
    for (int64_t i = 0; i < dim; ++i) z[i] = y[i] / top;
    norm2 = SquaredNorm(z, dim);
    y = z;
  }
  const float rms = std::sqrt(norm2 / float(dim)), inv = 1 / rms;
  for (int64_t i = 0; i < dim; ++i) z[i] = y[i] * inv;
  const int thresholds = (1 << book.bits) - 1;
  const float zc = simd::Pages().nearest(z, dim, book.threshold.data(), thresholds, book.value.data(), codes);
  // <y, c> = rms <z, c> > 0: z and c have equal signs in every place.
  const float scale = unit * (rule == ScaleRule::kUnbiased ? rms * (float(dim) / zc) : rms);
  return FloatToF16(std::min(scale, kF16Max));
}

LloydMaxCodec::LloydMaxCodec(const CodecRequest& request, ScalarPageSetup setup, const Options& options)
    : ScalarPageCodec(request, std::move(setup)), book_(GaussianCodebook(options.bits)), rule_(options.rule) {}

Result<std::unique_ptr<const Codec>> LloydMaxCodec::Make(const CodecRequest& request, const Options& options) {
  CROQUIS_TRY(auto rotation, transforms::Rotation::Make(request.head_dim, options.rounds, request.seed));
  ScalarPageSetup setup;
  setup.layout = {.dim = int32_t(rotation.PaddedDim()), .bits = options.bits, .runs = 1, .mins = false};
  setup.levels = GaussianCodebook(options.bits).levels;
  setup.precision = options.precision;
  setup.rotation = std::move(rotation);
  return std::unique_ptr<const Codec>(new LloydMaxCodec(request, std::move(setup), options));
}

Contract LloydMaxCodec::ContractOf(int64_t head_dim, const Options& options) {
  const int64_t padded = transforms::Rotation::Padded(head_dim);
  const simd::PageLayout layout{.dim = int32_t(padded), .bits = options.bits, .runs = 1, .mins = false};
  const RelMse mse = LloydMaxRelMse(options.bits, head_dim, options.rounds);
  const bool unbiased = options.rule == ScaleRule::kUnbiased;
  return {8.0 * double(layout.Bytes()) / double(kPageTokens * head_dim), unbiased ? mse.unbiased : mse.raw, unbiased};
}

void LloydMaxCodec::QuantizeRow(const float* y, uint8_t* codes, uint16_t* scales, uint16_t*) const noexcept {
  scales[0] = QuantizeLloydMax(book_, rule_, y, Setup().layout.dim, codes);
}

void LloydMaxCodec::QuantizeBlock(const float* y, int64_t rows, uint8_t* codes, uint16_t* scales,
                                  uint16_t*) const noexcept {
  const int64_t dim = Setup().layout.dim;
  for (int64_t r = 0; r < rows; ++r) scales[r] = QuantizeLloydMax(book_, rule_, y + r * dim, dim, codes + r * dim);
}

}  // namespace croquis::codecs
