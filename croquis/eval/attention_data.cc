#include "croquis/eval/attention_data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "croquis/base/rng.h"
#include "croquis/eval/attention_bench.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::eval {
namespace {

constexpr int64_t kCentres = 24, kSinkKeys = 3;
constexpr float kCommon = 1.5f, kPlantedNoise = .6f, kClusterNoise = .5f, kValueNoise = .5f;
constexpr float kSinkPull = .9f, kSinkValues = .05f;
constexpr int64_t kRows = 256;  // of a task

// What Gaussian numbers are for; each (purpose, head) has a stream of its own.
enum class Part : uint64_t { kKeys, kQueries, kValues, kKeyCommon, kQueryCommon, kCentresOf, kValueMap };

class Maker {
 public:
  Maker(Executor& executor, const AttentionDataOptions& o) : executor_(executor), o_(o) {}

  Result<AttentionTensors> Make() {
    AttentionTensors t;
    CROQUIS_TRY(t.q, MakeTensor(o_.type, o_.heads, o_.queries, o_.dim, "a tensor of queries"));
    CROQUIS_TRY(t.k, MakeTensor(o_.type, o_.kv_heads, o_.keys, o_.dim, "a tensor of keys"));
    CROQUIS_TRY(t.v, MakeTensor(o_.type, o_.kv_heads, o_.keys, o_.value_dim, "a tensor of values"));
    for (int64_t kv = 0; kv < o_.kv_heads; ++kv) {
      LoadHead(kv);
      const int64_t key_tasks = (o_.keys + kRows - 1) / kRows;
      executor_.ParallelFor(key_tasks, [&](int64_t task, int) { KeysAndValues(t, kv, task * kRows); });
      const int64_t group = o_.heads / o_.kv_heads;
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        LoadPartners(h);
        const int64_t tasks = (o_.queries + kRows - 1) / kRows;
        executor_.ParallelFor(tasks, [&](int64_t task, int) { Queries(t, kv, h, task * kRows); });
      }
    }
    return t;
  }

 private:
  bool Planted() const { return o_.kind == AttentionData::kPlanted || o_.kind == AttentionData::kSinks; }

  void Fill(Part part, int64_t head, int64_t row, int64_t cols, float* out) const {
    FillGaussian(o_.seed, uint64_t(part) << 32 | uint64_t(head), uint64_t(row * cols), cols, out);
  }
  std::vector<float> Rows(Part part, int64_t head, int64_t rows, int64_t cols, float size) const {
    std::vector<float> x(size_t(rows * cols));
    for (int64_t r = 0; r < rows; ++r) Fill(part, head, r, cols, &x[size_t(r * cols)]);
    for (float& e : x) e *= size;
    return x;
  }
  // A whole number below n from a stream of words.
  static int64_t Below(const Stream& random, int64_t i, int64_t n) {
    return int64_t(uint64_t(random.U32(uint64_t(i))) * uint64_t(n) >> 32);
  }

  // The common parts, centres and value map of a kv head.
  void LoadHead(int64_t kv) {
    key_common_ = Rows(Part::kKeyCommon, kv, 1, o_.dim, kCommon);
    query_common_ = Rows(Part::kQueryCommon, kv, 1, o_.dim, kCommon);
    map_ = Rows(Part::kValueMap, kv, o_.dim, o_.value_dim, 1 / std::sqrt(float(o_.dim)));
    if (o_.kind == AttentionData::kClusters) centres_ = Rows(Part::kCentresOf, kv, kCentres, o_.dim, 1);
  }

  void LoadPartners(int64_t head) {
    if (!Planted() || o_.keys == 0) return;
    const Stream random = Stream{o_.seed, Purpose("eval.attention_data.partner")}.Sub(uint64_t(head));
    partner_.resize(size_t(o_.queries));
    if (o_.causal) {
      for (int64_t i = 0; i < o_.queries; ++i) {
        const int64_t seen = std::clamp<int64_t>(o_.keys - o_.queries + i + 1, 1, o_.keys);
        partner_[size_t(i)] = Below(random, i, seen);
      }
      return;
    }
    std::vector<int64_t> order(static_cast<size_t>(o_.keys));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = o_.keys - 1; i > 0; --i) std::swap(order[size_t(i)], order[size_t(Below(random, i, i + 1))]);
    for (int64_t i = 0; i < o_.queries; ++i) partner_[size_t(i)] = order[size_t(i % o_.keys)];
  }

  // A key without the common part.
  void OwnPart(int64_t kv, int64_t row, float* out) const {
    Fill(Part::kKeys, kv, row, o_.dim, out);
    if (o_.kind == AttentionData::kClusters) AddCentre("eval.attention_data.key_centre", kv, row, out);
  }
  // Noise around a random centre.
  void AddCentre(const char* purpose, int64_t head, int64_t row, float* noise) const {
    const Stream random = Stream{o_.seed, Purpose(purpose)}.Sub(uint64_t(head));
    const float* centre = &centres_[size_t(Below(random, row, kCentres) * o_.dim)];
    for (int64_t c = 0; c < o_.dim; ++c) noise[c] = centre[c] + kClusterNoise * noise[c];
  }

  void KeysAndValues(AttentionTensors& t, int64_t kv, int64_t first) const {
    const int64_t n = std::min(kRows, o_.keys - first), d = o_.dim, dv = o_.value_dim;
    Matrix<float> keys(n, d), values(n, dv);
    std::vector<float> noise(static_cast<size_t>(dv));
    for (int64_t i = 0; i < n; ++i) {
      float* const k = keys.Row(i);
      OwnPart(kv, first + i, k);
      const bool sink = o_.kind == AttentionData::kSinks && first + i < kSinkKeys;
      for (int64_t c = 0; c < d; ++c)
        k[c] = key_common_[size_t(c)] + (sink ? kSinkPull * query_common_[size_t(c)] : k[c]);
      StoreRow(t.k, kv, first + i, k);
    }
    const float one = 1;
    for (int64_t i = 0; i < n; ++i) {
      float* const v = values.Row(i);
      const MatView<float> sum(v, 1, dv);
      simd::Dense().accumulate_rows(simd::RowType::kF32, keys.Row(i), d, &one, 1,
                                    reinterpret_cast<const std::byte*>(map_.data()), dv * int64_t(sizeof(float)), d,
                                    sum);
      Fill(Part::kValues, kv, first + i, dv, noise.data());
      const bool sink = o_.kind == AttentionData::kSinks && first + i < kSinkKeys;
      for (int64_t c = 0; c < dv; ++c) v[c] = (v[c] + kValueNoise * noise[size_t(c)]) * (sink ? kSinkValues : 1);
      StoreRow(t.v, kv, first + i, v);
    }
  }

  void Queries(AttentionTensors& t, int64_t kv, int64_t h, int64_t first) const {
    const int64_t d = o_.dim;
    std::vector<float> q(static_cast<size_t>(d)), k(static_cast<size_t>(d));
    for (int64_t i = first; i < std::min(o_.queries, first + kRows); ++i) {
      Fill(Part::kQueries, h, i, d, q.data());
      if (o_.kind == AttentionData::kClusters) AddCentre("eval.attention_data.query_centre", h, i, q.data());
      if (Planted() && o_.keys > 0) {
        OwnPart(kv, partner_[size_t(i)], k.data());
        for (int64_t c = 0; c < d; ++c) q[size_t(c)] = k[size_t(c)] + kPlantedNoise * q[size_t(c)];
      }
      for (int64_t c = 0; c < d; ++c) q[size_t(c)] += query_common_[size_t(c)];
      StoreRow(t.q, h, i, q.data());
    }
  }

  Executor& executor_;
  const AttentionDataOptions& o_;
  std::vector<float> key_common_, query_common_, centres_, map_;
  std::vector<int64_t> partner_;
};

}  // namespace

Result<AttentionData> ParseAttentionData(std::string_view name) {
  if (name == "gaussian") return AttentionData::kGaussian;
  if (name == "planted") return AttentionData::kPlanted;
  if (name == "clusters") return AttentionData::kClusters;
  if (name == "sinks") return AttentionData::kSinks;
  return InvalidArgument("no data '" + std::string(name) + "'; there are gaussian, planted, clusters, sinks");
}

attention::Problem AttentionTensors::Problem(bool causal) const {
  attention::Problem p;
  p.q = q.view, p.k = k.view, p.v = v.view;
  p.scale = float(1 / std::sqrt(double(q.view.dim)));
  p.mask.causal = causal;
  p.mask.offset = k.view.rows - q.view.rows;
  return p;
}

Result<AttentionTensors> MakeAttentionData(Executor& executor, const AttentionDataOptions& o) {
  if (o.heads < 1 || o.kv_heads < 1 || o.heads % o.kv_heads != 0)
    return InvalidArgument("the query heads must be a multiple of the kv heads, got " + std::to_string(o.heads) +
                           " and " + std::to_string(o.kv_heads));
  if (o.queries < 0 || o.keys < 0 || o.dim < 1 || o.value_dim < 1 || std::max(o.dim, o.value_dim) > 1024)
    return OutOfRange("rows must not be negative and dims lie between 1 and 1024");
  return Maker(executor, o).Make();
}

}  // namespace croquis::eval
