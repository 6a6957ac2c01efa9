// How wrong an answer may be, and rows that are computed again exactly.
//
// With samples each row has an estimate of its own: the difference between the two halves of its samples. Moments are
// not random, so their error is measured: some rows of each head, one at random from each slice of the rows, are
// computed exactly. The estimate is their mean error. For other rows, error is taken to be proportional to the share of
// mass that came from cells, with a factor that 9 of 10 probes stay below.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "croquis/attention/hyper/engine.h"
#include "croquis/base/rng.h"

namespace croquis::attention::hyper {
namespace {

constexpr uint64_t kPurpose = Purpose("attention.hyper.probes");
constexpr int64_t kPart = 8192;  // keys of a parallel task

double Norm(std::span<const float> x) {
  double squares = 0;
  for (const float v : x) squares += double(v) * double(v);
  return std::sqrt(squares);
}

// The largest of up to 1024 evenly spaced rows' norms.
double LargestNorm(const RowsView& v) {
  const int64_t n = std::min<int64_t>(1024, v.rows);
  std::vector<float> row(static_cast<size_t>(v.dim));
  double most = 0;
  for (int64_t i = 0; i < n; ++i) {
    ReadRows(v, i * v.rows / n, 1, row.data());
    most = std::max(most, Norm(row));
  }
  return most;
}

}  // namespace

void Engine::Certify(int64_t kv, RunReport* report) {
  const double floor = 1e-3 * LargestNorm(head_.v.Head(0));
  const std::vector<ProbeResult> probes = Probe(kv, floor);
  for (int64_t g = 0; g < problem_.Group(); ++g) {
    std::vector<int32_t> failed;
    CertifyHead(kv, g, floor, probes[size_t(g)], failed, report);
    if (failed.empty()) continue;
    Recompute(kv, g, failed);
    report->fallback_rows += int64_t(failed.size());
  }
}

// Adds a head's estimates to the report and lists its rows that fail.
void Engine::CertifyHead(int64_t kv, int64_t g, double floor, const ProbeResult& probes, std::vector<int32_t>& failed,
                         RunReport* report) const {
  const int64_t nq = problem_.q.rows;
  const auto share = [&](int64_t row) {
    const RowState& state = State(g, row);
    return state.mass > 0 ? double(state.deviation) / double(state.mass) : 0.;
  };
  std::vector<double> ratios;
  for (size_t i = 0; i < probes.rows.size(); ++i)
    if (const double s = share(probes.rows[i]); s > 1e-6) ratios.push_back(probes.errors[i] / s);
  std::sort(ratios.begin(), ratios.end());
  const double ratio = ratios.empty() ? 0 : ratios[std::min(ratios.size() - 1, ratios.size() * 9 / 10)];
  const auto estimate = [&](int64_t row) {
    if (!certify_) return ratio * share(row);
    const RowState& state = State(g, row);
    if (state.mass == 0) return 0.;
    return std::sqrt(double(state.deviation)) / double(state.mass) / (Norm(Answer(kv, g, row)) + floor);
  };
  const bool test = options_.tolerance > 0;
  if (test)
    for (int64_t row = 0; row < nq; ++row)
      if (estimate(row) > options_.tolerance) failed.push_back(int32_t(row));
  // A cap would let one row's answer depend on how others fare.
  if (!options_.strict && double(failed.size()) > options_.cap * double(nq)) {
    failed.resize(size_t(nq));
    for (int64_t row = 0; row < nq; ++row) failed[size_t(row)] = int32_t(row);
  }
  const auto fails = [&](int64_t row) { return std::binary_search(failed.begin(), failed.end(), int32_t(row)); };
  if (certify_) {
    for (int64_t row = 0; row < nq; ++row) {
      const RowState& state = State(g, row);
      if (fails(row) || state.mass == 0) continue;
      report->est_error += estimate(row);
      report->lse_std += std::sqrt(double(state.mass_deviation)) / double(state.mass);
    }
    return;
  }
  double errors = 0, squares = 0;
  for (size_t i = 0; i < probes.rows.size(); ++i) {
    if (fails(probes.rows[i])) continue;
    errors += probes.errors[i];
    squares += probes.lse_errors[i] * probes.lse_errors[i];
  }
  const double n = std::max<double>(1, double(probes.rows.size()));
  report->est_error += errors / n * double(nq);
  report->lse_std += std::sqrt(squares / n) * double(nq);
}

std::vector<int32_t> Engine::ProbeRows(int64_t head) const {
  const Stream random = Stream{options_.seed, kPurpose}.Sub(uint64_t(head));
  const int64_t nq = problem_.q.rows, n = std::min(options_.probes, nq);
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t first = i * nq / n, last = (i + 1) * nq / n;
    rows.push_back(int32_t(first + int64_t((uint64_t(random.U32(uint64_t(i))) * uint64_t(last - first)) >> 32)));
  }
  return rows;
}

// Exact answers of some rows of each head, beside what stands in the output. Keys are cut into parts, so that one head
// keeps several threads busy.
std::vector<Engine::ProbeResult> Engine::Probe(int64_t kv, double floor) {
  const int64_t group = problem_.Group(), width = problem_.v.dim, nk = problem_.k.rows;
  std::vector<ProbeResult> results(static_cast<size_t>(group));
  if (certify_ || options_.probes == 0) return results;
  for (int64_t g = 0; g < group; ++g) results[size_t(g)].rows = ProbeRows(kv * group + g);
  const auto n = int64_t(results[0].rows.size()), parts = (nk + kPart - 1) / kPart;
  Matrix<float> sums(group * parts * n, width);
  std::vector<Partial> partials(size_t(group * parts * n));
  executor_->ParallelFor(group * parts, [&](int64_t task, int worker) {
    Worker& w = workers_[size_t(worker)];
    const int64_t part = task % parts;
    AttendExactly(task / parts, results[size_t(task / parts)].rows, {part * kPart, std::min(nk, (part + 1) * kPart)},
                  w);
    for (int64_t i = 0; i < n; ++i) {
      const Partial now = w.tile.State(i);
      std::copy(now.a.begin(), now.a.end(), sums.Row(task * n + i));
      partials[size_t(task * n + i)] = {now.m, now.l, {sums.Row(task * n + i), size_t(width)}};
    }
  });
  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < n; ++i) {
      Partial& exact = partials[size_t(g * parts * n + i)];
      for (int64_t part = 1; part < parts; ++part)
        attention::Merge(partials[size_t((g * parts + part) * n + i)], exact);
      const double lse = double(Finalize(exact, exact.a));
      const int64_t row = results[size_t(g)].rows[size_t(i)];
      const RowState& state = State(g, row);
      const double got =
          state.mass > 0 ? double(state.max) * std::numbers::ln2 + std::log(double(state.mass)) : double(kEmptyMax);
      const double size = Norm(exact.a);
      const std::span<const float> answer = Answer(kv, g, row);
      for (size_t c = 0; c < exact.a.size(); ++c) exact.a[c] -= answer[c];
      results[size_t(g)].errors.push_back(exact.l == 0 ? 0 : Norm(exact.a) / (size + floor));
      results[size_t(g)].lse_errors.push_back(exact.l == 0 ? 0 : got - lse);
    }
  return results;
}

// Up to 64 rows against a part of all keys. Without a mask keys are taken in hash order: the globals, then the sorted.
void Engine::AttendExactly(int64_t g, std::span<const int32_t> rows, Range part, Worker& w) {
  const auto n = int64_t(rows.size());
  w.tile.Load(head_.q.Head(g), n, problem_.scale, rows);
  if (in_order_.keys() > 0) {
    w.visible.resize(size_t(n));
    for (int64_t i = 0; i < n; ++i) {
      w.visible[size_t(i)] = problem_.Visible(rows[size_t(i)]);
      w.pairs +=
          double(Range{std::max(part.first, w.visible[size_t(i)].first), std::min(part.last, w.visible[size_t(i)].last)}
                     .size());
    }
    return w.tile.Attend(in_order_, part.first, part.last, {w.visible.data(), size_t(n)});
  }
  w.pairs += double(n * part.size());
  const Segment& s = plan_.segments[0];
  const int64_t globals = s.slot, sorted = s.slot + s.GlobalSlots() - s.globals;
  const KeyRange both[] = {{.keys = &segment_keys_.sorted(),
                            .begin = globals + std::min(part.first, s.globals),
                            .end = globals + std::min(part.last, s.globals)},
                           {.keys = &segment_keys_.sorted(),
                            .begin = sorted + std::max(part.first, s.globals),
                            .end = sorted + std::max(part.last, s.globals)}};
  w.tile.Attend(both);
}

void Engine::Recompute(int64_t kv, int64_t g, const std::vector<int32_t>& rows) {
  const int64_t n = int64_t(rows.size()), tiles = (n + kTileRows - 1) / kTileRows;
  executor_->ParallelFor(tiles, [&](int64_t task, int worker) {
    Worker& w = workers_[size_t(worker)];
    const auto of_tile =
        std::span(rows).subspan(size_t(task * kTileRows), size_t(std::min(kTileRows, n - task * kTileRows)));
    AttendExactly(g, of_tile, {0, problem_.k.rows}, w);
    for (size_t i = 0; i < of_tile.size(); ++i) {
      const float lse = w.tile.Finalize(int64_t(i), Answer(kv, g, of_tile[i]));
      if (output_.lse != nullptr) output_.lse[(kv * problem_.Group() + g) * problem_.q.rows + of_tile[i]] = lse;
    }
  });
}

}  // namespace croquis::attention::hyper
