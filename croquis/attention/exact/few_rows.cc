#include "croquis/attention/exact/few_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "croquis/attention/partial.h"
#include "croquis/base/memory.h"
#include "croquis/simd/dense_kernels.h"

namespace croquis::attention {
namespace {

constexpr int64_t kPieceKeys = 2048;  // of a task
constexpr int64_t kStepKeys = 128;    // that share one softmax pass

// Row r of a kv head's rows: query r % nq of its head r / nq.
struct Row {
  int64_t head, query;
};
Row RowOf(const Problem& p, int64_t kv, int64_t r) { return {kv * p.Group() + r / p.q.rows, r % p.q.rows}; }

// The state of a kv head's rows over some keys, in base 2.
struct State {
  std::array<float, kFewRows> max, mass;
  MatView<float> sums;
};

// Keys [begin, end) of a kv head. q: its rows, times scale and log2 e.
void Piece(const Problem& p, int64_t kv, MatView<const float> q, int64_t begin, int64_t end, State& state) {
  const simd::DenseKernels& kernels = simd::Dense();
  const RowsView k = p.k.Head(kv), v = p.v.Head(kv);
  std::array<Range, kFewRows> visible;
  for (int64_t r = 0; r < q.rows; ++r) {
    visible[size_t(r)] = p.Visible(RowOf(p, kv, r).query);
    state.max[size_t(r)] = simd::kMasked;
    state.mass[size_t(r)] = 0;
  }
  alignas(64) float logits[kFewRows * kStepKeys], scale[kFewRows], top[kFewRows], sum[kFewRows];
  for (int64_t key = begin; key < end; key += kStepKeys) {
    const int64_t n = std::min(kStepKeys, end - key);
    kernels.score_rows(k.type, q, k.Row(key), k.stride * simd::RowTypeBytes(k.type), n, logits, kStepKeys);
    for (int64_t r = 0; r < q.rows; ++r) {
      const int64_t first = std::clamp<int64_t>(visible[size_t(r)].first - key, 0, n),
                    last = std::clamp<int64_t>(visible[size_t(r)].last - key, first, n);
      std::fill(logits + r * kStepKeys, logits + r * kStepKeys + first, simd::kMasked);
      std::fill(logits + r * kStepKeys + last, logits + r * kStepKeys + n, simd::kMasked);
    }
    kernels.softmax_tiles(logits, kStepKeys, q.rows, n, top, sum);
    for (int64_t r = 0; r < q.rows; ++r) {
      float &max = state.max[size_t(r)], &mass = state.mass[size_t(r)];
      if (top[r] > max) {
        const float keep = std::exp2(max - top[r]);
        if (mass > 0) kernels.scale(state.sums.Row(r), v.dim, keep);
        mass *= keep;
        max = top[r];
      }
      scale[r] = sum[r] > 0 ? std::exp2(top[r] - max) : 0;
      mass += scale[r] * sum[r];
    }
    kernels.accumulate_rows(v.type, logits, kStepKeys, scale, q.rows, v.Row(key), v.stride * simd::RowTypeBytes(v.type),
                            n, state.sums);
  }
}

}  // namespace

Status FewRows(Executor& executor, const Problem& p, const Output& output) {
  const int64_t rows = p.Group() * p.q.rows, width = p.v.dim;
  const Range seen = p.Seen(0, p.q.rows);
  const int64_t begin = seen.first, end = seen.last;
  const int64_t pieces = (end - begin + kPieceKeys - 1) / kPieceKeys, tasks = p.k.heads * pieces;
  CROQUIS_CHECK_OK(CheckMemory((tasks + p.k.heads) * rows * (width + p.q.dim) * 4, "the sums of the pieces"));
  Matrix<float> queries(p.q.heads * p.q.rows, p.q.dim), sums(tasks * rows, width);
  const float scale = p.scale * std::numbers::log2e_v<float>;
  for (int64_t kv = 0; kv < p.k.heads; ++kv)
    for (int64_t r = 0; r < rows; ++r) {
      const Row row = RowOf(p, kv, r);
      float* const q = queries.Row(kv * rows + r);
      p.q.Head(row.head).Read(row.query, q);
      for (int64_t i = 0; i < p.q.dim; ++i) q[i] *= scale;
    }
  std::vector<State> states(static_cast<size_t>(tasks));
  executor.ParallelFor(tasks, [&](int64_t task, int) {
    const int64_t kv = task / pieces, from = begin + task % pieces * kPieceKeys;
    State& state = states[size_t(task)];
    state.sums = sums.View().Rows(task * rows, rows);
    Piece(p, kv, MatView<const float>(queries.View()).Rows(kv * rows, rows), from, std::min(end, from + kPieceKeys),
          state);
  });
  std::vector<float> total(static_cast<size_t>(width));
  for (int64_t kv = 0; kv < p.k.heads; ++kv)
    for (int64_t r = 0; r < rows; ++r) {
      Partial all{kEmptyMax, 0, total};
      std::fill(total.begin(), total.end(), 0.f);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        State& s = states[size_t(kv * pieces + piece)];
        if (s.mass[size_t(r)] > 0)
          Merge({s.max[size_t(r)] * std::numbers::ln2_v<float>, s.mass[size_t(r)], s.sums[r]}, all);
      }
      const Row row = RowOf(p, kv, r);
      const float lse = Finalize(all, output.Head(row.head, p.q.rows, width)[row.query]);
      if (output.lse != nullptr) output.lse[row.head * p.q.rows + row.query] = lse;
    }
  return {};
}

}  // namespace croquis::attention
