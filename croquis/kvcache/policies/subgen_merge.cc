#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "croquis/kvcache/policies/ordered.h"
#include "croquis/kvcache/policies/rotary.h"
#include "croquis/kvcache/policies/subgen.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/page_kernels.h"

namespace croquis::kvcache {
namespace {

enum Parts : size_t { kEnergy, kWeight, kPartner, kCost, kKeys, kValues };
constexpr size_t kQueries = 0;  // Header::number: query rows summed in kEnergy

// Half of E<q, k - k'>^2 is what averaging a key takes off its log weight (second order). Beyond 1/2 the series says
// little, and a large correction for the average query is an error for most.
constexpr double kMostCorrection = 0.5;

// The rows of a state while some of them are merged, with their keys and values as points between which the squared
// distance is the error of exchanging one row for the other: |sqrt(E) (k - k')|^2 V^2 + |v - v'|^2, where E is the mean
// square of each pair of the queries' numbers and V the root mean square length of a value. The first term is the mean
// square of the change of a logit times the size of what the weights multiply.
class Merger {
 public:
  Merger(PolicyState& state, int64_t rows, int64_t dim, const Rotary& pairs);
  // Merges the pair that costs least until `keep` rows are left.
  void Run(int64_t keep);

 private:
  void SetScale(const PolicyState& state, const Rotary& pairs);
  // Makes the point of row r from its key and value.
  void Load(int64_t r);
  // Errors of the members of a cluster partly cancel, so its importance grows as the root of its weight.
  float Cost(int64_t i, int64_t j, float dot) const {
    const float a = importance_[size_t(i)], b = importance_[size_t(j)];
    return a * b / (a + b) * std::max(0.f, norm_[size_t(i)] + norm_[size_t(j)] - 2 * dot);
  }
  // Finds the cheapest partner of rows that have none, and offers them to the others.
  void FindPartners(std::span<const int64_t> lone);
  void Merge(int64_t i, int64_t j);
  // 2^log2_weight of rows i and j as one whose key is `share` of the way from j to i.
  double JoinedWeight(int64_t i, int64_t j, double share) const;
  void Average(uint16_t* rows, int64_t i, int64_t j, double share);
  // Moves the last row to j, whose row is gone.
  void CloseGap(int64_t j);

  static constexpr int64_t kTogether = 16;  // rows scored against all others at once

  float *const weight_, *const cost_;
  int32_t* const partner_;
  uint16_t *const k_, *const v_;
  int64_t rows_;
  const int64_t dim_;
  Matrix<float> points_;  // [rows, 2 * dim]
  std::vector<float> norm_, importance_;
  std::vector<float> scale_;  // [dim]: sqrt(E) V
  double value_energy_ = 0;   // V^2
  Matrix<float> dots_;        // [kTogether, rows]
  Matrix<float> lone_;        // [kTogether, 2 * dim]
};

Merger::Merger(PolicyState& state, int64_t rows, int64_t dim, const Rotary& pairs)
    : weight_(state.Part<float>(kWeight)),
      cost_(state.Part<float>(kCost)),
      partner_(state.Part<int32_t>(kPartner)),
      k_(state.Part<uint16_t>(kKeys)),
      v_(state.Part<uint16_t>(kValues)),
      rows_(rows),
      dim_(dim),
      points_(rows, 2 * dim),
      norm_(size_t(rows)),
      importance_(size_t(rows)),
      scale_(size_t(dim)),
      dots_(kTogether, rows),
      lone_(kTogether, 2 * dim) {
  SetScale(state, pairs);
  for (int64_t r = 0; r < rows; ++r) Load(r);
}

void Merger::SetScale(const PolicyState& state, const Rotary& pairs) {
  std::vector<float> v(size_t(dim_), 0.f);
  for (int64_t r = 0; r < rows_; ++r) {
    simd::Pages().f16_to_f32(v_ + r * dim_, dim_, v.data());
    float sum = 0;
    for (const float x : v) sum += x * x;
    value_energy_ += double(sum);
  }
  value_energy_ = std::max(value_energy_ / double(rows_), 1e-30);
  const float* energy = state.Part<float>(kEnergy);
  const double queries = state.header().number[kQueries];
  const auto scale = [&](double sum) {
    // Where no query was seen: queries of unit numbers, scaled as usual.
    return float(std::sqrt((queries > 0 ? sum / queries : 1 / double(dim_)) * value_energy_));
  };
  for (int64_t p = 0; p < pairs.pairs(); ++p) {
    const auto [a, b] = pairs.Dims(p);
    scale_[size_t(a)] = scale_[size_t(b)] = scale((double(energy[a]) + double(energy[b])) / 2);
  }
  if (dim_ % 2 != 0) scale_.back() = scale(double(energy[dim_ - 1]));
}

void Merger::Load(int64_t r) {
  float* x = points_.Row(r);
  simd::Pages().f16_to_f32(k_ + r * dim_, dim_, x);
  simd::Pages().f16_to_f32(v_ + r * dim_, dim_, x + dim_);
  for (int64_t i = 0; i < dim_; ++i) x[i] *= scale_[size_t(i)];
  float norm = 0;
  for (int64_t i = 0; i < 2 * dim_; ++i) norm += x[i] * x[i];
  norm_[size_t(r)] = norm;
  importance_[size_t(r)] = std::exp2(weight_[r] / 2);
}

void Merger::Run(int64_t keep) {
  std::vector<int64_t> lone;
  for (int64_t r = 0; r < rows_; ++r)
    if (partner_[r] < 0) lone.push_back(r);
  FindPartners(lone);
  while (rows_ > keep) {
    const int64_t i = std::min_element(cost_, cost_ + rows_) - cost_;
    Merge(std::min<int64_t>(i, partner_[i]), std::max<int64_t>(i, partner_[i]));
  }
}

void Merger::FindPartners(std::span<const int64_t> lone) {
  for (size_t at = 0; at < lone.size(); at += size_t(kTogether)) {
    const auto some = lone.subspan(at, std::min(size_t(kTogether), lone.size() - at));
    for (size_t s = 0; s < some.size(); ++s) std::copy_n(points_.Row(some[s]), 2 * dim_, lone_.Row(int64_t(s)));
    simd::Dense().score_rows(simd::RowType::kF32, lone_.View().Rows(0, int64_t(some.size())),
                             reinterpret_cast<const std::byte*>(points_.data()), 2 * dim_ * int64_t(sizeof(float)),
                             rows_, dots_.data(), dots_.cols());
    for (size_t s = 0; s < some.size(); ++s) {
      const int64_t i = some[s];
      const float* dots = dots_.Row(int64_t(s));
      // Some partner always, also where distances are too large for a float.
      cost_[i] = std::numeric_limits<float>::max(), partner_[i] = i == 0 ? 1 : 0;
      for (int64_t j = 0; j < rows_; ++j) {
        if (j == i) continue;
        const float cost = Cost(i, j, dots[j]);
        if (cost < cost_[i]) cost_[i] = cost, partner_[i] = int32_t(j);
        if (partner_[j] >= 0 && cost < cost_[j]) cost_[j] = cost, partner_[j] = int32_t(i);
      }
    }
  }
}

void Merger::Merge(int64_t i, int64_t j) {
  const double a = std::exp2(double(weight_[i])), b = std::exp2(double(weight_[j])), share = a / (a + b);
  weight_[i] = float(std::log2(JoinedWeight(i, j, share)));
  Average(k_, i, j, share);
  Average(v_, i, j, share);
  Load(i);
  CloseGap(j);
  partner_[i] = -1;
  std::vector<int64_t> lone;
  for (int64_t r = 0; r < rows_; ++r) {
    if (partner_[r] == i || partner_[r] == j) partner_[r] = -1;
    if (partner_[r] == rows_) partner_[r] = int32_t(j);
    if (partner_[r] < 0) lone.push_back(r);
  }
  FindPartners(lone);
}

double Merger::JoinedWeight(int64_t i, int64_t j, double share) const {
  const float *x = points_.Row(i), *y = points_.Row(j);
  double apart = 0;
  for (int64_t t = 0; t < dim_; ++t) apart += double(x[t] - y[t]) * double(x[t] - y[t]);
  apart /= value_energy_;  // E<q, k - k'>^2
  const auto corrected = [&](int64_t r, double way) {
    return std::exp2(double(weight_[r])) * std::exp(std::min(kMostCorrection, way * way * apart / 2));
  };
  return corrected(i, 1 - share) + corrected(j, share);
}

void Merger::Average(uint16_t* rows, int64_t i, int64_t j, double share) {
  std::vector<float> x(size_t(dim_), 0.f), y(size_t(dim_), 0.f);
  simd::Pages().f16_to_f32(rows + i * dim_, dim_, x.data());
  simd::Pages().f16_to_f32(rows + j * dim_, dim_, y.data());
  for (size_t t = 0; t < x.size(); ++t) x[t] = float(share * double(x[t]) + (1 - share) * double(y[t]));
  simd::Pages().f32_to_f16(x.data(), dim_, rows + i * dim_);
}

void Merger::CloseGap(int64_t j) {
  const int64_t last = --rows_;
  if (j != last) {
    weight_[j] = weight_[last], partner_[j] = partner_[last], cost_[j] = cost_[last];
    norm_[size_t(j)] = norm_[size_t(last)], importance_[size_t(j)] = importance_[size_t(last)];
    std::copy_n(k_ + last * dim_, dim_, k_ + j * dim_);
    std::copy_n(v_ + last * dim_, dim_, v_ + j * dim_);
    std::copy_n(points_.Row(last), 2 * dim_, points_.Row(j));
  }
  weight_[last] = cost_[last] = 0, partner_[last] = 0;
  std::fill_n(k_ + last * dim_, dim_, uint16_t{0});
  std::fill_n(v_ + last * dim_, dim_, uint16_t{0});
}

class SubgenMerge final : public Policy {
 public:
  explicit SubgenMerge(const PolicyRequest& request)
      : Policy(request), budget_(request), dim_(request.head_dim), pairs_(request.rope, request.head_dim) {}

  // What is stored of a row, and beside the rows.
  static int64_t RowBytes(int64_t head_dim) { return 4 * head_dim + 12; }
  static int64_t Fixed(int64_t head_dim) {
    return int64_t(sizeof(PolicyState::Header)) + (4 * head_dim + 63) / 64 * 64;
  }

  Sees Observes() const override { return budget_.keeps_all() ? Sees::kNothing : Sees::kQueries; }
  size_t ObservedParts() const override { return 1; }
  StateLayout Layout(int64_t left) const override { return LayoutOf(Rows(left)); }

  void Observe(const Observation& seen, PolicyState& state) const override {
    float* energy = state.Part<float>(kEnergy);
    for (size_t i = 0; i < seen.query_energy.size(); ++i) energy[i] += seen.query_energy[i];
    state.header().number[kQueries] += double(seen.queries);
  }

  void Absorb(const PolicyRun& run, PolicyState& state) const override {
    const int64_t left = state.header().left + kPolicyRun, keep = Rows(left), had = state.header().rows[0];
    const int64_t rows = had + kPolicyRun;
    state.Resize(LayoutOf(rows));
    PutRun(run, 2 * dim_, had, state.Part<std::byte>(kKeys), state.Part<std::byte>(kValues));
    if (!budget_.keeps_all()) std::fill_n(state.Part<int32_t>(kPartner) + had, kPolicyRun, -1);
    if (rows > keep) Merger(state, rows, dim_, pairs_).Run(keep);
    state.Resize(LayoutOf(keep));
    state.header().left = left;
    state.header().rows[0] = keep;
  }

  KeptView View(const PolicyState& state) const override {
    return {KeptRows{state.Part<std::byte>(kKeys), state.Part<std::byte>(kValues),
                     budget_.keeps_all() ? nullptr : state.Part<float>(kWeight), state.header().rows[0]}};
  }

  bool Valid(const PolicyState& state) const override {
    const int64_t rows = state.header().rows[0];
    if (rows != Rows(state.header().left)) return false;
    if (budget_.keeps_all()) return true;
    const float *weight = state.Part<float>(kWeight), *energy = state.Part<float>(kEnergy);
    const int32_t* partner = state.Part<int32_t>(kPartner);
    bool ok = std::isfinite(state.header().number[kQueries]) && state.header().number[kQueries] >= 0;
    for (int64_t i = 0; i < dim_; ++i) ok = ok && std::isfinite(energy[i]) && energy[i] >= 0;
    // A weight is the sum of the weights of at most 2^31 tokens, each corrected by less than 2^64.
    for (int64_t r = 0; r < rows; ++r)
      ok = ok && weight[r] >= 0 && weight[r] < 96 && partner[r] >= -1 && partner[r] < rows && partner[r] != r &&
           !std::isnan(state.Part<float>(kCost)[r]);
    return ok;
  }

 private:
  int64_t Rows(int64_t left) const {
    return budget_.keeps_all() ? left : budget_.Rows(left, RowBytes(dim_), Fixed(dim_));
  }
  StateLayout LayoutOf(int64_t rows) const {
    const bool notes = !budget_.keeps_all();
    StateLayout l;
    l.Add(StatePart::Holds::kTables, sizeof(float), notes ? dim_ : 0);
    for (int i = 0; i < 3; ++i) l.Add(StatePart::Holds::kTables, 4, notes ? rows : 0);
    l.Add(StatePart::Holds::kKeys, 2 * dim_, rows);
    l.Add(StatePart::Holds::kValues, 2 * dim_, rows);
    return l;
  }

  const Budget budget_;
  const int64_t dim_;
  const Rotary pairs_;
};

}  // namespace

Result<std::unique_ptr<const Policy>> MakeSubgenMerge(const PolicyRequest& request) {
  CROQUIS_CHECK_OK(
      Budget(request).Check(request, SubgenMerge::RowBytes(request.head_dim), SubgenMerge::Fixed(request.head_dim)));
  return std::unique_ptr<const Policy>(std::make_unique<SubgenMerge>(request));
}

}  // namespace croquis::kvcache
