// The chooser: per head, a sub-quadratic method where its error on probe rows stays below a target, exact attention
// elsewhere; docs/methods/auto.md.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "croquis/attention/method.h"
#include "croquis/attention/row_error.h"
#include "croquis/attention/tiles.h"
#include "croquis/base/rng.h"

namespace croquis::attention {
namespace {

constexpr ParamInfo kParams[] = {
    {.name = "eps",
     .def = "0.05",
     .help = "target: mean over rows of |o~ - o| / (|o| + 1e-3 max |v|), with confidence 90 %; 0: exact",
     .real_min = 0,
     .real_max = 10},
    {"probes", "48", 32, 64, {}, "rows of each head computed exactly to measure the error"},
    {"try", "hyper", 0, 0, "hyper|lev|kdeformer", "the method that is tried before exact"},
    {"min_length", "2048", 1, int64_t(1) << 30, {}, "so many keys or fewer are attended exactly"},
    {"leaf", "0", 0, int64_t(1) << 30, {}, "hyper: its min_length, so many keys are exact within it; 0: its default"},
    kPrecisionParam};

// Standard deviations from a mean to the limit of its one-sided 90 % confidence interval.
constexpr double kConfidence = 1.2816;

// The pilot: a method's errors on this many rows, which tell heads it is no good for from others before it computes
// all rows. As many as sub-quadratic methods still sort keys for; fewer they attend exactly.
constexpr int64_t kPilotRows = 512;
constexpr int64_t kPilotShare = 8;  // of so many times as many rows or more
constexpr int64_t kPilotPart = 4;   // causal: rows that end after this part of all

constexpr uint64_t kPilot = Purpose("attention.auto.pilot"), kCertificate = Purpose("attention.auto.probes");

class Auto final : public Method {
 public:
  Auto(const Spec& spec, uint64_t seed, std::unique_ptr<const Method> candidate, std::unique_ptr<const Method> exact)
      : spec_(spec),
        eps_(spec.Real("eps")),
        probes_(spec.Int("probes")),
        min_length_(spec.Int("min_length")),
        seed_(seed),
        candidate_name_(spec.Word("try")),
        candidate_(std::move(candidate)),
        exact_(std::move(exact)) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    const auto heads = size_t(p.q.heads);
    if (eps_ == 0 || p.k.rows <= min_length_ || p.q.rows < 2 * probes_) {
      report->chosen.assign(heads, "exact");
      return exact_->Run(executor, p, output, report);
    }
    CROQUIS_CHECK_OK(CheckMemory(int64_t(KeySet::Bytes(TileTypeOf(spec_, p), p.k.rows, p.q.dim, p.v.dim)),
                                 "the packed keys of a head"));
    CROQUIS_TRY(const Heads tried, Pilot(executor, p, report));
    CROQUIS_CHECK_OK(RunHeads(executor, *candidate_, p, output, tried, report));
    const std::vector<Estimate> errors = ProbeErrors(executor, p, output, kCertificate, tried, report);
    report->est_error = 0, report->lse_std = -1;
    Heads rest(heads, 1);
    for (size_t h = 0; h < heads; ++h) {
      const double error = errors[h].mean + kConfidence * errors[h].deviation;
      if (tried[h] != 0 && error <= eps_) {
        rest[h] = 0;
        report->est_error += error / double(heads);
      }
      report->chosen.push_back(rest[h] != 0 ? "exact" : candidate_name_);
      if (tried[h] != 0 && rest[h] != 0) report->fallback_rows += p.q.rows;
    }
    return RunHeads(executor, *exact_, p, output, rest, report);
  }

 private:
  using Heads = std::vector<char>;  // of a problem: not 0 where meant
  struct Estimate {
    double mean = 0, deviation = 0;  // of a head's row errors; the deviation is that of the mean
  };

  // Heads worth a trial: those whose mean error on the pilot's rows is not above the target. That is where the limit of
  // confidence, which decides in the end, has room to be below it.
  Result<Heads> Pilot(Executor& executor, const Problem& p, RunReport* report) const {
    Heads tried(size_t(p.q.heads), 1);
    const Problem pilot = PilotOf(p);
    if (pilot.q.rows == 0) return tried;
    CROQUIS_CHECK_OK(CheckMemory(p.q.heads * pilot.q.rows * p.v.dim * 4, "the answers of a pilot"));
    Matrix<float> answers(p.q.heads * pilot.q.rows, p.v.dim);
    const Output output{answers.data(), pilot.q.rows * p.v.dim, p.v.dim, nullptr};
    CROQUIS_CHECK_OK(RunHeads(executor, *candidate_, pilot, output, tried, report));
    const std::vector<Estimate> errors = ProbeErrors(executor, pilot, output, kPilot, tried, report);
    for (size_t h = 0; h < tried.size(); ++h) tried[h] = errors[h].mean <= eps_;
    return tried;
  }

  // Some rows of all heads, with the keys they see: under a causal mask rows that lie together and see a quarter of
  // the keys (methods err more for later rows), otherwise every so many-th. No rows where that would be no small part
  // of the work.
  Problem PilotOf(const Problem& p) const {
    Problem pilot = p;
    pilot.q.rows = p.q.rows >= kPilotShare * kPilotRows ? kPilotRows : 0;
    if (!p.mask.causal) {
      pilot.q.row_stride *= p.q.rows / kPilotRows;
      return pilot;
    }
    const int64_t last = p.q.rows / kPilotPart, first = last - kPilotRows;
    pilot.k.rows = pilot.v.rows = std::clamp<int64_t>(p.mask.offset + last, 0, p.k.rows);
    if (pilot.k.rows <= min_length_) pilot.q.rows = 0;
    if (pilot.q.rows == 0) return pilot;
    pilot.q.data = p.q.Head(0).Row(first);
    pilot.mask.offset += first;
    return pilot;
  }

  // Runs a method on some heads, those of whole kv heads together.
  static Status RunHeads(Executor& executor, const Method& method, const Problem& p, const Output& output,
                         const Heads& which, RunReport* report) {
    const int64_t group = p.Group();
    const auto run = [&](const Problem& part, int64_t first) -> Status {
      RunReport one;
      one.exact_pairs = part.Pairs(), one.rows = part.q.heads * part.q.rows;
      CROQUIS_CHECK_OK(method.Run(executor, part, output.OneHead(first, p.q.rows), &one));
      report->pairs += one.pairs;
      report->kernel = one.kernel;
      return {};
    };
    const auto whole = [&](int64_t kv) {
      return std::all_of(&which[size_t(kv * group)], &which[size_t(kv * group)] + group, [](char x) { return x != 0; });
    };
    for (int64_t kv = 0, next; kv < p.k.heads; kv = next) {
      for (next = kv; next < p.k.heads && whole(next);) ++next;
      if (next > kv) {
        Problem part = p;
        part.q = p.q.Heads(kv * group, (next - kv) * group);
        part.k = p.k.Heads(kv, next - kv), part.v = p.v.Heads(kv, next - kv);
        CROQUIS_CHECK_OK(run(part, kv * group));
        continue;
      }
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h)
        if (which[size_t(h)] != 0) CROQUIS_CHECK_OK(run(p.OneHead(h), h));
      ++next;
    }
    return {};
  }

  // Rows of a head to compute exactly: one of each slice of the rows, at random.
  std::array<int32_t, kTileRows> ProbeRows(uint64_t purpose, int64_t head, int64_t rows) const {
    const Stream random = Stream{seed_, purpose}.Sub(uint64_t(head));
    std::array<int32_t, kTileRows> at{};
    for (int64_t i = 0; i < probes_; ++i) {
      const int64_t first = i * rows / probes_, last = (i + 1) * rows / probes_;
      at[size_t(i)] = int32_t(
          first + std::min(last - first - 1, int64_t(double(random.Uniform(uint64_t(i))) * double(last - first))));
    }
    return at;
  }

  // For each of these heads the mean row error of what stands in output.
  std::vector<Estimate> ProbeErrors(Executor& executor, const Problem& p, const Output& output, uint64_t purpose,
                                    const Heads& which, RunReport* report) const {
    static_assert(kTileRows >= 64);
    const TileType type = TileTypeOf(spec_, p);
    std::vector<Estimate> errors(static_cast<size_t>(p.q.heads));
    KeySet keys(type, p.k.rows, p.q.dim, p.v.dim);
    std::vector<QueryTile> workers;
    workers.reserve(size_t(executor.threads()));
    for (int i = 0; i < executor.threads(); ++i) workers.emplace_back(type, p.q.dim, p.v.dim);
    for (int64_t kv = 0; kv < p.k.heads; ++kv) {
      std::vector<int64_t> heads;
      for (int64_t h = kv * p.Group(); h < (kv + 1) * p.Group(); ++h)
        if (which[size_t(h)] != 0) heads.push_back(h);
      if (heads.empty()) continue;
      keys.Pack(executor, p.k.Head(kv), p.v.Head(kv));
      const double largest = LargestNorm(executor, p.v.Head(kv));
      executor.ParallelFor(int64_t(heads.size()), [&](int64_t task, int worker) {
        const int64_t h = heads[size_t(task)];
        errors[size_t(h)] =
            HeadError(p, output, h, ProbeRows(purpose, h, p.q.rows), keys, largest, workers[size_t(worker)]);
      });
      for (const int64_t h : heads) {
        const auto rows = ProbeRows(purpose, h, p.q.rows);
        for (int64_t i = 0; i < probes_; ++i) report->pairs += double(p.Visible(rows[size_t(i)]).size());
      }
    }
    return errors;
  }

  Estimate HeadError(const Problem& p, const Output& output, int64_t h, const std::array<int32_t, kTileRows>& rows,
                     const KeySet& keys, double largest, QueryTile& tile) const {
    tile.Load(p.q.Head(h), probes_, p.scale, std::span(rows).first(size_t(probes_)));
    std::array<Range, kTileRows> visible;
    for (int64_t i = 0; i < probes_; ++i) visible[size_t(i)] = p.Visible(rows[size_t(i)]);
    tile.Attend(keys, 0, keys.keys(), visible);
    std::vector<float> exact(static_cast<size_t>(p.v.dim));
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < probes_; ++i) {
      tile.Finalize(i, exact);
      const auto got = output.Head(h, p.q.rows, p.v.dim)[rows[size_t(i)]];
      const double e = RowError(got, exact, largest);
      sum += e, squares += e * e;
    }
    const auto n = double(probes_);
    const double mean = sum / n, variance = std::max(0.0, squares / n - mean * mean) * n / (n - 1);
    return {mean, std::sqrt(variance / n)};
  }

  const Spec spec_;
  const double eps_;
  const int64_t probes_, min_length_;
  const uint64_t seed_;
  const std::string candidate_name_;
  const std::unique_ptr<const Method> candidate_, exact_;
};

Result<std::unique_ptr<const Method>> MakeAuto(const Spec& spec, uint64_t seed) {
  const std::string precision = ":precision=" + std::string(spec.Word("precision"));
  std::string candidate_text = std::string(spec.Word("try")) + precision;
  if (const int64_t leaf = spec.Int("leaf"); leaf > 0) {
    if (spec.Word("try") != "hyper") return InvalidArgument("auto: leaf is for try=hyper; leave it out");
    candidate_text += ",min_length=" + std::to_string(leaf);
  }
  CROQUIS_TRY(auto exact, Make("exact" + precision, seed));
  CROQUIS_TRY(auto candidate, Make(candidate_text, seed));
  return std::make_unique<Auto>(spec, seed, std::move(candidate), std::move(exact));
}

}  // namespace

extern const MethodInfo kMethod_auto;
const MethodInfo kMethod_auto = {
    .name = "auto",
    .summary = "tries a sub-quadratic method, measures it on exact probe rows, keeps it per head or goes exact",
    .paper = "Croquis",
    .params = kParams,
    .make = MakeAuto};

}  // namespace croquis::attention
