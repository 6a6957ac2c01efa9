// For tests: random keys and values, and attention in double precision on what a cache holds, decoded.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "croquis/attention/attention.h"
#include "croquis/base/rng.h"
#include "croquis/kvcache/layer_view.h"

namespace croquis::attention::testing {

struct Shape {
  int64_t kv_heads = 2, group = 2, head_dim = 64;
  int64_t heads() const { return kv_heads * group; }
};

inline kvcache::CacheConfig Config(const Shape& s, const std::string& kv, int64_t capacity = 4096, int64_t layers = 1) {
  kvcache::CacheConfig c;
  c.layers = layers, c.kv_heads = s.kv_heads, c.head_dim = s.head_dim, c.capacity = capacity;
  c.policy = *kvcache::ParseKvPolicy(kv);
  for (int64_t i = 0; i < s.head_dim / 2; ++i)
    c.rope.inv_freq.push_back(std::pow(10000.0, -2.0 * double(i) / double(s.head_dim)));
  c.seed = 7;
  return c;
}

// Gaussian rows [tokens, cols] of a stream named by `what`; the value depends on the absolute token alone, so chunks of
// a sequence agree.
inline Matrix<float> Rows(uint64_t what, int64_t first, int64_t tokens, int64_t cols) {
  const Stream stream{what, Purpose("attention.test")};
  Matrix<float> m(std::max<int64_t>(tokens, 1), cols);
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < cols; ++i) m.Row(t)[i] = stream.Gaussian(uint64_t((first + t) * cols + i));
  return m;
}

struct Sequence {
  Shape shape;
  std::vector<float> bias;  // added to un-rotated keys, [head_dim]; then keys are rotated
  // k [tokens, kv_heads * head_dim] at positions first ..
  Matrix<float> K(const kvcache::CacheConfig& c, int64_t first, int64_t tokens, int64_t layer = 0) const {
    Matrix<float> k = Rows(uint64_t(100 + layer), first, tokens, shape.kv_heads * shape.head_dim);
    if (bias.empty()) return k;
    const int64_t half = shape.head_dim / 2;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        float* x = k.Row(t) + h * shape.head_dim;
        for (int64_t i = 0; i < half; ++i) {
          const double a = double(x[i] + bias[size_t(i)]), b = double(x[i + half] + bias[size_t(i + half)]);
          const double angle = c.rope.inv_freq[size_t(i)] * double(first + t);
          x[i] = float(a * std::cos(angle) - b * std::sin(angle));
          x[i + half] = float(a * std::sin(angle) + b * std::cos(angle));
        }
      }
    return k;
  }
  Matrix<float> V(int64_t first, int64_t tokens, int64_t layer = 0) const {
    return Rows(uint64_t(200 + layer), first, tokens, shape.kv_heads * shape.head_dim);
  }
  Matrix<float> Q(int64_t first, int64_t tokens, int64_t layer = 0) const {
    return Rows(uint64_t(300 + layer), first, tokens, shape.heads() * shape.head_dim);
  }
};

// Keys and values that a head stands for, [length, head_dim].
struct Decoded {
  Matrix<float> k, v;
};
inline Decoded DecodeHead(const kvcache::KvCache& cache, int64_t layer, int64_t head) {
  const auto view = kvcache::ViewHead(cache, layer, head);
  const int64_t d = cache.config().head_dim;
  Decoded x{Matrix<float>(std::max<int64_t>(1, view.length), d), Matrix<float>(std::max<int64_t>(1, view.length), d)};
  for (int64_t p = 0; p < view.length; ++p) {
    const int64_t page_token = p - view.sinks;
    const MatView<float> k(x.k.Row(p), 1, d), v(x.v.Row(p), 1, d);
    if (p < view.sinks) {
      kvcache::WidenRow(view.type, view.sink_k + p * view.row_bytes, d, k.data);
      kvcache::WidenRow(view.type, view.sink_v + p * view.row_bytes, d, v.data);
    } else if (page_token < view.encoded) {
      const int64_t page = page_token / 128, slot = page_token % 128;
      view.key->Decode(view.KeyPage(page), slot, k);
      view.value->Decode(view.ValuePage(page), slot, v);
      if (view.center) kvcache::AddCommon(*view.rope, *view.center, view.sinks + page * 128, slot, 1.f, k);
    } else {
      const int64_t at = page_token % view.slots * view.row_bytes;
      kvcache::WidenRow(view.type, view.ring_k + at, d, k.data);
      kvcache::WidenRow(view.type, view.ring_v + at, d, v.data);
    }
  }
  return x;
}

// Attention in double on decoded values and on the chunk rounded to the ring's type. [T, heads * head_dim].
inline Matrix<double> Reference(const kvcache::KvCache& cache, const AttendOptions& o, MatView<const float> q,
                                MatView<const float> k, MatView<const float> v) {
  const auto& c = cache.config();
  const int64_t d = c.head_dim, heads = q.cols / d, group = heads / c.kv_heads, length = cache.length();
  Matrix<double> out(q.rows, q.cols);
  for (int64_t kvh = 0; kvh < c.kv_heads; ++kvh) {
    const Decoded past = DecodeHead(cache, o.layer, kvh);
    const auto type = kvcache::ViewHead(cache, o.layer, kvh).type;
    Matrix<float> ck(q.rows, d), cv(q.rows, d);
    std::vector<std::byte> row(size_t(d) * 4);
    for (int64_t t = 0; t < q.rows; ++t) {
      kvcache::RoundRow(type, k.Row(t) + kvh * d, d, row.data());
      kvcache::WidenRow(type, row.data(), d, ck.Row(t));
      kvcache::RoundRow(type, v.Row(t) + kvh * d, d, row.data());
      kvcache::WidenRow(type, row.data(), d, cv.Row(t));
    }
    const auto key = [&](int64_t p) { return p < length ? past.k.Row(p) : ck.Row(p - length); };
    const auto value = [&](int64_t p) { return p < length ? past.v.Row(p) : cv.Row(p - length); };
    for (int64_t t = 0; t < q.rows; ++t)
      for (int64_t g = 0; g < group; ++g) {
        const float* x = q.Row(t) + (kvh * group + g) * d;
        const int64_t last = o.causal ? length + t + 1 : length + q.rows;
        const int64_t first = o.window > 0 ? std::max<int64_t>(0, length + t - o.window + 1) : 0;
        std::vector<double> w;
        double top = -1e300, mass = 0;
        for (int64_t p = first; p < last; ++p) {
          double dot = 0;
          for (int64_t i = 0; i < d; ++i) dot += double(x[i]) * double(key(p)[i]);
          w.push_back(dot * double(o.scale));
          top = std::max(top, w.back());
        }
        for (double& y : w) mass += y = std::exp(y - top);
        double* to = out.Row(t) + (kvh * group + g) * d;
        for (int64_t p = first; p < last; ++p)
          for (int64_t i = 0; i < d; ++i) to[i] += w[size_t(p - first)] / mass * double(value(p)[i]);
      }
  }
  return out;
}

// |x - ref| / |ref| over everything.
inline double RelativeError(const Matrix<float>& x, const Matrix<double>& ref) {
  double diff = 0, norm = 1e-300;
  for (int64_t r = 0; r < ref.rows(); ++r)
    for (int64_t i = 0; i < ref.cols(); ++i) {
      const double e = double(x.Row(r)[i]) - ref.Row(r)[i];
      diff += e * e, norm += ref.Row(r)[i] * ref.Row(r)[i];
    }
  return std::sqrt(diff / norm);
}

// Appends positions length() .. length() + tokens to every layer, in chunks.
inline Status Fill(kvcache::KvCache& cache, const Sequence& s, int64_t tokens, int64_t chunk = 64) {
  for (int64_t done = 0; done < tokens;) {
    const int64_t n = std::min(chunk, tokens - done), first = cache.length();
    for (int64_t l = 0; l < cache.config().layers; ++l) {
      const Matrix<float> k = s.K(cache.config(), first, n, l), v = s.V(first, n, l);
      CROQUIS_CHECK_OK(cache.Append(l, k.View().Rows(0, n), v.View().Rows(0, n)));
    }
    cache.Commit(n);
    done += n;
  }
  return {};
}

// One call of T tokens on layer 0, not committed and rolled back.
inline Matrix<float> Attend(Executor& executor, kvcache::KvCache& cache, const Sequence& s, int64_t tokens,
                            AttendOptions o = {}) {
  const int64_t first = cache.length();
  const Matrix<float> q = s.Q(first, tokens), k = s.K(cache.config(), first, tokens), v = s.V(first, tokens);
  Matrix<float> out(tokens, q.cols());
  const Status status = AttendAndAppend(executor, cache, o, q.View(), k.View(), v.View(), out.View());
  cache.Rollback();
  if (!status) std::fill_n(out.data(), out.rows() * out.cols(), std::nanf(""));
  return out;
}

inline Matrix<double> Expected(const kvcache::KvCache& cache, const Sequence& s, int64_t tokens, AttendOptions o = {}) {
  const int64_t first = cache.length();
  const Matrix<float> q = s.Q(first, tokens), k = s.K(cache.config(), first, tokens), v = s.V(first, tokens);
  return Reference(cache, o, q.View(), k.View(), v.View());
}

}  // namespace croquis::attention::testing
