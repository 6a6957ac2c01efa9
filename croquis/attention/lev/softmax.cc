#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "croquis/attention/lev/runs.h"
#include "croquis/attention/tiles.h"
#include "croquis/base/memory.h"

namespace croquis::attention::lev {
namespace {

constexpr int64_t kProbeRows = 16;  // a head's rows computed exactly when there is no sample to judge by

struct Worker {
  Worker(TileType type, const Problem& p, int64_t samples)
      : tile(type, p.q.dim, p.v.dim),
        sample(type, samples, p.q.dim, p.v.dim),
        exact(p.v.dim),
        even(p.v.dim),
        odd(p.v.dim),
        joined(size_t(p.v.dim)),
        out_a(size_t(p.v.dim)),
        out_b(size_t(p.v.dim)) {}

  QueryTile tile;
  KeySet sample;
  SavedStates exact, even, odd;  // planned keys, and the halves of the sample
  std::vector<float> joined, out_a, out_b;
  std::vector<int32_t> keys;
  std::vector<float> weights;
};

// exact + a factor of one half of the sample (+ the other half): the answer into `out`, its log-sum-exp returned.
float Join(Worker& w, int64_t r, SavedStates& half, float log_factor, SavedStates* other, std::span<float> out) {
  const Partial exact = w.exact.Row(r);
  std::copy(exact.a.begin(), exact.a.end(), w.joined.begin());
  Partial sum{exact.m, exact.l, w.joined};
  Partial part = half.Row(r);
  if (part.l > 0) part.m += log_factor;
  Merge(part, sum);
  if (other != nullptr) Merge(other->Row(r), sum);
  return Finalize(sum, out);
}

class SoftmaxHead {
 public:
  SoftmaxHead(const Problem& p, const RunOptions& o, const KeyPlan& plan, int64_t kv, const Output& output)
      : p_(p), o_(o), plan_(plan), kv_(kv), output_(output) {}

  size_t Bytes() const {
    size_t bytes = KeySet::Bytes(o_.type, p_.k.rows, p_.q.dim, p_.v.dim);
    for (const auto& set : plan_.sets) bytes += KeySet::Bytes(o_.type, int64_t(set.size()), p_.q.dim, p_.v.dim);
    return bytes;
  }

  void Pack(Executor& executor) {
    const RowsView k = p_.k.Head(kv_), v = p_.v.Head(kv_);
    all_ = KeySet(o_.type, p_.k.rows, p_.q.dim, p_.v.dim);
    all_.Pack(executor, k, v);
    sets_.reserve(plan_.sets.size());
    for (const auto& set : plan_.sets) {
      sets_.emplace_back(o_.type, int64_t(set.size()), p_.q.dim, p_.v.dim);
      sets_.back().Pack(executor, k, v, set);
    }
    if (o_.samples > 0) value_norm_ = LargestNorm(executor, v);
  }

  // Tile t of query heads first .. first + heads of the group. Adds up the errors of its rows.
  RowErrors Run(int64_t t, int64_t first, int64_t heads, Worker& w) const {
    const TilePlan& tile = plan_.tiles[size_t(t)];
    const int64_t samples = SampleCount(tile, o_.samples);
    if (samples > 0) {
      SampleRest(plan_, tile, SampleStream(o_.seed, kv_, t), samples, w.keys, w.weights);
      for (int64_t i = 0; i < samples; ++i) w.sample.SetLogWeight(i, std::log(w.weights[size_t(i)]));
      w.keys.resize(size_t(w.sample.keys()));  // slots beyond are packed but not used
      for (int64_t b = 0; b * kTileKeys < samples; ++b) w.sample.PackBlock(b, p_.k.Head(kv_), p_.v.Head(kv_), w.keys);
    }
    RowErrors errors;
    for (int64_t g = first; g < first + heads; ++g) errors.Add(RunHead(t, kv_ * p_.Group() + g, samples, w));
    return errors;
  }

  // How far the answers of some rows of head h are from exact ones.
  RowErrors Probe(int64_t h, QueryTile& tile) const {
    const int64_t nq = p_.q.rows, rows = std::min(kProbeRows, nq);
    int32_t index[kProbeRows];
    Range visible[kProbeRows];
    for (int64_t r = 0; r < rows; ++r) {
      index[r] = int32_t((2 * r + 1) * nq / (2 * rows));
      visible[r] = p_.Visible(index[r]);
    }
    tile.Load(p_.q.Head(h), rows, p_.scale, {index, size_t(rows)});
    tile.Attend(all_, 0, p_.k.rows, {visible, size_t(rows)});
    RowErrors errors;
    std::vector<float> exact(static_cast<size_t>(p_.v.dim));
    for (int64_t r = 0; r < rows; ++r) {
      const float lse = tile.Finalize(r, exact);
      const std::span<const float> got = output_.Head(h, nq, p_.v.dim)[index[r]];
      errors.relative += RelativeDifference(got, exact, exact, value_norm_) / double(rows);
      if (output_.lse != nullptr)
        errors.lse += std::abs(double(output_.lse[h * nq + index[r]]) - double(lse)) / double(rows);
    }
    return errors;
  }

 private:
  RowErrors RunHead(int64_t t, int64_t h, int64_t samples, Worker& w) const {
    const TilePlan& tile = plan_.tiles[size_t(t)];
    const int64_t first = t * kTileRows, rows = std::min(kTileRows, p_.q.rows - first);
    const KeySet& set = sets_[size_t(tile.set)];
    w.tile.Load(p_.q.Head(h).Rows(first, rows), rows, p_.scale);
    w.tile.Attend(set, 0, tile.before);
    w.tile.Attend(set, tile.after, set.keys());
    Range visible[kTileRows];
    for (int64_t r = 0; r < rows; ++r) visible[r] = p_.Visible(first + r);
    w.tile.Attend(all_, tile.local.first, tile.local.last, {visible, size_t(rows)});
    const bool whole = samples == tile.rest;  // then nothing is estimated
    if (samples > 0 && whole) w.tile.Attend(w.sample, 0, samples);
    const bool estimated = samples > 0 && !whole;
    if (estimated) {
      w.exact.Take(w.tile);
      w.tile.Clear();
      w.tile.Attend(w.sample, 0, samples / 2);
      w.even.Take(w.tile);
      w.tile.Clear();
      w.tile.Attend(w.sample, samples / 2, samples);
      w.odd.Take(w.tile);
    }
    RowErrors errors;
    for (int64_t r = 0; r < rows; ++r) {
      const std::span<float> out = output_.Head(h, p_.q.rows, p_.v.dim)[first + r];
      const float lse = estimated ? Join(w, r, w.even, 0, &w.odd, out) : w.tile.Finalize(r, out);
      if (output_.lse != nullptr) output_.lse[h * p_.q.rows + first + r] = lse;
      if (!estimated) continue;
      // Each half, counted twice, is an estimate of its own; half their difference is the deviation of the whole.
      constexpr float kTwice = std::numbers::ln2_v<float>;
      const float a = Join(w, r, w.even, kTwice, nullptr, w.out_a), b = Join(w, r, w.odd, kTwice, nullptr, w.out_b);
      errors.relative += RelativeDifference(w.out_a, w.out_b, out, value_norm_) / 2;
      errors.lse += std::abs(double(a) - double(b)) / 2;
    }
    return errors;
  }

  const Problem& p_;
  const RunOptions& o_;
  const KeyPlan& plan_;
  int64_t kv_;
  const Output& output_;
  KeySet all_;
  std::vector<KeySet> sets_;  // one for each of the plan's
  double value_norm_ = 0;
};

}  // namespace

Status RunSoftmax(Executor& executor, const Problem& p, const RunOptions& o, const Output& output, RunReport* report) {
  const int64_t tiles = (p.q.rows + kTileRows - 1) / kTileRows, group = p.Group();
  CROQUIS_CHECK_OK(CheckMemory(p.k.rows * ((p.q.dim + 1) * 4 + 24), "the leverage scores of a head's keys"));
  const std::vector<KeyPlan> plans = PlanKeys(executor, p, o.plan);
  // Few tiles: heads apart, so that all threads have work. Many: one sample for all heads of a group.
  const int64_t heads = tiles >= 32 ? group : 1, parts = group / heads;
  std::vector<Worker> workers;
  workers.reserve(size_t(executor.threads()));
  for (int i = 0; i < executor.threads(); ++i) workers.emplace_back(o.type, p, o.samples);
  RowErrors errors;
  for (int64_t kv = 0; kv < p.k.heads; ++kv) {
    SoftmaxHead head(p, o, plans[size_t(kv)], kv, output);
    CROQUIS_CHECK_OK(CheckMemory(int64_t(head.Bytes()), "the packed keys of a head and its universal sets"));
    head.Pack(executor);
    std::vector<RowErrors> parts_errors(size_t(tiles * parts));
    executor.ParallelFor(tiles * parts, [&](int64_t task, int worker) {
      parts_errors[size_t(task)] = head.Run(task / parts, task % parts * heads, heads, workers[size_t(worker)]);
    });
    for (const RowErrors& e : parts_errors) errors.Add({e.relative / double(p.q.rows), e.lse / double(p.q.rows)});
    if (o.samples == 0) {
      std::vector<RowErrors> probes(static_cast<size_t>(group));
      executor.ParallelFor(group, [&](int64_t g, int worker) {
        probes[size_t(g)] = head.Probe(kv * group + g, workers[size_t(worker)].tile);
      });
      for (const RowErrors& e : probes) errors.Add(e);
      report->pairs += double(group * std::min(kProbeRows, p.q.rows)) * double(p.k.rows);
    }
  }
  report->pairs += PlannedPairs(p, plans, o.samples);
  report->est_error = errors.relative / double(p.q.heads);
  report->lse_std = o.samples == 0 && output.lse == nullptr ? -1 : errors.lse / double(p.q.heads);
  report->kernel = simd::Tiles(o.type).name;
  return {};
}

}  // namespace croquis::attention::lev
