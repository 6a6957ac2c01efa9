#include "croquis/kvcache/center.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <numeric>

namespace croquis::kvcache {
namespace {
constexpr int64_t kPage = codecs::kPageTokens;
}

RopeTable::RopeTable(const RopeInfo& rope, int64_t head_dim)
    : pairs_(head_dim / 2),
      interleaved_(rope.interleaved),
      frequency_(rope.inv_freq),
      rows_(2 * int64_t(rope.inv_freq.size()), kPage),
      waves_(int64_t(rope.inv_freq.size()), kPage / 2) {
  for (int64_t i = 0; i < turning(); ++i) {
    for (int64_t delta = 0; delta < kPage; ++delta) {
      const double angle = frequency_[size_t(i)] * double(delta);
      rows_.Row(2 * i)[delta] = float(std::cos(angle));
      rows_.Row(2 * i + 1)[delta] = float(-std::sin(angle));
    }
    for (int64_t b = 0; b < kPage / 4; ++b) {
      const double angle = frequency_[size_t(i)] * (double(b) + 0.5);
      waves_.Row(i)[b] = float(std::cos(angle));
      waves_.Row(i)[kPage / 4 + b] = float(std::sin(angle));
    }
    step_.push_back(std::polar(1.0, frequency_[size_t(i)] * double(kPage / 2)));
  }
}

int64_t RopeTable::Bytes(const RopeInfo& rope, int64_t) {
  return int64_t(rope.inv_freq.size()) * (5 * kPage / 2 * int64_t(sizeof(float)) + 3 * int64_t(sizeof(double)));
}

int64_t Center::Turning(const RopeTable& table) const {
  return std::lower_bound(pair.begin(), pair.begin() + pairs, uint8_t(table.turning())) - pair.begin();
}

CenterEstimate::CenterEstimate(const RopeTable& table)
    : table_(table), mu_(size_t(2 * table.pairs())), in_block_(size_t(2 * table.pairs())) {}

// Within a block of 128 positions keys are turned back by the table; the block as a whole in CloseBlock.
void CenterEstimate::Add(const float* k, int64_t position) {
  if (position / kPage != block_) {
    CloseBlock();
    block_ = position / kPage;
  }
  const int64_t delta = position % kPage;
  ++tokens_;
  for (int64_t i = 0; i < table_.pairs(); ++i) {
    const auto [a, b] = table_.Dims(i);
    const double re = double(k[a]), im = double(k[b]);
    const double c = i < table_.turning() ? double(table_.Cos(i)[delta]) : 1;
    const double s = i < table_.turning() ? double(table_.MinusSin(i)[delta]) : 0;
    energy_ += re * re + im * im;
    in_block_[size_t(2 * i)] += re * c - im * s;
    in_block_[size_t(2 * i + 1)] += re * s + im * c;
  }
}

void CenterEstimate::CloseBlock() {
  if (block_ < 0) return;
  for (int64_t i = 0; i < table_.pairs(); ++i) {
    const std::complex<double> sum(in_block_[size_t(2 * i)], in_block_[size_t(2 * i + 1)]);
    const auto turned = sum * std::polar(1.0, -table_.Frequency(i) * double(block_ * kPage));
    mu_[size_t(2 * i)] += turned.real();
    mu_[size_t(2 * i + 1)] += turned.imag();
  }
  std::fill(in_block_.begin(), in_block_.end(), 0.0);
}

Center CenterEstimate::Decide(codecs::Center mode) const {
  CenterEstimate closed = *this;
  closed.CloseBlock();
  Center center;
  center.decided = true;
  if (mode == codecs::Center::kNone || tokens_ == 0) return center;
  std::vector<double> energy(size_t(table_.pairs()));
  double common = 0;
  for (size_t i = 0; i < energy.size(); ++i) {
    double& re = closed.mu_[2 * i];
    double& im = closed.mu_[2 * i + 1];
    re /= double(tokens_), im /= double(tokens_);
    common += re * re + im * im;
    if (std::max(std::fabs(re), std::fabs(im)) < 65504) energy[i] = re * re + im * im;  // else it does not fit f16
  }
  const double residual = std::max(0.0, energy_ / double(tokens_) - common);
  std::vector<size_t> order(energy.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return energy[a] > energy[b]; });
  size_t kept = 0;
  double left = common;
  while (kept < order.size() && energy[order[kept]] > 0 && left > kLeftOver * residual) left -= energy[order[kept++]];
  if (mode == codecs::Center::kAuto && common - left < kPays * residual) return center;
  std::sort(order.begin(), order.begin() + std::ptrdiff_t(kept));
  center.pairs = uint8_t(kept);
  for (size_t s = 0; s < kept; ++s) {
    center.pair[s] = uint8_t(order[s]);
    center.mu[2 * s] = FloatToF16(float(closed.mu_[2 * order[s]]));
    center.mu[2 * s + 1] = FloatToF16(float(closed.mu_[2 * order[s] + 1]));
  }
  return center;
}

void AddCommon(const RopeTable& table, const Center& center, int64_t page_start, int64_t first, float sign,
               MatView<float> x) {
  for (int64_t s = 0; s < center.pairs; ++s) {
    const int64_t pair = center.pair[size_t(s)];
    const auto [a, b] = table.Dims(pair);
    const std::complex<double> mu(double(F16ToFloat(center.mu[size_t(2 * s)])),
                                  double(F16ToFloat(center.mu[size_t(2 * s + 1)])));
    const auto turned = mu * std::polar(double(sign), table.Frequency(pair) * double(page_start));
    const float re = float(turned.real()), im = float(turned.imag());
    const bool turns = pair < table.turning();
    for (int64_t r = 0; r < x.rows; ++r) {
      const float c = turns ? table.Cos(pair)[first + r] : 1.f, n = turns ? table.MinusSin(pair)[first + r] : 0.f;
      float* row = x.Row(r);
      row[a] += re * c + im * n;
      row[b] += im * c - re * n;
    }
  }
}

}  // namespace croquis::kvcache
