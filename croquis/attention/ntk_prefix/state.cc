#include <algorithm>
#include <cmath>
#include <limits>

#include "croquis/attention/ntk_prefix/ntk_prefix.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/feature_kernels.h"

namespace croquis::attention {
namespace {

constexpr int64_t kTile = 64;    // tokens whose features are held at a time
constexpr int64_t kPieces = 16;  // pieces of a prefix, each summed by one task
constexpr int64_t kMaxHeads = 1 << 16, kMaxDim = 1024, kMaxFavor = 1 << 16;

linear::FeatureMap MapOf(const PrefixConfig& config, int64_t dim) {
  switch (config.features) {
    case PrefixFeatures::kElu:
    case PrefixFeatures::kEluPaper:
      return linear::FeatureMap::Linear(dim);
    case PrefixFeatures::kTaylor1:
      return linear::FeatureMap::Linear(dim + 1);
    case PrefixFeatures::kTaylor2:
      // (1 + s)^2 / 2 = 1/2 + s + s^2 / 2; the other half of the constant is added to the state.
      return linear::FeatureMap::Square(dim + 1, .5f, 1);
    case PrefixFeatures::kFavor:
      return linear::FeatureMap::Linear(config.favor);
  }
  return linear::FeatureMap::Linear(dim);
}

}  // namespace

int64_t PrefixConfig::Features(int64_t dim) const { return MapOf(*this, dim).features(); }

PrefixConfig PrefixConfig::From(const Spec& spec, float scale, uint64_t seed) {
  const std::string_view word = spec.Word("features");
  const auto features = word == "elu"         ? PrefixFeatures::kElu
                        : word == "elu-paper" ? PrefixFeatures::kEluPaper
                        : word == "taylor1"   ? PrefixFeatures::kTaylor1
                        : word == "taylor2"   ? PrefixFeatures::kTaylor2
                                              : PrefixFeatures::kFavor;
  return {.features = features, .favor = spec.Int("m"), .scale = scale, .seed = seed};
}

NtkPrefix::NtkPrefix(const PrefixConfig& config, int64_t heads, int64_t dim, int64_t value_dim)
    : config_(config),
      heads_(heads),
      dim_(dim),
      value_dim_(value_dim),
      map_(MapOf(config, dim)),
      states_(size_t(heads * map_.StateFloats(value_dim))),
      exponents_(size_t(heads * map_.features())) {
  if (config.features != PrefixFeatures::kFavor) return;
  const Stream random{config.seed, Purpose("ntk_prefix.favor")};
  random_.resize(size_t(dim * config.favor));
  for (size_t i = 0; i < random_.size(); ++i) random_[i] = random.Gaussian(i);
}

Result<NtkPrefix> NtkPrefix::Make(const PrefixConfig& config, int64_t heads, int64_t dim, int64_t value_dim) {
  if (heads < 1 || heads > kMaxHeads || dim < 1 || dim > kMaxDim || value_dim < 1 || value_dim > kMaxDim)
    return OutOfRange("ntk-prefix: heads must be 1 to " + std::to_string(kMaxHeads) + " and dims 1 to " +
                      std::to_string(kMaxDim) + "; got " + std::to_string(heads) + ", " + std::to_string(dim) +
                      " and " + std::to_string(value_dim));
  if (uint32_t(config.features) > uint32_t(PrefixFeatures::kFavor) || config.favor < 1 || config.favor > kMaxFavor)
    return OutOfRange("ntk-prefix: unknown features, or their number not in 1 to " + std::to_string(kMaxFavor));
  if (!std::isfinite(config.scale)) return InvalidArgument("ntk-prefix: the scale is not a finite number");
  CROQUIS_CHECK_OK(CheckMemory(heads * config.Features(dim) * (value_dim + 2) * 4, "the states of a prefix"));
  return NtkPrefix(config, heads, dim, value_dim);
}

void NtkPrefix::Inputs(const RowsView& rows, bool queries, float* out) const {
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  const float root = std::sqrt(std::abs(config_.scale)), factor = queries && config_.scale < 0 ? -root : root;
  const float share = config_.features == PrefixFeatures::kElu ? float(1 / std::sqrt(double(dim_))) : 1.f;
  const int64_t inputs = map_.inputs();
  std::vector<float> x(static_cast<size_t>(dim_));
  for (int64_t r = 0; r < rows.rows; ++r, out += inputs) {
    rows.Read(r, x.data());
    for (float& e : x) e *= factor;
    switch (config_.features) {
      case PrefixFeatures::kElu:
      case PrefixFeatures::kEluPaper:
        for (int64_t i = 0; i < dim_; ++i) out[i] = std::min(x[size_t(i)], 0.f);
        loops.exp(out, dim_);
        for (int64_t i = 0; i < dim_; ++i) out[i] = share * (out[i] + std::max(x[size_t(i)], 0.f));
        break;
      case PrefixFeatures::kTaylor1:
      case PrefixFeatures::kTaylor2:
        out[0] = 1;
        std::copy(x.begin(), x.end(), out + 1);
        break;
      case PrefixFeatures::kFavor: {
        // Exponents only: their largest is taken out before anything is exponentiated. 1 / m goes to the query.
        double norm = 0;
        for (const float e : x) norm += double(e) * double(e);
        const double shift = -norm / 2 - (queries ? std::log(double(inputs)) : 0);
        std::fill_n(out, inputs, float(std::max(shift, -1e30)));
        simd::Dense().small_gemm(x.data(), dim_, random_.data(), inputs, out, inputs, 1, inputs, dim_);
        break;
      }
    }
  }
}

Result<NtkPrefix> NtkPrefix::FromKeysValues(Executor& executor, const TensorView& k, const TensorView& v,
                                            const PrefixConfig& config) {
  if (k.heads != v.heads || k.rows != v.rows)
    return InvalidArgument("ntk-prefix: keys and values must have the same heads and rows; got " +
                           std::to_string(k.heads) + " x " + std::to_string(k.rows) + " and " +
                           std::to_string(v.heads) + " x " + std::to_string(v.rows));
  CROQUIS_TRY(NtkPrefix made, Make(config, k.heads, k.dim, v.dim));
  const int64_t features = made.features(), inputs = made.map_.inputs(), state = made.map_.StateFloats(v.dim);
  const int64_t tiles = (k.rows + kTile - 1) / kTile, pieces = std::min(kPieces, tiles);
  CROQUIS_CHECK_OK(CheckMemory(pieces * (state + features) * 4, "the sums over a prefix"));
  const bool favor = config.features == PrefixFeatures::kFavor;
  struct Worker {
    std::vector<float> rows, transposed, values, scratch;
  };
  std::vector<Worker> workers(size_t(executor.threads()));
  for (Worker& w : workers)
    w = {std::vector<float>(size_t(kTile * inputs)), std::vector<float>(size_t(kTile * inputs)),
         std::vector<float>(size_t(kTile * v.dim)), std::vector<float>(size_t(made.map_.ScratchFloats(kTile)))};
  Matrix<float> sums(pieces, state), tops(pieces, features);
  const auto each_tile = [&](int64_t piece, const auto& fn) {
    const int64_t end = std::min(k.rows, tiles * (piece + 1) / pieces * kTile);
    for (int64_t first = tiles * piece / pieces * kTile; first < end; first += kTile)
      fn(first, std::min(kTile, end - first));
  };
  for (int64_t h = 0; h < k.heads; ++h) {
    float* const exponents = made.exponents_.data() + h * features;
    if (favor && pieces > 0) {
      // The largest exponent of each feature over the prefix.
      executor.ParallelFor(pieces, [&](int64_t piece, int worker) {
        float* const top = tops.Row(piece);
        std::fill_n(top, features, -std::numeric_limits<float>::max());
        each_tile(piece, [&](int64_t first, int64_t n) {
          float* const x = workers[size_t(worker)].rows.data();
          made.Inputs(k.Head(h).Rows(first, n), false, x);
          for (int64_t r = 0; r < n; ++r)
            for (int64_t f = 0; f < features; ++f) top[f] = std::max(top[f], x[r * inputs + f]);
        });
      });
      for (int64_t f = 0; f < features; ++f) {
        exponents[f] = tops.Row(0)[f];
        for (int64_t piece = 1; piece < pieces; ++piece) exponents[f] = std::max(exponents[f], tops.Row(piece)[f]);
      }
    }
    executor.ParallelFor(pieces, [&](int64_t piece, int worker) {
      Worker& w = workers[size_t(worker)];
      std::fill_n(sums.Row(piece), state, 0.f);
      each_tile(piece, [&](int64_t first, int64_t n) {
        made.Inputs(k.Head(h).Rows(first, n), false, w.rows.data());
        if (favor)
          for (int64_t r = 0; r < n; ++r) {
            for (int64_t f = 0; f < features; ++f) w.rows[size_t(r * inputs + f)] -= exponents[f];
            simd::FeatureLoops().exp(w.rows.data() + r * inputs, features);
          }
        linear::Transpose(w.rows.data(), inputs, n, inputs, w.transposed.data(), kTile);
        for (int64_t r = 0; r < n; ++r) v.Head(h).Read(first + r, w.values.data() + r * v.dim);
        made.map_.Add(w.transposed.data(), kTile, {w.values.data(), n, v.dim}, sums.Row(piece), w.scratch.data());
      });
    });
    float* const to = made.State(h);
    for (int64_t piece = 0; piece < pieces; ++piece) simd::Dense().add(sums.Row(piece), state, to);
    if (config.features == PrefixFeatures::kTaylor2) {  // the other half of the constant
      simd::Dense().scale(to, v.dim, 2);
      to[features * v.dim] *= 2;
    }
  }
  CROQUIS_CHECK_OK(made.CheckFinite("the sums over the prefix"));
  return made;
}

Result<NtkPrefix> NtkPrefix::FromState(const PrefixConfig& config, int64_t heads, int64_t dim, int64_t value_dim,
                                       std::span<const float> sums, std::span<const float> masses) {
  CROQUIS_TRY(NtkPrefix made, Make(config, heads, dim, value_dim));
  const int64_t features = made.features();
  if (int64_t(sums.size()) != heads * features * value_dim || int64_t(masses.size()) != heads * features)
    return InvalidArgument("ntk-prefix: these features need " + std::to_string(heads * features * value_dim) +
                           " sums and " + std::to_string(heads * features) + " masses; got " +
                           std::to_string(sums.size()) + " and " + std::to_string(masses.size()));
  for (int64_t h = 0; h < heads; ++h) {
    float* const to = made.State(h);
    std::copy_n(sums.data() + h * features * value_dim, features * value_dim, to);
    for (int64_t f = 0; f < features; ++f) to[features * value_dim + f] = std::abs(masses[size_t(h * features + f)]);
  }
  CROQUIS_CHECK_OK(made.CheckFinite("the trained state"));
  return made;
}

Status NtkPrefix::CheckFinite(const std::string& what) const {
  constexpr float kMost = std::numeric_limits<float>::max();
  if (simd::Dense().all_below(states_.data(), int64_t(states_.size()), kMost) &&
      simd::Dense().all_below(exponents_.data(), int64_t(exponents_.size()), kMost))
    return {};
  return Numeric("ntk-prefix: " + what +
                 " hold NaN or infinity, or do not fit f32; use favor features or smaller keys");
}

NtkPrefix::Scratch NtkPrefix::MakeScratch(int64_t rows) const {
  return {std::vector<float>(size_t(rows * map_.inputs() + simd::kFeatureSlack)),
          std::vector<float>(size_t(map_.ScratchFloats(rows)))};
}

void NtkPrefix::Evaluate(int64_t head, MatView<const float> q, MatView<float> a, float* m, float* l,
                         Scratch& scratch) const {
  const int64_t inputs = map_.inputs();
  float* const x = scratch.inputs.data();
  Inputs(q, true, x);
  std::fill_n(m, q.rows, 0.f);
  std::fill_n(l, q.rows, 0.f);
  for (int64_t r = 0; r < q.rows; ++r) std::fill_n(a.Row(r), value_dim_, 0.f);
  if (config_.features == PrefixFeatures::kFavor) {
    const float* const exponents = exponents_.data() + head * inputs;
    for (int64_t r = 0; r < q.rows; ++r) {
      float* const row = x + r * inputs;
      float top = -std::numeric_limits<float>::max();
      for (int64_t f = 0; f < inputs; ++f) top = std::max(top, row[f] += exponents[f]);
      for (int64_t f = 0; f < inputs; ++f) row[f] -= top;
      simd::FeatureLoops().exp(row, inputs);
      m[r] = top;
    }
  }
  map_.Apply(x, inputs, states_.data() + head * map_.StateFloats(value_dim_), a, l, scratch.features.data());
}

}  // namespace croquis::attention
