// Third-order attention: exact, or through monomial features where the entries are small enough for that.
#include "croquis/attention/tensor/tensor.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

#include "croquis/attention/row_error.h"
#include "croquis/base/memory.h"

namespace croquis::attention {
namespace {

using tensor::Bound;
using tensor::ExpPolynomial;
using tensor::Monomials;
using tensor::Polynomial;
using tensor::Series;

constexpr int kMaxDegree = 16;
constexpr int64_t kMaxRank = 8192;   // features; two states of 2 MiB a piece at 64 values
constexpr int64_t kProbeKeys = 512;  // rows that see no more are cheap enough to be probed
constexpr int64_t kProbes = 4;

const ParamInfo kParams[] = {
    {"variant", "fast", 0, 0, "fast|exact", "exact: all pairs of keys, cubic time; fast: monomial features"},
    {"degree", "0", 0, kMaxDegree, {}, "of the polynomial for e^s; 0: the lowest that guarantees eps"},
    {"eps", "0.05", 0, 0, {}, "largest guaranteed error wanted, relative to the largest |v1 o v2|", 1e-6, 1},
    {"series", "taylor", 0, 0, "taylor|chebyshev",
     "taylor: best where most logits are small; chebyshev: a lower degree"},
    {"check", "1", 0, 1, {}, "refuse entries for which nothing is guaranteed; 0: compute rows that fail exactly"},
};

std::string Number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", x);
  return text;
}

class Tensor final : public Method {
 public:
  explicit Tensor(const Spec& spec)
      : exact_(spec.Word("variant") == "exact"),
        degree_(int(spec.Int("degree"))),
        eps_(spec.Real("eps")),
        series_(spec.Word("series") == "taylor" ? Series::kTaylor : Series::kChebyshev),
        check_(spec.Int("check") == 1) {}

  Status Run(Executor& executor, const Problem& p, const Output& output, RunReport* report) const override {
    double triples = 0;
    for (int64_t i = 0; i < p.q.rows; ++i) triples += std::pow(double(p.Visible(i).last), 2) * double(p.q.heads);
    report->exact_pairs = triples;
    if (exact_) {
      std::vector<int64_t> rows(size_t(p.q.heads * p.q.rows));
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = int64_t(i);
      tensor::RunExact(executor, p, output, rows);
      report->pairs = triples;
      report->kernel = simd::Tiles(simd::TileType::kF32).name;
      return Finite(p, output);
    }
    CROQUIS_TRY(const Polynomial polynomial, Choose(tensor::Measure(executor, p), p));
    const Monomials monomials(p.q.dim, polynomial.degree());
    CROQUIS_TRY(const std::vector<int64_t> failed, tensor::RunFeatures(executor, p, output, monomials, polynomial));
    tensor::RunExact(executor, p, output, failed);
    report->fallback_rows = int64_t(failed.size());
    report->kernel = simd::Dense().name;
    report->pairs = double(monomials.count()) * double(p.q.heads * p.q.rows + 2 * p.k.heads * p.k.rows);
    for (const int64_t row : failed) report->pairs += std::pow(double(p.Visible(row % p.q.rows).last), 2);
    Probe(executor, p, output, report);
    return Finite(p, output);
  }

  Status RunReference(Executor& executor, const Problem& p, const Output& output) const override {
    CROQUIS_CHECK_OK(CheckMemory(executor.threads() * p.k.rows * p.k.rows * 8, "third-order attention in double"));
    tensor::RunDefinition(executor, p, output);
    return {};
  }

 private:
  Result<Polynomial> Choose(const Bound& bound, const Problem& p) const;
  static Status Finite(const Problem& p, const Output& output);
  void Probe(Executor& executor, const Problem& p, const Output& output, RunReport* report) const;

  bool exact_;
  int degree_;
  double eps_;
  Series series_;
  bool check_;
};

// The polynomial asked for, or an error that says which entries it would need.
Result<Polynomial> Tensor::Choose(const Bound& bound, const Problem& p) const {
  const auto rank = [&](int degree) { return Monomials::Count(p.q.dim, degree, kMaxRank + 1); };
  int highest = 0;  // that kMaxRank features allow
  while (highest < kMaxDegree && rank(highest + 1) <= kMaxRank) ++highest;
  if (std::max(degree_, 1) > highest)
    return OutOfRange("tensor: degree " + std::to_string(std::max(degree_, 1)) + " has more than " +
                      std::to_string(kMaxRank) + " features at dim " + std::to_string(p.q.dim) + "; at most degree " +
                      std::to_string(highest) + " there, or variant=exact");
  const auto suffices = [&](int degree, double logit) {
    const double error = ExpPolynomial(series_, degree, logit).OutputError();
    return degree_ > 0 ? std::isfinite(error) : error <= eps_;
  };
  if (degree_ > 0 && (!check_ || suffices(degree_, bound.logit))) return ExpPolynomial(series_, degree_, bound.logit);
  if (degree_ == 0)
    for (int degree = 1; degree <= highest; ++degree)
      if (suffices(degree, bound.logit)) return ExpPolynomial(series_, degree, bound.logit);
  // By bisection, the largest logits for which the highest degree would do.
  const int best = degree_ > 0 ? degree_ : highest;
  double low = 0, high = std::min(bound.logit, 100.0);  // beyond 100 no polynomial here does
  for (int i = 0; i < 60; ++i) (suffices(best, (low + high) / 2) ? low : high) = (low + high) / 2;
  const double factor = std::cbrt(low / bound.logit);
  return OutOfRange("tensor: entries reach B = " + Number(bound.B()) + " (q " + Number(bound.q) + ", k " +
                    Number(bound.k1) + ", k2 " + Number(bound.k2) + "), so logits may reach " + Number(bound.logit) +
                    ", and degree " + std::to_string(best) + " guarantees " +
                    (degree_ > 0 ? "positive weights" : "eps=" + Number(eps_)) + " only up to " + Number(low) +
                    ", that is with entries " + Number(1 / factor) +
                    " times smaller (B = " + Number(bound.B() * factor) + "); scale them down, use variant=exact, or " +
                    (degree_ > 0 ? "check=0 to run without a guarantee" : "a larger eps"));
}

// Products of three entries may leave f32 although the entries are in it.
Status Tensor::Finite(const Problem& p, const Output& output) {
  for (int64_t h = 0; h < p.q.heads; ++h)
    for (int64_t i = 0; i < p.q.rows; ++i)
      if (!simd::Dense().all_below(output.Head(h, p.q.rows, p.v.dim).Row(i), p.v.dim, 3e38f))
        return Numeric("tensor: logits or outputs of head " + std::to_string(h) + ", row " + std::to_string(i) +
                       " do not fit f32; scale q, k and k2 (or v and v2) down");
  return {};
}

// The error as measured on a few rows that see few keys; without such rows there is no estimate.
void Tensor::Probe(Executor& executor, const Problem& p, const Output& output, RunReport* report) const {
  const int64_t nq = p.q.rows, dv = p.v.dim;
  std::vector<int64_t> rows;
  for (int64_t n = 0; n < kProbes; ++n) {
    const int64_t row = p.q.heads * nq * (2 * n + 1) / (2 * kProbes), keys = p.Visible(row % nq).last;
    if (keys > 0 && keys <= kProbeKeys && (rows.empty() || rows.back() != row)) rows.push_back(row);
  }
  report->est_error = report->lse_std = -1;
  if (rows.empty() || !CheckMemory(p.q.heads * nq * (dv + 1) * 4, "a second answer")) return;
  std::vector<float> exact(size_t(p.q.heads * nq * dv)), lse(size_t(p.q.heads * nq));
  tensor::RunExact(executor, p, {exact.data(), nq * dv, dv, lse.data()}, rows);
  double largest = 0, sum = 0, gaps = 0;
  std::vector<float> a(static_cast<size_t>(dv)), b(static_cast<size_t>(dv));
  for (int64_t h = 0; h < p.v.heads; ++h)
    for (int64_t j = 0; j < p.v.rows; ++j) {
      p.v.Head(h).Read(j, a.data());
      p.SecondValues().Head(h).Read(j, b.data());
      double norm = 0;
      for (int64_t c = 0; c < dv; ++c) norm += std::pow(double(a[size_t(c)]) * double(b[size_t(c)]), 2);
      largest = std::max(largest, std::sqrt(norm));
    }
  for (const int64_t row : rows) {
    sum += RowError(output.Head(row / nq, nq, dv)[row % nq], std::span(exact).subspan(size_t(row * dv), size_t(dv)),
                    largest);
    if (output.lse != nullptr) gaps += std::pow(double(output.lse[row]) - double(lse[size_t(row)]), 2);
  }
  report->est_error = sum / double(rows.size());
  report->lse_std = output.lse == nullptr ? -1 : std::sqrt(gaps / double(rows.size()));
}

Result<std::unique_ptr<const Method>> MakeTensor(const Spec& spec, uint64_t) { return std::make_unique<Tensor>(spec); }

// A degree chosen, or a polynomial shaped, by the largest entries lets later tokens change earlier rows.
bool StrictCausal(const Spec& spec) {
  return spec.Word("variant") == "exact" || (spec.Int("degree") > 0 && spec.Word("series") == "taylor");
}

}  // namespace

namespace tensor {

double Bound::B() const { return std::max({q, k1, k2}); }

Bound Measure(Executor& executor, const Problem& p) {
  struct Sizes {
    std::vector<double> entries;  // largest magnitude of each coordinate
    double norm = 0;              // largest 3-norm of a row
    double Top() const { return *std::max_element(entries.begin(), entries.end()); }
  };
  const auto measure = [&](const TensorView& t) {
    std::vector<Sizes> heads(static_cast<size_t>(t.heads));
    executor.ParallelFor(t.heads, [&](int64_t h, int) {
      Sizes& sizes = heads[size_t(h)];
      sizes.entries.resize(size_t(t.dim));
      std::vector<float> row(static_cast<size_t>(t.dim));
      for (int64_t r = 0; r < t.rows; ++r) {
        t.Head(h).Read(r, row.data());
        double cubes = 0;
        for (size_t x = 0; x < row.size(); ++x) {
          const double size = std::abs(double(row[x]));
          sizes.entries[x] = std::max(sizes.entries[x], size);
          cubes += size * size * size;
        }
        sizes.norm = std::max(sizes.norm, std::cbrt(cubes));
      }
    });
    return heads;
  };
  const auto q = measure(p.q), k1 = measure(p.k), k2 = measure(p.SecondKeys());
  Bound bound;
  for (int64_t h = 0; h < p.q.heads; ++h) {
    const Sizes &a = q[size_t(h)], &b = k1[size_t(h / p.Group())], &c = k2[size_t(h / p.Group())];
    double sum = 0;
    for (size_t x = 0; x < a.entries.size(); ++x) sum += a.entries[x] * b.entries[x] * c.entries[x];
    bound.logit = std::max(bound.logit, std::abs(double(p.scale)) * std::min(sum, a.norm * b.norm * c.norm));
    bound.q = std::max(bound.q, a.Top()), bound.k1 = std::max(bound.k1, b.Top()),
    bound.k2 = std::max(bound.k2, c.Top());
  }
  return bound;
}

}  // namespace tensor

extern const MethodInfo kMethod_tensor;
const MethodInfo kMethod_tensor = {.name = "tensor",
                                   .summary = "third-order attention over pairs of keys, exact or through monomials",
                                   .paper = "arXiv 2310.04064 (Alman and Song)",
                                   .params = kParams,
                                   .softmax = false,
                                   .second = true,
                                   .strict_causal = StrictCausal,
                                   .make = MakeTensor};

}  // namespace croquis::attention
