#include "croquis/codecs/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "croquis/base/memory.h"
#include "croquis/base/rng.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kDefaultRows = 16384, kMaxSeeds = 32, kQueries = 4;
constexpr std::string_view kNames[] = {"gaussian", "heavy-tailed", "sparse", "constant"};

float StudentT3(const Stream& s, uint64_t i) {
  const float a = s.Gaussian(4 * i + 1), b = s.Gaussian(4 * i + 2), c = s.Gaussian(4 * i + 3);
  return s.Gaussian(4 * i) / std::sqrt((a * a + b * b + c * c) / 3);
}

// Both halves of Box and Muller: two numbers from two words, where Stream::Gaussian gives one.
void GaussianRow(const Stream& s, float* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    const double u = (double(s.U32(uint64_t(i))) + 1) * 0x1p-32, a = double(s.U32(uint64_t(i) + 1)) * 0x1p-32;
    const double radius = std::sqrt(-2 * std::log(u)), angle = 2 * std::numbers::pi * a;
    row[i] = float(radius * std::cos(angle));
    if (i + 1 < n) row[i + 1] = float(radius * std::sin(angle));
  }
}

struct Sums {
  double error = 0, power = 0, ip = 0, slope = 0;
  int64_t slopes = 0;
};

double Dot(const float* a, const float* b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += double(a[i]) * double(b[i]);
  return s;
}

// Standard error of the mean of v; 0 for a single one.
double StandardError(const std::vector<double>& v) {
  const double n = double(v.size());
  double mean = 0, var = 0;
  for (double x : v) mean += x / n;
  for (double x : v) var += (x - mean) * (x - mean);
  return n > 1 ? std::sqrt(var / (n - 1) / n) : 0;
}

// <q, x^> of a page: on the codes for keys, from decoded rows for values.
void ScorePage(const Codec& codec, const std::byte* page, MatView<const float> q, MatView<const float> decoded,
               float* logits) {
  if (codec.GetRole() == Role::kValue) {
    for (int64_t r = 0; r < q.rows; ++r)
      for (int64_t t = 0; t < kPageTokens; ++t)
        logits[r * kPageTokens + t] = float(Dot(q.Row(r), decoded.Row(t), q.cols));
    return;
  }
  Buffer query(codec.QueryBytes(q.rows)), scratch(codec.ScratchBytes(q.rows));
  codec.Prepare(q, 1, query.data());
  codec.Score(page, query.data(), q.rows, {}, logits, scratch.data());
}

void MeasurePage(const Codec& codec, Rows kind, uint64_t seed, int64_t first, Sums& sums) {
  const int64_t d = codec.HeadDim();
  Matrix<float> x(kPageTokens, d), y(kPageTokens, d), q(kQueries, d), logits(kQueries, kPageTokens);
  FillRows(kind, seed, first, x.View());
  FillRows(Rows::kGaussian, seed ^ Purpose("codecs.measure.queries"), first, q.View());
  Buffer page(codec.PageBytes());
  codec.Encode(x.View(), 0, page.data());
  codec.Decode(page.data(), 0, y.View());
  ScorePage(codec, page.data(), q.View(), y.View(), logits.data());
  for (int64_t t = 0; t < kPageTokens; ++t) {
    const double power = Dot(x.Row(t), x.Row(t), d);
    if (power == 0) continue;
    double error = 0;
    for (int64_t i = 0; i < d; ++i) {
      const double e = double(x.Row(t)[i]) - double(y.Row(t)[i]);
      error += e * e;
    }
    sums.error += error, sums.power += power;
    sums.slope += Dot(x.Row(t), y.Row(t), d) / power, ++sums.slopes;
    for (int64_t r = 0; r < kQueries; ++r) {
      const double e = double(logits.Row(r)[t]) - Dot(q.Row(r), x.Row(t), d);
      sums.ip += double(d) * e * e / (Dot(q.Row(r), q.Row(r), d) * power * double(kQueries));
    }
  }
}

double EncodeNs(const Codec& codec, uint64_t seed) {
  constexpr int64_t kPages = 8;
  constexpr int kPasses = 7;
  Matrix<float> x(kPages * kPageTokens, codec.HeadDim());
  FillRows(Rows::kGaussian, seed, 0, x.View());
  Buffer page(codec.PageBytes());
  double best = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t p = 0; p < kPages; ++p)
      codec.Encode(MatView<const float>(x.View()).Rows(p * kPageTokens, kPageTokens), 0, page.data());
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count() / double(kPages * kPageTokens));
  }
  return best;
}

}  // namespace

std::string_view Name(Rows rows) { return kNames[size_t(rows)]; }

Result<Rows> ParseRows(std::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i)
    if (kNames[i] == name) return Rows(i);
  return InvalidArgument("rows are gaussian, heavy-tailed, sparse or constant; got '" +
                         std::string(name.substr(0, 40)) + "'");
}

void FillRows(Rows kind, uint64_t seed, int64_t first, MatView<float> x) {
  const Stream all{seed, Purpose("codecs.measure.rows")};
  for (int64_t r = 0; r < x.rows; ++r) {
    const Stream s = all.Sub(uint64_t(first + r));
    float* row = x.Row(r);
    switch (kind) {
      case Rows::kGaussian:
        GaussianRow(s, row, x.cols);
        break;
      case Rows::kHeavyTailed:
        for (int64_t i = 0; i < x.cols; ++i) row[i] = StudentT3(s, uint64_t(i));
        break;
      case Rows::kSparse:
        std::fill_n(row, x.cols, 0.f);
        for (uint64_t k = 0; k < 4; ++k) row[s.U32(1000 + k) % uint64_t(x.cols)] = s.Gaussian(k);
        break;
      case Rows::kConstant:
        std::fill_n(row, x.cols, s.Gaussian(0));
        break;
    }
  }
}

Result<Measurement> Measure(std::string_view method, int64_t head_dim, Role role, Rows kind, uint64_t seed,
                            int64_t rows, bool timed) {
  if (rows == 0) rows = kDefaultRows;
  if (rows < kPageTokens || rows % kPageTokens != 0)
    return OutOfRange("measure: rows must be a multiple of " + std::to_string(kPageTokens) + ", got " +
                      std::to_string(rows));
  const int64_t pages = rows / kPageTokens, seeds = std::min(pages, kMaxSeeds);
  Measurement m;
  Sums all;
  std::vector<double> slopes, errors;  // one mean a rotation seed: rows under one rotation are not independent
  for (int64_t k = 0; k < seeds; ++k) {
    CROQUIS_TRY(const auto codec, Make(method, head_dim, role, seed + uint64_t(k)));
    Sums sums;
    for (int64_t p = k * pages / seeds; p < (k + 1) * pages / seeds; ++p)
      MeasurePage(*codec, kind, seed, p * kPageTokens, sums);
    all.error += sums.error, all.power += sums.power, all.ip += sums.ip, all.slopes += sums.slopes;
    if (sums.slopes > 0) {
      slopes.push_back(sums.slope / double(sums.slopes));
      errors.push_back(sums.error / sums.power);
    }
    if (k + 1 < seeds) continue;
    m.method = codec->Method();
    m.bits_per_number = codec->BitsPerNumber();
    if (timed) m.encode_ns = EncodeNs(*codec, seed);
  }
  m.rows = all.slopes;
  if (all.slopes == 0) return m;
  m.rel_mse = all.error / all.power;
  m.ip_error = all.ip / double(all.slopes);
  for (double v : slopes) m.slope += v / double(slopes.size());
  m.slope_error = StandardError(slopes);
  m.rel_mse_error = StandardError(errors);
  return m;
}

}  // namespace croquis::codecs
