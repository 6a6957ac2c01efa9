#include "croquis/eval/prefill_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "croquis/attention/method.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/row_error.h"
#include "croquis/base/rng.h"
#include "croquis/eval/metrics.h"

namespace croquis::eval {
namespace {

constexpr int64_t kRun = 8;          // consecutive rows of a sample
constexpr double kLongSeconds = 10;  // where exact takes longer, first visits count
constexpr int64_t kMaxLength = 1 << 24;

std::string_view PrecisionWord(simd::RowType type) { return type == simd::RowType::kBf16 ? "bf16" : "f32"; }

// A method string with its precision filled in where it has one and the user left it open.
Result<std::string> AtPrecision(const std::string& text, simd::RowType type) {
  CROQUIS_TRY(Spec given, ParseSpec(text));
  auto found = attention::FindMethod(given.name);
  if (!found) return InvalidArgument(found.error().message);  // a wrong option, not a missing file
  const auto& params = (*found)->params;
  const auto is = [](std::string_view name) { return name == "precision"; };
  const bool has = std::any_of(params.begin(), params.end(), [&](const ParamInfo& p) { return is(p.name); });
  const bool set = std::any_of(given.params.begin(), given.params.end(), [&](const auto& p) { return is(p.first); });
  if (has && !set) given.Set("precision", std::string(PrecisionWord(type)));
  CROQUIS_TRY(const Spec full, attention::ResolveSpec(ToString(given)));
  return ToString(given);
}

// Which rows of which head are checked: [first, first + rows) of it.
struct SampleRun {
  int64_t head, first, rows;
};

std::vector<SampleRun> SampleRuns(const PrefillBenchOptions& o, int64_t n) {
  std::vector<SampleRun> runs;
  const int64_t count = std::max<int64_t>(1, (o.error_rows + kRun - 1) / kRun);
  for (int64_t h = 0; h < o.heads; ++h) {
    if (n <= count * kRun) {
      runs.push_back({h, 0, n});
      continue;
    }
    const Stream random = Stream{o.seed, Purpose("eval.prefill_bench.rows")}.Sub(uint64_t(h));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = i * n / count, room = (i + 1) * n / count - begin - kRun + 1;
      runs.push_back({h, begin + int64_t(random.Uniform(uint64_t(i)) * float(room)), kRun});
    }
  }
  return runs;
}

// The rows of a run as a problem of its own, with the keys they can see.
attention::Problem SubProblem(const attention::Problem& p, const SampleRun& run) {
  attention::Problem sub = p.OneHead(run.head);
  sub.q.data += run.first * sub.q.row_stride * simd::RowTypeBytes(sub.q.type);
  sub.q.rows = run.rows;
  sub.mask.offset += run.first;
  if (p.mask.causal) sub.k.rows = sub.v.rows = std::min(p.k.rows, sub.mask.offset + run.rows);
  return sub;
}

struct Reference {
  std::vector<float> out, lse;  // run after run, row after row
};

// One length: the data, what is right on the sampled rows, and room for answers.
class Length {
 public:
  static Result<std::unique_ptr<Length>> Make(Executor& executor, const PrefillBenchOptions& o, int64_t n) {
    AttentionDataOptions d;
    d.kind = o.data, d.heads = o.heads, d.kv_heads = o.kv_heads, d.queries = d.keys = n;
    d.dim = d.value_dim = o.head_dim, d.causal = o.causal, d.seed = o.seed, d.type = o.precision;
    auto length = std::make_unique<Length>();
    CROQUIS_TRY(length->data_, MakeAttentionData(executor, d));
    length->problem_ = length->data_.Problem(o.causal);
    CROQUIS_TRY(length->out_, MakeTensor(simd::RowType::kF32, o.heads, n, o.head_dim, "the answer"));
    length->lse_.resize(size_t(o.heads * n));
    length->runs_ = SampleRuns(o, n);
    for (int64_t h = 0; h < o.kv_heads; ++h)
      length->largest_.push_back(attention::LargestNorm(executor, length->problem_.v.Head(h)));
    return length;
  }

  const attention::Problem& problem() const { return problem_; }
  attention::Output Output() {
    return {reinterpret_cast<float*>(out_.data()), out_.view.head_stride, out_.view.row_stride, lse_.data()};
  }

  // Compares the answer that stands in Output() with the method's reference.
  Status Check(Executor& executor, const attention::MethodInfo& info, const attention::Method& method,
               PrefillRow& row) {
    CROQUIS_TRY(const Reference* want, ReferenceOf(executor, info, method));
    std::vector<double> errors, lses;
    const int64_t dv = problem_.v.dim, n = problem_.q.rows;
    const auto* all = reinterpret_cast<const float*>(out_.data());
    size_t at = 0;
    for (const SampleRun& run : runs_)
      for (int64_t r = run.first; r < run.first + run.rows; ++r, ++at) {
        const float* o = all + (run.head * n + r) * dv;
        errors.push_back(attention::RowError({o, size_t(dv)}, std::span(want->out).subspan(at * size_t(dv), size_t(dv)),
                                             largest_[size_t(run.head / problem_.Group())]));
        lses.push_back(std::abs(double(lse_[size_t(run.head * n + r)]) - double(want->lse[at])));
      }
    row.error_mean = Mean(errors);
    row.error_p90 = Quantile(errors, .9);
    row.error_max = *std::max_element(errors.begin(), errors.end());
    row.lse_error = Mean(lses);
    row.error_rows = int64_t(errors.size());
    if (!std::isfinite(row.error_mean)) return Numeric(row.method + ": the answer has NaN or infinity in it");
    return {};
  }

 private:
  // The first `runs` runs by a method's reference. Each run is a task; within it the reference has one thread.
  Result<Reference> Evaluate(Executor& executor, const attention::Method& method, size_t runs) const {
    const int64_t dv = problem_.v.dim;
    std::vector<int64_t> at = {0};
    for (size_t i = 0; i < runs; ++i) at.push_back(at.back() + runs_[i].rows);
    Reference r{std::vector<float>(size_t(at.back() * dv)), std::vector<float>(size_t(at.back()))};
    std::vector<Status> status(runs);
    executor.ParallelFor(int64_t(runs), [&](int64_t i, int) {
      Executor one(1);
      const attention::Problem sub = SubProblem(problem_, runs_[size_t(i)]);
      float* const out = r.out.data() + at[size_t(i)] * dv;
      status[size_t(i)] = method.RunReference(one, sub, {out, sub.q.rows * dv, dv, r.lse.data() + at[size_t(i)]});
    });
    for (const Status& s : status) CROQUIS_CHECK_OK(s);
    return r;
  }

  // References in double over all keys are slow. A method whose first run is that of softmax attention, bit for bit,
  // shares exact's.
  Result<const Reference*> ReferenceOf(Executor& executor, const attention::MethodInfo& info,
                                       const attention::Method& method) {
    if (softmax_.out.empty() && info.exact) {
      CROQUIS_TRY(softmax_, Evaluate(executor, method, runs_.size()));
    }
    if (info.softmax && !softmax_.out.empty()) {
      CROQUIS_TRY(const Reference first, Evaluate(executor, method, 1));
      if (std::memcmp(first.out.data(), softmax_.out.data(), first.out.size() * sizeof(float)) == 0) return &softmax_;
    }
    CROQUIS_TRY(other_, Evaluate(executor, method, runs_.size()));
    return &other_;
  }

  AttentionTensors data_;
  attention::Problem problem_;
  Tensor out_;
  std::vector<float> lse_;
  std::vector<SampleRun> runs_;
  std::vector<double> largest_;  // max |v_j| of each kv head
  Reference softmax_, other_;
};

// A method and what it has shown at the current length.
struct Contestant {
  std::string text;
  const attention::MethodInfo* info = nullptr;
  std::unique_ptr<const attention::Method> method;
  PrefillRow row;
  std::vector<double> ms;
};

// One run; milliseconds.
Result<double> Visit(Executor& executor, Length& length, Contestant& c) {
  attention::RunReport report;
  const auto start = std::chrono::steady_clock::now();
  CROQUIS_CHECK_OK(attention::Run(executor, *c.info, *c.method, length.problem(), length.Output(), &report));
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  c.row.pairs_share = report.exact_pairs > 0 ? report.pairs / report.exact_pairs : 0;
  c.row.est_error = report.est_error;
  c.row.fallback_share = report.rows > 0 ? double(report.fallback_rows) / double(report.rows) : 0;
  c.row.kernel = report.kernel;
  return ms;
}

bool Refuses(const Error& e) { return e.code == Code::kUnsupported || e.code == Code::kOutOfRange; }

void Summarise(std::vector<Contestant>& contestants) {
  const std::vector<double> exact = contestants[0].ms;
  for (Contestant& c : contestants) {
    if (!c.row.refused.empty()) continue;
    std::vector<double> ratio;
    for (size_t i = 0; i < c.ms.size(); ++i) ratio.push_back(exact[i] / c.ms[i]);
    c.row.speedup_low = *std::min_element(ratio.begin(), ratio.end());
    c.row.speedup_high = *std::max_element(ratio.begin(), ratio.end());
    c.row.speedup = Median(ratio);
    c.row.ms_best = *std::min_element(c.ms.begin(), c.ms.end());
    c.row.ms = Median(c.ms);
  }
}

// All methods at one length.
Status BenchLength(Executor& executor, const PrefillBenchOptions& o, int64_t n, std::vector<Contestant>& contestants,
                   const std::function<bool()>& step) {
  CROQUIS_TRY(const auto length, Length::Make(executor, o, n));
  bool keep_first = false;
  for (Contestant& c : contestants) {
    c.row = {};
    c.row.method = c.text;
    c.row.n = n;
    c.ms.clear();
    const auto first = Visit(executor, *length, c);
    if (!first && !Refuses(first.error())) return first.error();
    if (!first) {
      c.row.refused = first.error().message;
    } else {
      keep_first |= &c == contestants.data() && *first > 1e3 * kLongSeconds;
      if (keep_first) c.ms.push_back(*first);
      CROQUIS_CHECK_OK(length->Check(executor, *c.info, *c.method, c.row));
    }
    if (!step()) return Internal("interrupted");
  }
  for (int64_t r = keep_first ? 1 : 0; r < o.repeats; ++r)
    for (Contestant& c : contestants) {
      if (c.row.refused.empty()) {
        CROQUIS_TRY(const double ms, Visit(executor, *length, c));
        c.ms.push_back(ms);
      }
      if (!step()) return Internal("interrupted");
    }
  Summarise(contestants);
  return {};
}

Status CheckOptions(const PrefillBenchOptions& o) {
  if (o.lengths.empty()) return InvalidArgument("wanted at least one length");
  for (const int64_t n : o.lengths)
    if (n < 1 || n > kMaxLength)
      return OutOfRange("lengths lie between 1 and " + std::to_string(kMaxLength) + ", got " + std::to_string(n));
  if (o.repeats < 1) return OutOfRange("wanted at least one repetition, got " + std::to_string(o.repeats));
  if (o.error_rows < 1) return OutOfRange("wanted at least one row to check, got " + std::to_string(o.error_rows));
  if (o.precision == simd::RowType::kF16) return InvalidArgument("the precision is f32 or bf16");
  return {};
}

}  // namespace

std::vector<std::string> DefaultPrefillMethods(bool causal) {
  std::vector<std::string> methods;
  for (const attention::MethodInfo* m : attention::Methods())
    if (m->softmax && !m->exact && (m->causal || !causal)) methods.emplace_back(m->name);
  return methods;
}

PrefillCurve CurveOf(std::string method, std::span<const double> lengths, std::span<const double> ms,
                     std::span<const double> speedups) {
  PrefillCurve curve;
  curve.method = std::move(method);
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (speedups[i] <= 1) continue;
    curve.at_first = i == 0;
    curve.crossover = lengths[i];
    if (i > 0) {
      const double low = std::log(speedups[i - 1]), high = std::log(speedups[i]);
      const double share = -low / (high - low);
      curve.crossover = lengths[i - 1] * std::pow(lengths[i] / lengths[i - 1], share);
    }
    break;
  }
  double x = 0, y = 0, xx = 0, xy = 0;
  const double count = double(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) x += std::log(lengths[i]) / count, y += std::log(ms[i]) / count;
  for (size_t i = 0; i < lengths.size(); ++i) {
    xx += std::pow(std::log(lengths[i]) - x, 2);
    xy += (std::log(lengths[i]) - x) * (std::log(ms[i]) - y);
  }
  if (xx > 0) curve.exponent = xy / xx;
  return curve;
}

Result<PrefillBench> BenchPrefill(Executor& executor, const PrefillBenchOptions& given, const ProgressFn& progress) {
  CROQUIS_CHECK_OK(CheckOptions(given));
  PrefillBenchOptions o = given;
  std::sort(o.lengths.begin(), o.lengths.end());
  o.lengths.erase(std::unique(o.lengths.begin(), o.lengths.end()), o.lengths.end());
  std::vector<Contestant> contestants;
  CROQUIS_TRY(const std::string exact, AtPrecision("exact", o.precision));
  std::vector<std::string> texts = {exact};
  for (const std::string& method : o.methods) {
    CROQUIS_TRY(const std::string text, AtPrecision(method, o.precision));
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
  }
  for (const std::string& text : texts) {
    Contestant c;
    c.text = text;
    CROQUIS_TRY(const Spec spec, attention::ResolveSpec(text));
    CROQUIS_TRY(c.info, attention::FindMethod(spec.name));
    CROQUIS_TRY(c.method, attention::Make(text, o.seed));
    contestants.push_back(std::move(c));
  }
  // Progress in units of the work that exact attention has: pairs.
  int64_t done = 0, total = 0;
  const int64_t visits = (o.repeats + 1) * int64_t(contestants.size());
  for (const int64_t n : o.lengths) total += visits * n * n / 1024;
  PrefillBench bench;
  for (const int64_t n : o.lengths) {
    const auto step = [&] { return !progress || progress(done += n * n / 1024, total); };
    CROQUIS_CHECK_OK(BenchLength(executor, o, n, contestants, step));
    for (const Contestant& c : contestants) bench.rows.push_back(c.row);
  }
  for (const Contestant& c : contestants) {
    std::vector<double> lengths, ms, speedups;
    for (const PrefillRow& row : bench.rows) {
      if (row.method != c.text || !row.refused.empty()) continue;
      lengths.push_back(double(row.n)), ms.push_back(row.ms), speedups.push_back(row.speedup);
    }
    bench.curves.push_back(CurveOf(c.text, lengths, ms, speedups));
  }
  return bench;
}

}  // namespace croquis::eval
