#include "croquis/attention/method.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>

#include "croquis/attention/partial.h"
#include "croquis/attention/reference.h"
#include "croquis/base/registry.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
#include "registry.inc"

namespace {

constexpr int64_t kMaxDim = 1024;

std::string Shape(const TensorView& t) {
  return "[" + std::to_string(t.heads) + ", " + std::to_string(t.rows) + ", " + std::to_string(t.dim) + "]";
}

Status CheckShapes(const Problem& p) {
  const std::string got = "; got q " + Shape(p.q) + ", k " + Shape(p.k) + ", v " + Shape(p.v);
  if (p.q.heads < 1 || p.k.heads < 1 || p.q.rows < 0 || p.k.rows < 0)
    return InvalidArgument("attention: q, k and v are [heads, rows, dim] with at least one head" + got);
  if (p.q.dim != p.k.dim || p.q.dim < 1 || p.q.dim > kMaxDim || p.v.dim < 1 || p.v.dim > kMaxDim)
    return InvalidArgument("attention: q and k must have the same dim, and dims be 1 to " + std::to_string(kMaxDim) +
                           got);
  if (p.k.heads != p.v.heads || p.k.rows != p.v.rows)
    return InvalidArgument("attention: k and v must have the same heads and rows" + got);
  if (p.q.heads % p.k.heads != 0)
    return InvalidArgument("attention: the heads of q must be a multiple of those of k and v" + got);
  for (const auto& [first, second, name] : {std::tuple{&p.k, &p.k2, "k"}, std::tuple{&p.v, &p.v2, "v"}})
    if (second->data != nullptr &&
        (first->heads != second->heads || first->rows != second->rows || first->dim != second->dim))
      return InvalidArgument(std::string("attention: ") + name + "2 must have the shape of " + name + "; got " +
                             Shape(*second) + " and " + Shape(*first));
  if (std::max(p.q.rows, p.k.rows) > std::numeric_limits<int32_t>::max() / 2)
    return OutOfRange("attention: at most 2^30 rows" + got);
  if (p.key_length > p.k.rows)
    return OutOfRange("attention: key_length is " + std::to_string(p.key_length) + " but there are " +
                      std::to_string(p.k.rows) + " keys");
  if (!std::isfinite(p.scale)) return InvalidArgument("attention: the scale is not a finite number");
  if (p.mask.window < 0)
    return OutOfRange("attention: the window must be 0 (none) or more keys, got " + std::to_string(p.mask.window));
  return {};
}

// Whether a row holds neither NaN nor infinity; 16-bit numbers are told by their exponent, without widening them.
bool FiniteRow(simd::RowType type, const std::byte* row, int64_t dim) {
  if (type == simd::RowType::kF32)
    return simd::Dense().all_below(reinterpret_cast<const float*>(row), dim, std::numeric_limits<float>::max());
  const uint16_t exponent = type == simd::RowType::kBf16 ? 0x7f80 : 0x7c00;
  const auto* const x = reinterpret_cast<const uint16_t*>(row);
  uint16_t bad = 0;
  for (int64_t i = 0; i < dim; ++i) bad |= uint16_t((x[i] & exponent) == exponent);
  return bad == 0;
}

// Every number must be finite: one NaN among the keys would reach every row.
Status CheckFinite(Executor& executor, const TensorView& t, int64_t rows, const char* what) {
  std::atomic<int64_t> bad{std::numeric_limits<int64_t>::max()};
  constexpr int64_t kRows = 1024;
  const int64_t pieces = (rows + kRows - 1) / kRows;
  executor.ParallelFor(t.heads * pieces, [&](int64_t task, int) {
    const RowsView head = t.Head(task / pieces);
    const int64_t first = task % pieces * kRows, n = std::min(rows - first, kRows);
    if (head.stride == t.dim && FiniteRow(t.type, head.Row(first), n * t.dim)) return;
    for (int64_t r = first; r < first + n; ++r) {
      if (FiniteRow(t.type, head.Row(r), t.dim)) continue;
      const int64_t at = task / pieces * rows + r;
      for (int64_t seen = bad.load(); at < seen && !bad.compare_exchange_weak(seen, at);) {
      }
      return;
    }
  });
  if (bad == std::numeric_limits<int64_t>::max()) return {};
  return Numeric(std::string("attention: NaN or infinity in ") + what + ", head " + std::to_string(bad / rows) +
                 ", row " + std::to_string(bad % rows) + "; mask keys out by key_length or the mask, not by numbers");
}

}  // namespace

simd::TileType TileTypeOf(const Spec& spec, const Problem& problem) {
  const std::string_view word = spec.Word("precision");
  if (word == "f32") return simd::TileType::kF32;
  if (word == "bf16") return simd::TileType::kBf16;
  const bool fast = simd::Active() >= simd::Target::kAvx512;
  return fast && problem.k.type == simd::RowType::kBf16 ? simd::TileType::kBf16 : simd::TileType::kF32;
}

Status Method::RunReference(Executor& executor, const Problem& problem, const Output& output) const {
  return SoftmaxReference(executor, problem, output);
}

std::span<const MethodInfo* const> Methods() { return kMethods; }

Result<const MethodInfo*> FindMethod(std::string_view name) { return FindNamed(Methods(), name, "attention method"); }

Result<Spec> ResolveSpec(std::string_view text) {
  CROQUIS_TRY(const Spec spec, ParseSpec(text));
  CROQUIS_TRY(const MethodInfo* method, FindMethod(spec.name));
  return Complete(spec, method->params);
}

Result<std::unique_ptr<const Method>> Make(std::string_view text, uint64_t seed) {
  CROQUIS_TRY(const Spec spec, ResolveSpec(text));
  CROQUIS_TRY(const MethodInfo* method, FindMethod(spec.name));
  return method->make(spec, seed);
}

Status Run(Executor& executor, const MethodInfo& info, const Method& method, const Problem& p, const Output& output,
           RunReport* report) {
  CROQUIS_CHECK_OK(CheckShapes(p));
  const std::string name(info.name);
  if (p.mask.causal && !info.causal) return Unsupported(name + " has no causal form; run it without a mask");
  if (p.mask.window > 0 && !info.window)
    return Unsupported(name + " takes no sliding window; exact does (window=0 turns it off)");
  if (!info.second && (p.k2.data != nullptr || p.v2.data != nullptr))
    return Unsupported(name + " takes no second keys and values; tensor does");
  const int64_t keys = p.Keys();
  CROQUIS_CHECK_OK(CheckFinite(executor, p.q, p.q.rows, "q"));
  CROQUIS_CHECK_OK(CheckFinite(executor, p.k, keys, "k"));
  CROQUIS_CHECK_OK(CheckFinite(executor, p.v, keys, "v"));
  if (p.k2.data != nullptr) CROQUIS_CHECK_OK(CheckFinite(executor, p.k2, keys, "k2"));
  if (p.v2.data != nullptr) CROQUIS_CHECK_OK(CheckFinite(executor, p.v2, keys, "v2"));
  RunReport mine;
  RunReport& r = report != nullptr ? *report : mine;
  r = {};
  r.rows = p.q.heads * p.q.rows;
  r.exact_pairs = p.Pairs();
  if (p.q.rows == 0) return {};
  if (keys == 0 && !method.HasOwnKeys()) {
    for (int64_t h = 0; h < p.q.heads; ++h)
      for (int64_t i = 0; i < p.q.rows; ++i) {
        std::fill_n(output.Head(h, p.q.rows, p.v.dim).Row(i), p.v.dim, 0.f);
        if (output.lse != nullptr) output.lse[h * p.q.rows + i] = kEmptyMax;
      }
    return {};
  }
  // From here on the keys that count are all there are.
  Problem whole = p;
  whole.k.rows = whole.v.rows = whole.k2.rows = whole.v2.rows = keys;
  whole.key_length = -1;
  return method.Run(executor, whole, output, &r);
}

}  // namespace croquis::attention
