#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/attention/tensor/tensor.h"
#include "croquis/attention/tiles.h"

namespace croquis::attention::tensor {
namespace {

std::vector<float> ReadAll(const RowsView& x) {
  std::vector<float> out(size_t(x.rows * x.dim));
  for (int64_t r = 0; r < x.rows; ++r) x.Read(r, out.data() + r * x.dim);
  return out;
}

// The tensors of one kv head in f32.
struct Tokens {
  std::vector<float> k1, v1, k2, v2;
  Tokens(const Problem& p, int64_t kv)
      : k1(ReadAll(p.k.Head(kv))),
        v1(ReadAll(p.v.Head(kv))),
        k2(ReadAll(p.SecondKeys().Head(kv))),
        v2(ReadAll(p.SecondValues().Head(kv))) {}
};

// One worker's: a tile of rows q o k1_j for 64 first keys at a time.
struct RowRunner {
  QueryTile tile;
  std::vector<float> q, rows, sum;
  RowRunner(int64_t dim, int64_t value_dim)
      : tile(TileType::kF32, dim, value_dim),
        q(static_cast<size_t>(dim)),
        rows(size_t(kTileRows * dim)),
        sum(static_cast<size_t>(value_dim)) {}

  Partial Run(const Problem& p, const Tokens& tokens, const KeySet& second, const RowsView& queries, int64_t i) {
    const int64_t dim = p.q.dim, dv = p.v.dim, last = p.Visible(i).last;
    queries.Read(i, q.data());
    std::fill(sum.begin(), sum.end(), 0.f);
    Partial all{kEmptyMax, 0, sum};
    for (int64_t j = 0; j < last; j += kTileRows) {
      const int64_t n = std::min(kTileRows, last - j);
      for (int64_t r = 0; r < n; ++r)
        for (int64_t x = 0; x < dim; ++x)
          rows[size_t(r * dim + x)] = q[size_t(x)] * tokens.k1[size_t((j + r) * dim + x)];
      tile.Load(MatView<const float>(rows.data(), n, dim), n, p.scale);
      tile.Attend(second, 0, last);
      for (int64_t r = 0; r < n; ++r) {
        const Partial part = tile.State(r);
        for (int64_t c = 0; c < dv; ++c) part.a[size_t(c)] *= tokens.v1[size_t((j + r) * dv + c)];
        Merge(part, all);
      }
    }
    return all;
  }
};

}  // namespace

void RunExact(Executor& executor, const Problem& p, const Output& output, std::span<const int64_t> rows) {
  const int64_t nq = p.q.rows, dim = p.q.dim, dv = p.v.dim;
  std::vector<std::unique_ptr<RowRunner>> workers;
  workers.reserve(size_t(executor.threads()));
  for (int i = 0; i < executor.threads(); ++i) workers.push_back(std::make_unique<RowRunner>(dim, dv));
  KeySet second(TileType::kF32, p.k.rows, dim, dv);
  for (size_t begin = 0; begin < rows.size();) {
    const int64_t kv = rows[begin] / nq / p.Group();
    size_t end = begin;
    while (end < rows.size() && rows[end] / nq / p.Group() == kv) ++end;
    const Tokens tokens(p, kv);
    second.Pack(executor, p.SecondKeys().Head(kv), p.SecondValues().Head(kv));
    executor.ParallelFor(int64_t(end - begin), [&](int64_t task, int worker) {
      const int64_t row = rows[begin + size_t(task)], h = row / nq, i = row % nq;
      const Partial sum = workers[size_t(worker)]->Run(p, tokens, second, p.q.Head(h), i);
      const float lse = Finalize(sum, output.Head(h, nq, dv)[i]);
      if (output.lse != nullptr) output.lse[row] = lse;
    });
    begin = end;
  }
}

void RunDefinition(Executor& executor, const Problem& p, const Output& output) {
  const int64_t nq = p.q.rows, dim = p.q.dim, dv = p.v.dim;
  for (int64_t h = 0; h < p.q.heads; ++h) {
    const Tokens t(p, h / p.Group());
    executor.ParallelFor(nq, [&](int64_t i, int) {
      const int64_t last = p.Visible(i).last;
      std::vector<float> q(static_cast<size_t>(dim));
      p.q.Head(h).Read(i, q.data());
      std::vector<double> u(static_cast<size_t>(dim)), sum(static_cast<size_t>(dv)), inner(static_cast<size_t>(dv)),
          logits(size_t(last * last));
      double top = -1e300, mass = 0;
      for (int64_t j = 0; j < last; ++j) {
        for (int64_t x = 0; x < dim; ++x)
          u[size_t(x)] = double(p.scale) * double(q[size_t(x)]) * double(t.k1[size_t(j * dim + x)]);
        for (int64_t l = 0; l < last; ++l) {
          double part[4] = {};
          for (int64_t x = 0; x < dim; ++x) part[x % 4] += u[size_t(x)] * double(t.k2[size_t(l * dim + x)]);
          const double s = (part[0] + part[1]) + (part[2] + part[3]);
          logits[size_t(j * last + l)] = s;
          top = std::max(top, s);
        }
      }
      for (int64_t j = 0; j < last; ++j) {
        std::fill(inner.begin(), inner.end(), 0.0);
        for (int64_t l = 0; l < last; ++l) {
          const double w = std::exp(logits[size_t(j * last + l)] - top);
          mass += w;
          for (int64_t c = 0; c < dv; ++c) inner[size_t(c)] += w * double(t.v2[size_t(l * dv + c)]);
        }
        for (int64_t c = 0; c < dv; ++c) sum[size_t(c)] += inner[size_t(c)] * double(t.v1[size_t(j * dv + c)]);
      }
      for (int64_t c = 0; c < dv; ++c) output.Head(h, nq, dv)(i, c) = last > 0 ? float(sum[size_t(c)] / mass) : 0.f;
      if (output.lse != nullptr) output.lse[h * nq + i] = last > 0 ? float(top + std::log(mass)) : kEmptyMax;
    });
  }
}

}  // namespace croquis::attention::tensor
