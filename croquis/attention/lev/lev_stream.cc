#include "croquis/attention/lev/lev_stream.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "croquis/attention/lev/runs.h"
#include "croquis/attention/lev/streaming.h"
#include "croquis/attention/partial.h"
#include "croquis/base/rng.h"
#include "croquis/linalg/gemm.h"

namespace croquis::attention::lev {
namespace {

constexpr int64_t kMaxDim = 1024;

// Rows of keys and values that grow and shrink together.
struct Rows {
  std::vector<float> k, v;
  int64_t count = 0;

  void Push(const float* key, int64_t dim, const float* value, int64_t value_dim) {
    k.insert(k.end(), key, key + dim);
    v.insert(v.end(), value, value + value_dim);
    ++count;
  }
  int64_t bytes() const { return int64_t((k.capacity() + v.capacity()) * sizeof(float)); }
};

}  // namespace

struct LevStream::Impl {
  explicit Impl(const Options& options)
      : o(options),
        stream({.dim = o.dim + o.center, .p = o.p, .eps = o.eps, .top = o.top, .ridge = o.ridge}),
        row(size_t(o.dim + o.center)),
        parts{Matrix<float>(4, o.value_dim)} {}

  void LetGo();
  void KeepSample(const float* key, const float* value);
  Partial Attend(const Rows& rows, std::span<const float> q, float log_weight, int64_t part);

  Options o;
  StreamingLeverage stream;
  float constant = 0;
  std::vector<float> row;  // a key as the stream takes it
  std::vector<int64_t> index;
  Rows held, even, odd;  // even, odd: halves of the sample
  int64_t gone = 0;      // keys let go
  double value_norm = 0;
  Matrix<float> parts;  // weighted sums: held, even, odd, and room to join them
  std::vector<float> scores, out_a, out_b;
};

// Reservoir sampling (Vitter's algorithm R): after `gone` keys each is in the sample with the same probability. Slot s
// is in the half s % 2.
void LevStream::Impl::KeepSample(const float* key, const float* value) {
  const int64_t number = gone++;
  if (o.samples == 0) return;
  int64_t slot = number;
  if (number >= o.samples) {
    const uint32_t word = Stream{o.seed, Purpose("attention.lev.reservoir")}.U32(uint64_t(number));
    slot = int64_t((uint64_t(word) * uint64_t(number + 1)) >> 32);
    if (slot >= o.samples) return;
  }
  Rows& half = slot % 2 == 0 ? even : odd;
  if (slot / 2 == half.count) {
    half.Push(key, o.dim, value, o.value_dim);
  } else {
    std::copy_n(key, o.dim, half.k.begin() + slot / 2 * o.dim);
    std::copy_n(value, o.value_dim, half.v.begin() + slot / 2 * o.value_dim);
  }
}

// Drops what is neither among the first keys, nor recent, nor in the universal set.
void LevStream::Impl::LetGo() {
  const auto kept = stream.Kept();
  auto next = kept.begin();
  int64_t to = 0;
  for (int64_t j = 0; j < held.count; ++j) {
    const int64_t number = index[size_t(j)];
    while (next != kept.end() && *next < number) ++next;
    const bool in_set = next != kept.end() && *next == number;
    float *key = &held.k[size_t(j * o.dim)], *value = &held.v[size_t(j * o.value_dim)];
    if (number >= o.sinks && number < stream.seen() - o.window && !in_set) {
      KeepSample(key, value);
      continue;
    }
    if (to != j) {
      std::copy_n(key, o.dim, &held.k[size_t(to * o.dim)]);
      std::copy_n(value, o.value_dim, &held.v[size_t(to * o.value_dim)]);
      index[size_t(to)] = number;
    }
    ++to;
  }
  held.count = to;
  index.resize(size_t(to));
  held.k.resize(size_t(to * o.dim));
  held.v.resize(size_t(to * o.value_dim));
}

// The part of the answer that rows give, each counted exp(log_weight) times.
Partial LevStream::Impl::Attend(const Rows& rows, std::span<const float> q, float log_weight, int64_t part) {
  const std::span<float> sums(parts.Row(part), size_t(o.value_dim));
  std::fill(sums.begin(), sums.end(), 0.f);
  const int64_t n = rows.count;
  if (n == 0) return {kEmptyMax, 0, sums};
  scores.resize(size_t(n));
  const MatView<const float> k(rows.k.data(), n, o.dim), v(rows.v.data(), n, o.value_dim);
  linalg::Gemm(false, true, o.scale, {q.data(), 1, o.dim}, k, 0, {scores.data(), 1, n});
  const float top = *std::max_element(scores.begin(), scores.end());
  float mass = 0;
  for (float& s : scores) mass += s = std::exp(s - top);
  linalg::Gemm(false, false, 1, {scores.data(), 1, n}, v, 0, {sums.data(), 1, o.value_dim});
  return {top + log_weight, mass, sums};
}

LevStream::LevStream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LevStream::LevStream(LevStream&&) noexcept = default;
LevStream& LevStream::operator=(LevStream&&) noexcept = default;
LevStream::~LevStream() = default;

Result<LevStream> LevStream::Make(const Options& o) {
  if (o.dim < 1 || o.dim > kMaxDim || o.value_dim < 1 || o.value_dim > kMaxDim)
    return OutOfRange("lev: dims must be 1 to " + std::to_string(kMaxDim) + ", got " + std::to_string(o.dim) + " and " +
                      std::to_string(o.value_dim));
  if (!(o.p >= 1 && o.p <= 8)) return OutOfRange("lev: p must be 1 to 8, got " + std::to_string(o.p));
  if (!(o.eps > 0 && o.eps <= 1))
    return OutOfRange("lev: eps must be above 0 and at most 1, got " + std::to_string(o.eps));
  if (!(o.ridge >= kLeastRidge && o.ridge <= .01))
    return OutOfRange("lev: the ridge must be 1e-14 to .01, got " + std::to_string(o.ridge));
  if (o.top < 0 || o.window < 0 || o.sinks < 0 || o.samples < 0 || o.samples % 2 != 0)
    return OutOfRange("lev: top, window, sinks and samples must not be negative, and samples even");
  if (!std::isfinite(o.scale)) return InvalidArgument("lev: the scale is not a finite number");
  return LevStream(std::make_unique<Impl>(o));
}

void LevStream::Append(std::span<const float> key, std::span<const float> value) {
  Impl& i = *impl_;
  CROQUIS_DCHECK(int64_t(key.size()) == i.o.dim && int64_t(value.size()) == i.o.value_dim);
  std::copy(key.begin(), key.end(), i.row.begin());
  if (i.o.center) {
    if (i.constant == 0) i.constant = CenteringConstant(key);
    i.row.back() = i.constant;
  }
  double norm = 0;
  for (const float x : value) norm += double(x) * double(x);
  i.value_norm = std::max(i.value_norm, std::sqrt(norm));
  i.index.push_back(i.stream.seen());
  i.held.Push(key.data(), i.o.dim, value.data(), i.o.value_dim);
  i.stream.Append({i.row.data(), 1, int64_t(i.row.size())});
  if (i.stream.seen() % StreamingLeverage::kChunk == 0) i.LetGo();
}

float LevStream::Attend(std::span<const float> q, std::span<float> out, double* est_error) {
  Impl& i = *impl_;
  CROQUIS_DCHECK(int64_t(q.size()) == i.o.dim && int64_t(out.size()) == i.o.value_dim);
  const Partial held = i.Attend(i.held, q, 0, 0);
  const int64_t sampled = i.even.count + i.odd.count;
  const float log_weight = sampled > 0 ? float(std::log(double(i.gone) / double(sampled))) : 0;
  const Partial even = i.Attend(i.even, q, log_weight, 1), odd = i.Attend(i.odd, q, log_weight, 2);
  const auto join = [&](const Partial* a, const Partial* b, float extra, std::span<float> to) {
    const std::span<float> sums(i.parts.Row(3), size_t(i.o.value_dim));
    std::copy(held.a.begin(), held.a.end(), sums.begin());
    Partial sum{held.m, held.l, sums};
    for (const Partial* part : {a, b}) {
      if (part == nullptr || part->l == 0) continue;
      Partial weighted = *part;
      weighted.m += extra;
      Merge(weighted, sum);
    }
    return Finalize(sum, to);
  };
  const float lse = join(&even, &odd, 0, out);
  if (est_error == nullptr) return lse;
  // All that were let go are in the sample, each once: exact.
  const bool whole = i.gone == sampled;
  *est_error = whole ? 0 : -1;
  if (!whole && sampled > 1) {
    i.out_a.resize(out.size());
    i.out_b.resize(out.size());
    join(&even, nullptr, std::numbers::ln2_v<float>, i.out_a);
    join(&odd, nullptr, std::numbers::ln2_v<float>, i.out_b);
    *est_error = RelativeDifference(i.out_a, i.out_b, out, i.value_norm) / 2;
  }
  return lse;
}

int64_t LevStream::seen() const { return impl_->stream.seen(); }
std::span<const int64_t> LevStream::Held() const { return impl_->index; }
int64_t LevStream::bytes() const {
  const Impl& i = *impl_;
  return i.held.bytes() + i.even.bytes() + i.odd.bytes() + int64_t(i.index.capacity()) * 8 + i.stream.bytes() +
         int64_t((i.scores.capacity() + i.row.capacity()) * 4) + i.parts.rows() * i.parts.cols() * 4;
}

}  // namespace croquis::attention::lev
