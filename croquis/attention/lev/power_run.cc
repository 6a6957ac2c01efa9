#include <algorithm>
#include <cmath>
#include <vector>

#include "croquis/attention/lev/power.h"
#include "croquis/attention/lev/runs.h"
#include "croquis/attention/tiles.h"
#include "croquis/base/memory.h"
#include "croquis/linalg/factor.h"

namespace croquis::attention::lev {
namespace {

constexpr int64_t kWave = 32;  // tiles whose Gram matrices are held at a time

Matrix<float> ReadAll(Executor& executor, const RowsView& from) {
  Matrix<float> out(from.rows, from.dim);
  executor.ParallelFor(from.rows, [&](int64_t r, int) { from.Read(r, out.Row(r)); });
  return out;
}

void Gather(MatView<const float> from, std::span<const int32_t> index, Matrix<float>& to) {
  for (size_t i = 0; i < index.size(); ++i) std::copy_n(from.Row(index[i]), from.cols, to.Row(int64_t(i)));
}

struct Keys {
  Matrix<float> k, v;
};

struct Worker {
  Worker(const Problem& p, const RunOptions& o)
      : tile(p.q.dim, p.v.dim, o.plan.p),
        local(p.v.dim),
        exact(p.v.dim),
        even(p.v.dim),
        odd(p.v.dim),
        sample{{o.samples, p.q.dim}, {o.samples, p.v.dim}},
        joined(size_t(p.v.dim)),
        out_a(size_t(p.v.dim)),
        out_b(size_t(p.v.dim)) {}

  PowerTile tile;
  SavedStates local, exact, even, odd;  // local keys; with the set; halves of the sample
  Keys sample;
  std::vector<float> joined, out_a, out_b;
  std::vector<int32_t> keys;
  std::vector<float> weights;
};

class PowerHead {
 public:
  PowerHead(Executor& executor, const Problem& p, const RunOptions& o, const KeyPlan& plan, int64_t kv,
            const Output& output)
      : p_(p), o_(o), plan_(plan), kv_(kv), output_(output) {
    all_.k = ReadAll(executor, p.k.Head(kv));
    all_.v = ReadAll(executor, p.v.Head(kv));
    value_norm_ = LargestNorm(executor, p.v.Head(kv));
    sets_.reserve(plan.sets.size());
    for (const auto& set : plan.sets) {
      sets_.push_back({{int64_t(set.size()), p.q.dim}, {int64_t(set.size()), p.v.dim}});
      Gather(all_.k.View(), set, sets_.back().k);
      Gather(all_.v.View(), set, sets_.back().v);
    }
  }
  static int64_t Bytes(const Problem& p, const KeyPlan& plan) {
    int64_t keys = p.k.rows;
    for (const auto& set : plan.sets) keys += int64_t(set.size());
    return keys * (p.q.dim + p.v.dim) * 4 + (kWave + 1) * p.q.dim * p.q.dim * 8;
  }

  // Tiles first .. last, for which Gram matrices are made on the way.
  void PrepareWave(int64_t first, int64_t last) {
    grams_.clear();
    if (o_.plan.p != 2) return;
    if (sum_.rows() == 0) sum_ = Matrix<double>(p_.q.dim, p_.q.dim);
    for (int64_t t = first; t < last; ++t) {
      // Under a causal mask the local keys are counted row by row; otherwise all keys are in.
      const int64_t to = p_.mask.causal ? plan_.tiles[size_t(t)].local.first : p_.k.rows;
      linalg::AddGram(all_.k.View().Rows(summed_, to - summed_), {}, sum_.View());
      summed_ = to;
      if (p_.mask.causal || grams_.empty()) {
        grams_.emplace_back(p_.q.dim, p_.q.dim);
        std::copy_n(sum_.data(), p_.q.dim * p_.q.dim, grams_.back().data());
      }
    }
  }

  // Tile t, number `in_wave` of the wave, of query head h.
  RowErrors Run(int64_t t, int64_t in_wave, int64_t h, Worker& w) const {
    const TilePlan& tile = plan_.tiles[size_t(t)];
    const int64_t first = t * kTileRows, rows = std::min(kTileRows, p_.q.rows - first);
    const Keys& set = sets_[size_t(tile.set)];
    w.tile.Load(p_.q.Head(h).Rows(first, rows), p_.scale);
    Range visible[kTileRows];
    for (int64_t r = 0; r < rows; ++r) visible[r] = p_.Visible(first + r);
    const int64_t from = tile.local.first, n = tile.local.size();
    w.tile.Attend(all_.k.View().Rows(from, n), all_.v.View().Rows(from, n), {}, {visible, size_t(rows)}, from);
    w.local.Take(w.tile);
    w.tile.Attend(set.k.View().Rows(0, tile.before), set.v.View().Rows(0, tile.before));
    const int64_t behind = set.k.rows() - tile.after;
    w.tile.Attend(set.k.View().Rows(tile.after, behind), set.v.View().Rows(tile.after, behind));
    const int64_t samples = SampleCount(tile, o_.samples);
    const bool whole = samples == tile.rest;
    if (samples > 0) {
      SampleRest(plan_, tile, SampleStream(o_.seed, kv_, t), samples, w.keys, w.weights);
      Gather(all_.k.View(), w.keys, w.sample.k);
      Gather(all_.v.View(), w.keys, w.sample.v);
    }
    if (whole) AttendSample(w, 0, samples);
    w.exact.Take(w.tile);
    if (!whole && samples > 0) {
      w.tile.Clear();
      AttendSample(w, 0, samples / 2);
      w.even.Take(w.tile);
      w.tile.Clear();
      AttendSample(w, samples / 2, samples);
      w.odd.Take(w.tile);
    }
    const Matrix<double>* gram = grams_.empty() || whole ? nullptr : &grams_[size_t(p_.mask.causal ? in_wave : 0)];
    RowErrors errors;
    for (int64_t r = 0; r < rows; ++r) errors.Add(FinishRow(h, first, r, gram, whole ? 0 : samples, whole, w));
    return errors;
  }

 private:
  void AttendSample(Worker& w, int64_t begin, int64_t end) const {
    w.tile.Attend(w.sample.k.View().Rows(begin, end - begin), w.sample.v.View().Rows(begin, end - begin),
                  std::span(w.weights).subspan(size_t(begin), size_t(end - begin)));
  }

  // ln of the row's sum over all keys it sees: q^T G q and, under a causal mask, what the local keys have.
  double LogNormaliser(int64_t r, const Matrix<double>& gram, Worker& w) const {
    const float* q = w.tile.queries().Row(r);
    double sum = 0;
    for (int64_t i = 0; i < p_.q.dim; ++i) {
      double dot = 0;
      for (int64_t j = 0; j < p_.q.dim; ++j) dot += gram.Row(i)[j] * double(q[j]);
      sum += dot * double(q[i]);
    }
    sum = std::max(sum, 0.) * double(p_.scale) * double(p_.scale);
    if (p_.mask.causal && w.local.l[r] > 0) sum += double(w.local.l[r]) * std::exp(double(w.local.m[r]));
    return sum > 0 ? std::log(sum) : double(kEmptyMax);
  }

  // exact + factor * half (+ other), divided by its own mass or, where it is known, by exp(log_normaliser).
  float Join(Worker& w, int64_t r, SavedStates* half, float factor, SavedStates* other, const double* log_normaliser,
             std::span<float> out) const {
    const Partial exact = w.exact.Row(r);
    std::copy(exact.a.begin(), exact.a.end(), w.joined.begin());
    Partial sum{exact.m, exact.l, w.joined};
    if (half != nullptr) {
      Partial part = half->Row(r);
      if (part.l > 0) part.m += std::log(factor);
      Merge(part, sum);
    }
    if (other != nullptr) Merge(other->Row(r), sum);
    if (log_normaliser == nullptr) return Finalize(sum, out);
    const auto scale = sum.l > 0 ? float(std::exp(double(sum.m) - *log_normaliser)) : 0.f;
    for (size_t c = 0; c < out.size(); ++c) out[c] = scale * sum.a[c];
    return float(*log_normaliser);
  }

  RowErrors FinishRow(int64_t h, int64_t first, int64_t r, const Matrix<double>* gram, int64_t samples, bool whole,
                      Worker& w) const {
    const std::span<float> out = output_.Head(h, p_.q.rows, p_.v.dim)[first + r];
    const double known = gram != nullptr ? LogNormaliser(r, *gram, w) : 0;
    const double* normaliser = gram != nullptr ? &known : nullptr;
    SavedStates *even = samples > 0 ? &w.even : nullptr, *odd = samples > 0 ? &w.odd : nullptr;
    const float lse = Join(w, r, even, 1, odd, normaliser, out);
    if (output_.lse != nullptr) output_.lse[h * p_.q.rows + first + r] = lse;
    if (whole) return {};
    RowErrors errors;
    if (samples > 0) {
      const float a = Join(w, r, even, 2, nullptr, normaliser, w.out_a),
                  b = Join(w, r, odd, 2, nullptr, normaliser, w.out_b);
      errors.relative = RelativeDifference(w.out_a, w.out_b, out, value_norm_) / 2;
      errors.lse = std::abs(double(a) - double(b)) / 2;
    } else if (gram != nullptr) {
      // The weights of the keys left out are known in sum: a bound, not an estimate.
      const double seen = w.exact.l[r] > 0 ? double(w.exact.l[r]) * std::exp(double(w.exact.m[r]) - known) : 0;
      double size = 0;
      for (const float x : out) size += double(x) * double(x);
      const double scale = std::sqrt(size) + 1e-3 * value_norm_;
      if (scale > 0) errors.relative = std::max(0., 1 - seen) * value_norm_ / scale;
    }
    return errors;
  }

  const Problem& p_;
  const RunOptions& o_;
  const KeyPlan& plan_;
  int64_t kv_;
  const Output& output_;
  Keys all_;
  std::vector<Keys> sets_;
  Matrix<double> sum_;                 // Gram of the first summed_ keys
  std::vector<Matrix<double>> grams_;  // of the wave's tiles; with no mask one for all
  int64_t summed_ = 0;
  double value_norm_ = 0;
};

}  // namespace

Status RunPower(Executor& executor, const Problem& p, const RunOptions& o, const Output& output, RunReport* report) {
  const int64_t tiles = (p.q.rows + kTileRows - 1) / kTileRows, group = p.Group();
  CROQUIS_CHECK_OK(CheckMemory(p.k.rows * ((p.q.dim + 1) * 4 + 24), "the leverage scores of a head's keys"));
  const std::vector<KeyPlan> plans = PlanKeys(executor, p, o.plan);
  std::vector<Worker> workers;
  workers.reserve(size_t(executor.threads()));
  for (int i = 0; i < executor.threads(); ++i) workers.emplace_back(p, o);
  RowErrors errors;
  for (int64_t kv = 0; kv < p.k.heads; ++kv) {
    CROQUIS_CHECK_OK(CheckMemory(PowerHead::Bytes(p, plans[size_t(kv)]), "a head's keys in f32 and its sets"));
    PowerHead head(executor, p, o, plans[size_t(kv)], kv, output);
    for (int64_t first = 0; first < tiles; first += kWave) {
      const int64_t n = std::min(kWave, tiles - first);
      head.PrepareWave(first, first + n);
      std::vector<RowErrors> parts(size_t(n * group));
      executor.ParallelFor(n * group, [&](int64_t task, int worker) {
        const int64_t at = task / group;
        parts[size_t(task)] = head.Run(first + at, at, kv * group + task % group, workers[size_t(worker)]);
      });
      for (const RowErrors& e : parts) errors.Add(e);
    }
  }
  const double rows = double(p.q.rows * p.q.heads);
  report->pairs = PlannedPairs(p, plans, o.samples);
  const bool judged = o.samples > 0 || o.plan.p == 2;
  report->est_error = judged ? errors.relative / rows : -1;
  report->lse_std = judged ? errors.lse / rows : -1;
  report->kernel = "f32 (oneDNN)";
  return {};
}

}  // namespace croquis::attention::lev
