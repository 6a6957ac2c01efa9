#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "croquis/kvcache/policies/rotary.h"
#include "croquis/kvcache/policies/subgen.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/page_kernels.h"

namespace croquis::kvcache {
namespace {

// Of every cluster: its centre (a key before RoPE), how many keys it has, a sample of them (after RoPE) with the log
// weight of each. Of the values: s tokens sampled by |v|^2.
enum Parts : size_t { kCentre, kCount, kMember, kMemberWeight, kSampleKey, kSampleValue, kSampleNorm, kSampleWeight };
enum Rows : size_t { kClusters, kSamples };                     // Header::rows
enum Numbers : size_t { kEnergy, kSampled, kNearest, kA, kB };  // Header::number

// What one run of tokens does to a state.
class Taker {
 public:
  Taker(PolicyState& state, int64_t dim, int64_t per_cluster, Stream random);
  // One token: its key after RoPE (f16), before RoPE, and its value (f16).
  void Take(const uint16_t* k, const float* plain, const uint16_t* v, int64_t position);
  void SetWeights();

 private:
  void TakeKey(const uint16_t* k, const float* plain);
  void TakeValue(const uint16_t* k, const uint16_t* v);
  int64_t& clusters() { return state_.header().rows[kClusters]; }
  int64_t& samples() { return state_.header().rows[kSamples]; }
  double Number() { return (double(random_.U32(next_++)) + 0.5) * 0x1p-32; }
  int64_t Below(int64_t n) { return std::min(n - 1, int64_t(Number() * double(n))); }

  void Join(int64_t cluster, const uint16_t* k);
  void Open(const uint16_t* k, const float* plain);
  // The squared distance of the two nearest centres and which they are.
  void FindNearest();
  void MergeNearest();
  void PutSample(int64_t slot, const uint16_t* k, const uint16_t* v, float norm);
  void CopySample(int64_t from, int64_t to);
  // Replaces the samples, which are all tokens so far, by draws from them and one more.
  void BeginSampling(const uint16_t* k, const uint16_t* v, float norm);

  PolicyState& state_;
  const int64_t dim_, per_cluster_;
  Stream stream_, random_;
  uint64_t next_ = 0;
  int32_t* const count_;
  uint16_t *const member_, *const sample_k_, *const sample_v_;
  float *const norm_, *const member_weight_, *const sample_weight_;
  Matrix<float> centre_;  // [most clusters, dim]
};

Taker::Taker(PolicyState& state, int64_t dim, int64_t per_cluster, Stream random)
    : state_(state),
      dim_(dim),
      per_cluster_(per_cluster),
      stream_(random),
      random_(random),
      count_(state.Part<int32_t>(kCount)),
      member_(state.Part<uint16_t>(kMember)),
      sample_k_(state.Part<uint16_t>(kSampleKey)),
      sample_v_(state.Part<uint16_t>(kSampleValue)),
      norm_(state.Part<float>(kSampleNorm)),
      member_weight_(state.Part<float>(kMemberWeight)),
      sample_weight_(state.Part<float>(kSampleWeight)),
      centre_(std::max<int64_t>(1, state.layout().parts[kCentre].items), dim) {
  simd::Pages().f16_to_f32(state.Part<uint16_t>(kCentre), clusters() * dim, centre_.data());
}

void Taker::Take(const uint16_t* k, const float* plain, const uint16_t* v, int64_t position) {
  random_ = stream_.Sub(uint64_t(position));
  next_ = 0;
  TakeKey(k, plain);
  TakeValue(k, v);
}

void Taker::TakeKey(const uint16_t* k, const float* plain) {
  if (clusters() < state_.layout().parts[kCentre].items) return Open(k, plain);
  auto& number = state_.header().number;
  double least = std::numeric_limits<double>::max();
  int64_t nearest = 0;
  for (int64_t c = 0; c < clusters(); ++c) {
    double distance = 0;
    for (int64_t i = 0; i < dim_; ++i) {
      const double x = double(plain[i]) - double(centre_.Row(c)[i]);
      distance += x * x;
    }
    if (distance < least) least = distance, nearest = c;
  }
  if (number[kNearest] == 0 && clusters() > 1) FindNearest();
  if (clusters() == 1 || least <= number[kNearest]) return Join(nearest, k);
  MergeNearest();
  Open(k, plain);
}

// Reservoir sampling without replacement (Vitter's algorithm R): all members as long as there is room for them.
void Taker::Join(int64_t cluster, const uint16_t* k) {
  const int64_t n = ++count_[cluster], slot = n <= per_cluster_ ? n - 1 : Below(n);
  if (slot < per_cluster_) std::copy_n(k, dim_, member_ + (cluster * per_cluster_ + slot) * dim_);
}

void Taker::Open(const uint16_t* k, const float* plain) {
  const int64_t c = clusters()++;
  uint16_t* stored = state_.Part<uint16_t>(kCentre) + c * dim_;
  simd::Pages().f32_to_f16(plain, dim_, stored);
  simd::Pages().f16_to_f32(stored, dim_, centre_.Row(c));
  count_[c] = 0;
  Join(c, k);
  state_.header().number[kNearest] = 0;
}

void Taker::FindNearest() {
  const int64_t n = clusters();
  Matrix<float> dots(n, n);
  simd::Dense().score_rows(simd::RowType::kF32, centre_.View().Rows(0, n),
                           reinterpret_cast<const std::byte*>(centre_.data()), dim_ * int64_t(sizeof(float)), n,
                           dots.data(), n);
  auto& number = state_.header().number;
  number[kNearest] = std::numeric_limits<double>::max();
  for (int64_t a = 0; a < n; ++a)
    for (int64_t b = a + 1; b < n; ++b) {
      const double distance = double(dots.Row(a)[a]) + double(dots.Row(b)[b]) - 2 * double(dots.Row(a)[b]);
      if (distance < number[kNearest]) number[kNearest] = distance, number[kA] = double(a), number[kB] = double(b);
    }
  number[kNearest] = std::max(number[kNearest], 1e-30);  // 0: not known
}

// The larger of the two keeps its centre; the sample of both is drawn without replacement from their samples.
void Taker::MergeNearest() {
  auto a = int64_t(state_.header().number[kA]), b = int64_t(state_.header().number[kB]);
  if (count_[a] < count_[b]) std::swap(a, b);
  std::vector<uint16_t> joined;
  std::vector<int64_t> from[2];
  for (int64_t m = 0; m < std::min<int64_t>(per_cluster_, count_[a]); ++m) from[0].push_back(a * per_cluster_ + m);
  for (int64_t m = 0; m < std::min<int64_t>(per_cluster_, count_[b]); ++m) from[1].push_back(b * per_cluster_ + m);
  int64_t left[2] = {count_[a], count_[b]};
  while (int64_t(joined.size()) < std::min<int64_t>(per_cluster_, count_[a] + count_[b]) * dim_) {
    const int side = Below(left[0] + left[1]) < left[0] ? 0 : 1;
    const int64_t pick = Below(int64_t(from[side].size()));
    const uint16_t* row = member_ + from[side][size_t(pick)] * dim_;
    joined.insert(joined.end(), row, row + dim_);
    std::swap(from[side][size_t(pick)], from[side].back());
    from[side].pop_back();
    --left[side];
  }
  std::copy(joined.begin(), joined.end(), member_ + a * per_cluster_ * dim_);
  count_[a] += count_[b];
  const int64_t last = --clusters();
  if (b != last) {
    count_[b] = count_[last];
    std::copy_n(member_ + last * per_cluster_ * dim_, per_cluster_ * dim_, member_ + b * per_cluster_ * dim_);
    std::copy_n(state_.Part<uint16_t>(kCentre) + last * dim_, dim_, state_.Part<uint16_t>(kCentre) + b * dim_);
    std::copy_n(centre_.Row(last), dim_, centre_.Row(b));
  }
  std::fill_n(member_ + last * per_cluster_ * dim_, per_cluster_ * dim_, uint16_t{0});
}

void Taker::PutSample(int64_t slot, const uint16_t* k, const uint16_t* v, float norm) {
  std::copy_n(k, dim_, sample_k_ + slot * dim_);
  std::copy_n(v, dim_, sample_v_ + slot * dim_);
  norm_[slot] = norm;
}

void Taker::CopySample(int64_t from, int64_t to) {
  if (from != to) PutSample(to, sample_k_ + from * dim_, sample_v_ + from * dim_, norm_[from]);
}

void Taker::TakeValue(const uint16_t* k, const uint16_t* v) {
  std::vector<float> x(size_t(dim_), 0.f);
  simd::Pages().f16_to_f32(v, dim_, x.data());
  float norm = 0;
  for (const float y : x) norm += y * y;
  double& energy = state_.header().number[kEnergy];
  const int64_t room = state_.layout().parts[kSampleKey].items;
  if (state_.header().number[kSampled] == 0) {
    energy += double(norm);
    if (samples() < room) return PutSample(samples()++, k, v, norm);
    return BeginSampling(k, v, norm);
  }
  // Room that was added since: copies of samples are samples, if dependent ones.
  for (; samples() < room; ++samples()) CopySample(Below(samples()), samples());
  energy += double(norm);
  if (norm == 0) return;
  const double chance = double(norm) / energy;
  for (int64_t s = 0; s < samples(); ++s)
    if (Number() < chance) PutSample(s, k, v, norm);
}

void Taker::BeginSampling(const uint16_t* k, const uint16_t* v, float norm) {
  state_.header().number[kSampled] = 1;
  const int64_t n = samples();
  const std::vector<uint16_t> keys(sample_k_, sample_k_ + n * dim_), values(sample_v_, sample_v_ + n * dim_);
  std::vector<double> up_to;
  for (int64_t s = 0; s < n; ++s) up_to.push_back((s > 0 ? up_to.back() : 0) + double(norm_[s]));
  const double all = (n > 0 ? up_to.back() : 0) + double(norm);
  const std::vector<float> norms(norm_, norm_ + n);
  for (int64_t s = 0; s < n; ++s) {
    const auto at = std::upper_bound(up_to.begin(), up_to.end(), Number() * all) - up_to.begin();
    if (at == n)
      PutSample(s, k, v, norm);
    else
      PutSample(s, keys.data() + at * dim_, values.data() + at * dim_, norms[size_t(at)]);
  }
}

void Taker::SetWeights() {
  const int64_t slots = state_.layout().parts[kMember].items / std::max<int64_t>(1, per_cluster_) * per_cluster_;
  for (int64_t m = 0; m < slots; ++m) {
    const int64_t n = m / per_cluster_ < clusters() ? count_[m / per_cluster_] : 0;
    const bool held = m % per_cluster_ < n;
    member_weight_[m] = held ? float(std::log2(double(n) / double(std::min(n, per_cluster_)))) : simd::kMasked;
  }
  const double energy = state_.header().number[kEnergy];
  for (int64_t s = 0; s < samples(); ++s) {
    if (state_.header().number[kSampled] == 0)
      sample_weight_[s] = 0;
    else
      sample_weight_[s] =
          norm_[s] > 0 ? float(std::log2(energy / (double(samples()) * double(norm_[s])))) : simd::kMasked;
  }
}

class SubgenPaper final : public Policy {
 public:
  explicit SubgenPaper(const PolicyRequest& request)
      : Policy(request),
        budget_(request),
        dim_(request.head_dim),
        per_cluster_(request.spec.Int("samples")),
        most_clusters_(request.spec.Int("clusters")),
        values_(request.spec.Int("values")),
        rotary_(request.rope, request.head_dim),
        random_(Stream{request.seed, Purpose("kvcache.subgen")}) {}

  // A cluster with its members; what is stored beside clusters and samples (the padding of the parts).
  static int64_t ClusterBytes(int64_t dim, int64_t per_cluster) { return 2 * dim + 4 + per_cluster * (2 * dim + 4); }
  static int64_t Fixed() { return int64_t(sizeof(PolicyState::Header)) + 64 * int64_t(StateLayout::kMaxParts); }

  StateLayout Layout(int64_t left) const override {
    const int64_t bytes = std::max(budget_.Bytes(left), Budget::kLeast * 4 * dim_) - Fixed();
    const int64_t for_values = bytes / 100 * values_;
    int64_t clusters =
        std::clamp<int64_t>((bytes - for_values) / ClusterBytes(dim_, per_cluster_), 1, std::max<int64_t>(left, 1));
    if (most_clusters_ > 0) clusters = std::min(clusters, most_clusters_);
    if (left == 0) clusters = 0;
    const int64_t samples = std::min(left, std::max<int64_t>(1, for_values / (4 * dim_ + 8)));
    StateLayout l;
    l.Add(StatePart::Holds::kTables, 2 * dim_, clusters);
    l.Add(StatePart::Holds::kTables, sizeof(int32_t), clusters);
    l.Add(StatePart::Holds::kKeys, 2 * dim_, clusters * per_cluster_);
    l.Add(StatePart::Holds::kTables, sizeof(float), clusters * per_cluster_);
    l.Add(StatePart::Holds::kKeys, 2 * dim_, samples);
    l.Add(StatePart::Holds::kValues, 2 * dim_, samples);
    l.Add(StatePart::Holds::kTables, sizeof(float), samples);
    l.Add(StatePart::Holds::kTables, sizeof(float), samples);
    return l;
  }

  void Absorb(const PolicyRun& run, PolicyState& state) const override {
    state.header().left += kPolicyRun;
    state.Resize(Layout(state.header().left));
    Taker taker(state, dim_, per_cluster_, random_.Sub(run.head));
    std::vector<float> plain(size_t(dim_), 0.f);
    for (int64_t t = 0; t < kPolicyRun; ++t) {
      const auto* k = reinterpret_cast<const uint16_t*>(run.k) + t * dim_;
      simd::Pages().f16_to_f32(k, dim_, plain.data());
      rotary_.TurnBack(run.position + t, plain.data());
      taker.Take(k, plain.data(), reinterpret_cast<const uint16_t*>(run.v) + t * dim_, run.position + t);
    }
    taker.SetWeights();
  }

  KeptView View(const PolicyState& state) const override {
    const auto& h = state.header();
    return {KeptRows{.k = state.Part<std::byte>(kMember),
                     .log2_weight = state.Part<float>(kMemberWeight),
                     .rows = h.rows[kClusters] * per_cluster_,
                     .use = KeptRows::Use::kMass},
            KeptRows{.k = state.Part<std::byte>(kSampleKey),
                     .v = state.Part<std::byte>(kSampleValue),
                     .log2_weight = state.Part<float>(kSampleWeight),
                     .rows = h.rows[kSamples],
                     .use = KeptRows::Use::kValues}};
  }

  bool Valid(const PolicyState& state) const override {
    const auto& h = state.header();
    const auto& parts = state.layout().parts;
    bool ok = h.rows[kClusters] >= 0 && h.rows[kClusters] <= parts[kCentre].items && h.rows[kSamples] >= 0 &&
              h.rows[kSamples] <= parts[kSampleKey].items && std::isfinite(h.number[kEnergy]) &&
              (h.number[kSampled] == 0 || (h.number[kSampled] == 1 && h.rows[kSamples] > 0)) &&
              h.number[kNearest] >= 0 && (h.number[kNearest] == 0 || h.number[kA] != h.number[kB]) &&
              state.Finite(kCentre);
    if (!ok) return false;
    for (const size_t n : {size_t(kA), size_t(kB)})
      ok = ok && h.number[n] >= 0 && h.number[n] < double(std::max<int64_t>(1, h.rows[kClusters])) &&
           h.number[n] == std::floor(h.number[n]);
    int64_t tokens = 0;
    for (int64_t c = 0; c < h.rows[kClusters] && ok; ++c) {
      ok = state.Part<int32_t>(kCount)[c] > 0;
      tokens += state.Part<int32_t>(kCount)[c];
    }
    const auto weights = [&](size_t part, int64_t n) {
      const float* w = state.Part<float>(part);
      return std::all_of(w, w + n, [](float x) { return std::isfinite(x) && x < 300; });
    };
    const float* norm = state.Part<float>(kSampleNorm);
    return ok && tokens == h.left && weights(kMemberWeight, h.rows[kClusters] * per_cluster_) &&
           weights(kSampleWeight, h.rows[kSamples]) &&
           std::all_of(norm, norm + h.rows[kSamples], [](float x) { return std::isfinite(x) && x >= 0; });
  }

 private:
  const Budget budget_;
  const int64_t dim_, per_cluster_, most_clusters_, values_;
  const Rotary rotary_;
  const Stream random_;
};

}  // namespace

Result<std::unique_ptr<const Policy>> MakeSubgenPaper(const PolicyRequest& request) {
  CROQUIS_CHECK_OK(Budget(request).Check(request, 4 * request.head_dim, SubgenPaper::Fixed()));
  const int64_t cluster = SubgenPaper::ClusterBytes(request.head_dim, request.spec.Int("samples"));
  if (cluster > INT32_MAX) return OutOfRange("subgen: samples is too large for memory");
  return std::unique_ptr<const Policy>(std::make_unique<SubgenPaper>(request));
}

}  // namespace croquis::kvcache
