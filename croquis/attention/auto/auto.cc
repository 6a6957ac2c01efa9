// The chooser: per head, a sub-quadratic method where its error on probe rows stays below a target, exact attention
// elsewhere.
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

// Upper limit of a one-sided 90 % confidence interval of a mean.
constexpr double kConfidence = 1.2816;

class Auto final : public Method {
 public:
  Auto(const Spec& spec, uint64_t seed, std::unique_ptr<const Method> candidate, std::unique_ptr<const Method> exact)
      : spec_(spec),
        eps_(spec.Real("eps")),
        probes_(spec.Int("probes")),
        seed_(seed),
        candidate_name_(spec.Word("try")),
        candidate_(std::move(candidate)),
        exact_(std::move(exact)) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    if (eps_ == 0 || p.k.rows <= spec_.Int("min_length") || p.q.rows < 2 * probes_) {
      report->chosen.assign(size_t(p.q.heads), "exact");
      return exact_->Run(executor, p, output, report);
    }
    CROQUIS_CHECK_OK(candidate_->Run(executor, p, output, report));
    CROQUIS_CHECK_OK(CheckMemory(int64_t(KeySet::Bytes(TileTypeOf(spec_, p), p.k.rows, p.q.dim, p.v.dim)),
                                 "the packed keys of a head"));
    const std::vector<double> errors = ProbeErrors(executor, p, output, report);
    report->est_error = 0, report->lse_std = -1;
    report->chosen.clear();
    for (int64_t h = 0; h < p.q.heads; ++h) {
      if (errors[size_t(h)] <= eps_) {
        report->chosen.push_back(candidate_name_);
        report->est_error += errors[size_t(h)] / double(p.q.heads);
        continue;
      }
      report->chosen.push_back("exact");
      report->fallback_rows += p.q.rows;
      RunReport one;
      one.exact_pairs = p.Pairs() / double(p.q.heads);
      CROQUIS_CHECK_OK(exact_->Run(executor, p.OneHead(h), output.OneHead(h, p.q.rows), &one));
      report->pairs += one.pairs;
    }
    report->fallback_rows = std::min(report->fallback_rows, report->rows);
    return {};
  }

 private:
  // Rows of a head to compute exactly: one of each slice of the rows, at random.
  std::array<int32_t, kTileRows> ProbeRows(int64_t head, int64_t rows) const {
    const Stream random = Stream{seed_, Purpose("attention.auto.probes")}.Sub(uint64_t(head));
    std::array<int32_t, kTileRows> at{};
    for (int64_t i = 0; i < probes_; ++i) {
      const int64_t first = i * rows / probes_, last = (i + 1) * rows / probes_;
      at[size_t(i)] = int32_t(
          first + std::min(last - first - 1, int64_t(double(random.Uniform(uint64_t(i))) * double(last - first))));
    }
    return at;
  }

  // For each head the upper confidence limit of the mean row error of what stands in output.
  std::vector<double> ProbeErrors(Executor& executor, const Problem& p, const Output& output, RunReport* report) const {
    static_assert(kTileRows >= 64);
    const TileType type = TileTypeOf(spec_, p);
    std::vector<double> errors(static_cast<size_t>(p.q.heads));
    KeySet keys(type, p.k.rows, p.q.dim, p.v.dim);
    std::vector<QueryTile> workers;
    workers.reserve(size_t(executor.threads()));
    for (int i = 0; i < executor.threads(); ++i) workers.emplace_back(type, p.q.dim, p.v.dim);
    for (int64_t kv = 0; kv < p.k.heads; ++kv) {
      keys.Pack(executor, p.k.Head(kv), p.v.Head(kv));
      const double largest = LargestNorm(executor, p.v.Head(kv));
      executor.ParallelFor(p.Group(), [&](int64_t g, int worker) {
        const int64_t h = kv * p.Group() + g;
        errors[size_t(h)] = HeadError(p, output, h, keys, largest, workers[size_t(worker)]);
      });
    }
    for (int64_t h = 0; h < p.q.heads; ++h) {
      const auto rows = ProbeRows(h, p.q.rows);
      for (int64_t i = 0; i < probes_; ++i) report->pairs += double(p.Visible(rows[size_t(i)]).size());
    }
    return errors;
  }

  double HeadError(const Problem& p, const Output& output, int64_t h, const KeySet& keys, double largest,
                   QueryTile& tile) const {
    const auto rows = ProbeRows(h, p.q.rows);
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
    return mean + kConfidence * std::sqrt(variance / n);
  }

  const Spec spec_;
  const double eps_;
  const int64_t probes_;
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
