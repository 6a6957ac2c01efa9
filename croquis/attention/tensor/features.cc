#include <algorithm>
#include <cmath>
#include <vector>

#include "croquis/attention/linear/feature_map.h"
#include "croquis/attention/partial.h"
#include "croquis/attention/tensor/tensor.h"
#include "croquis/base/memory.h"
#include "croquis/simd/dense_kernels.h"
#include "croquis/simd/feature_kernels.h"

namespace croquis::attention::tensor {
namespace {

constexpr int64_t kTile = 64;      // tokens whose features are held at a time
constexpr int64_t kPieces = 16;    // pieces of the keys of a head, each summed by one task
constexpr int64_t kFeatures = 64;  // of a pass of the causal form: 64 x 64 of both states stay in the first cache

// What a task needs of one tile of tokens.
struct Tile {
  std::vector<float> row, f0, f1, f2, v1, v2, transposed, sums, mass, product;
};

class FeatureRun {
 public:
  FeatureRun(Executor& executor, const Problem& p, const Output& output, const Monomials& monomials,
             std::vector<float> coefficients)
      : executor_(executor),
        p_(p),
        output_(output),
        monomials_(monomials),
        coefficients_(std::move(coefficients)),
        rank_(monomials.count()),
        dv_(p.v.dim),
        state_(rank_ * (dv_ + 1)),
        tiles_((p.k.rows + kTile - 1) / kTile),
        pieces_(std::min(kPieces, tiles_)),
        map_(linear::FeatureMap::Linear(rank_)),
        failed_(size_t(executor.threads())) {}

  Result<std::vector<int64_t>> Run();

 private:
  // Tokens of a piece.
  Range Piece(int64_t piece) const {
    return {tiles_ * piece / pieces_ * kTile, std::min(p_.k.rows, tiles_ * (piece + 1) / pieces_ * kTile)};
  }
  float* State(int64_t piece, int which) { return states_.data() + (2 * piece + which) * state_; }
  void Features(const RowsView& rows, int64_t first, int64_t n, Tile& t, float* out) const;
  void SumPiece(int64_t kv, int64_t piece, Tile& t);
  void Scan(int64_t first, int64_t n);
  void ReadAll(int64_t q_head, int64_t first, int64_t rows, int worker);
  void ReadCausal(int64_t kv, int64_t piece, int worker);
  void CausalTile(int64_t kv, int64_t first, int64_t n, float* a1, float* a2, int worker);
  int64_t QueryOf(int64_t token) const;
  void ReadRest(int64_t kv);
  void Finish(int64_t q_head, int64_t i, const float* sums, float mass, int worker);

  Executor& executor_;
  const Problem& p_;
  const Output& output_;
  const Monomials& monomials_;
  const std::vector<float> coefficients_;
  const int64_t rank_, dv_, state_, tiles_, pieces_;
  const linear::FeatureMap map_;
  Matrix<float> states_;  // [pieces, 2]: sums over the first and the second keys
  std::vector<Tile> workers_;
  std::vector<std::vector<int64_t>> failed_;
};

void FeatureRun::Features(const RowsView& rows, int64_t first, int64_t n, Tile& t, float* out) const {
  for (int64_t r = 0; r < n; ++r) {
    rows.Read(first + r, t.row.data());
    monomials_.Evaluate(t.row.data(), out + r * rank_);
  }
}

void FeatureRun::SumPiece(int64_t kv, int64_t piece, Tile& t) {
  const Range range = Piece(piece);
  for (const int which : {0, 1}) {
    float* const state = State(piece, which);
    std::fill_n(state, state_, 0.f);
    const RowsView k = (which == 0 ? p_.k : p_.SecondKeys()).Head(kv),
                   v = (which == 0 ? p_.v : p_.SecondValues()).Head(kv);
    for (int64_t first = range.first; first < range.last; first += kTile) {
      const int64_t n = std::min(kTile, range.last - first);
      Features(k, first, n, t, t.f1.data());
      linear::Transpose(t.f1.data(), rank_, n, rank_, t.transposed.data(), kTile);
      for (int64_t r = 0; r < n; ++r) v.Read(first + r, t.v1.data() + r * dv_);
      map_.Add(t.transposed.data(), kTile, {t.v1.data(), n, dv_}, state, nullptr);
    }
  }
}

// Exclusive prefix sums over pieces, of numbers first .. first + n of both states; the total goes to the last place.
void FeatureRun::Scan(int64_t first, int64_t n) {
  std::vector<float> carry(size_t(2 * n));
  for (int64_t piece = 0; piece < pieces_; ++piece)
    for (const int which : {0, 1})
      simd::FeatureLoops().scan_step(State(piece, which) + first, carry.data() + which * n, n);
  for (const int which : {0, 1}) std::copy_n(carry.data() + which * n, n, State(pieces_, which) + first);
}

void FeatureRun::Finish(int64_t q_head, int64_t i, const float* sums, float mass, int worker) {
  const int64_t nq = p_.q.rows;
  const bool empty = p_.Visible(i).last == 0, good = !empty && mass > 0 && std::isfinite(mass);
  if (!good && !empty) failed_[size_t(worker)].push_back(q_head * nq + i);
  float* const out = output_.Head(q_head, nq, dv_).Row(i);
  for (int64_t c = 0; c < dv_; ++c) out[c] = good ? sums[c] / mass : 0.f;
  if (output_.lse != nullptr) output_.lse[q_head * nq + i] = good ? std::log(mass) : kEmptyMax;
}

// Queries that see all keys: the product of the two states, read like any linear state. It stands in State(0, 0).
void FeatureRun::ReadAll(int64_t q_head, int64_t first, int64_t rows, int worker) {
  Tile& t = workers_[size_t(worker)];
  Features(p_.q.Head(q_head), first, rows, t, t.f0.data());
  std::fill_n(t.sums.data(), rows * dv_, 0.f);
  std::fill_n(t.mass.data(), rows, 0.f);
  map_.Apply(t.f0.data(), rank_, State(0, 0), {t.sums.data(), rows, dv_}, t.mass.data(), nullptr);
  for (int64_t r = 0; r < rows; ++r) Finish(q_head, first + r, t.sums.data() + r * dv_, t.mass[size_t(r)], worker);
}

// The query whose last key is `token`, or -1. Those beyond the last key, which see all, are left to ReadRest.
int64_t FeatureRun::QueryOf(int64_t token) const {
  const int64_t i = token - p_.mask.offset;
  return 0 <= i && i < p_.q.rows ? i : -1;
}

// Token by token, because a query reads the product of the two states as they stand after its own token: tokens of a
// tile pass over one piece of the features after another.
void FeatureRun::CausalTile(int64_t kv, int64_t first, int64_t n, float* a1, float* a2, int worker) {
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  Tile& t = workers_[size_t(worker)];
  Features(p_.k.Head(kv), first, n, t, t.f1.data());
  Features(p_.SecondKeys().Head(kv), first, n, t, t.f2.data());
  for (int64_t r = 0; r < n; ++r) {
    p_.v.Head(kv).Read(first + r, t.v1.data() + r * dv_);
    p_.SecondValues().Head(kv).Read(first + r, t.v2.data() + r * dv_);
  }
  const int64_t group = p_.Group();
  for (int64_t r = 0; r < n; ++r)
    for (int64_t g = 0, i = QueryOf(first + r); g < group && i >= 0; ++g) {
      float* const f = t.f0.data() + (r * group + g) * rank_;
      p_.q.Head(kv * group + g).Read(i, t.row.data());
      monomials_.Evaluate(t.row.data(), f);
      loops.product(f, coefficients_.data(), 1, rank_, f);
    }
  std::fill_n(t.sums.data(), n * group * dv_, 0.f);
  std::fill_n(t.mass.data(), n * group, 0.f);
  for (int64_t f = 0; f < rank_; f += kFeatures) {
    const int64_t some = std::min(kFeatures, rank_ - f);
    for (int64_t r = 0; r < n; ++r) {
      loops.rank_one(t.f1.data() + r * rank_ + f, some, t.v1.data() + r * dv_, dv_, a1 + f * dv_);
      loops.rank_one(t.f2.data() + r * rank_ + f, some, t.v2.data() + r * dv_, dv_, a2 + f * dv_);
      if (QueryOf(first + r) < 0) continue;
      for (int64_t row = r * group; row < (r + 1) * group; ++row)
        loops.triple_sums(t.f0.data() + row * rank_ + f, some, a1 + f * dv_, a2 + f * dv_, dv_,
                          t.sums.data() + row * dv_);
    }
  }
  float *z1 = a1 + rank_ * dv_, *z2 = a2 + rank_ * dv_;
  for (int64_t r = 0; r < n; ++r) {
    simd::Dense().add(t.f1.data() + r * rank_, rank_, z1);
    simd::Dense().add(t.f2.data() + r * rank_, rank_, z2);
    loops.product(z1, z2, 1, rank_, t.product.data());
    const int64_t i = QueryOf(first + r);
    if (i < 0) continue;
    loops.row_dots(t.f0.data() + r * group * rank_, rank_, group, rank_, t.product.data(), t.mass.data() + r * group);
    for (int64_t g = 0; g < group; ++g)
      Finish(kv * group + g, i, t.sums.data() + (r * group + g) * dv_, t.mass[size_t(r * group + g)], worker);
  }
}

void FeatureRun::ReadCausal(int64_t kv, int64_t piece, int worker) {
  const Range range = Piece(piece);
  for (int64_t first = range.first; first < range.last; first += kTile)
    CausalTile(kv, first, std::min(kTile, range.last - first), State(piece, 0), State(piece, 1), worker);
}

// Queries that see all keys, and those that see none.
void FeatureRun::ReadRest(int64_t kv) {
  const int64_t nq = p_.q.rows, group = p_.Group();
  const int64_t none = p_.mask.causal ? std::clamp<int64_t>(-p_.mask.offset, 0, nq) : 0,
                all = p_.mask.causal ? std::clamp<int64_t>(p_.k.rows - p_.mask.offset, none, nq) : 0;
  const std::vector<float> zeros(static_cast<size_t>(dv_));
  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < none; ++i) Finish(kv * group + g, i, zeros.data(), 0, 0);
  if (all == nq) return;
  const simd::FeatureKernels& loops = simd::FeatureLoops();
  float* const total = State(0, 0);
  loops.product(State(pieces_, 0), State(pieces_, 1), 1, state_, total);
  for (int64_t f = 0; f < rank_; ++f) simd::Dense().scale(total + f * dv_, dv_, coefficients_[size_t(f)]);
  loops.product(total + rank_ * dv_, coefficients_.data(), 1, rank_, total + rank_ * dv_);
  const int64_t tiles = (nq - all + kTile - 1) / kTile;
  executor_.ParallelFor(group * tiles, [&](int64_t task, int worker) {
    const int64_t first = all + task / group * kTile;
    ReadAll(kv * group + task % group, first, std::min(kTile, nq - first), worker);
  });
}

Result<std::vector<int64_t>> FeatureRun::Run() {
  const int threads = executor_.threads();
  const int64_t group = p_.Group();
  CROQUIS_CHECK_OK(CheckMemory(((pieces_ + 1) * 2 * state_ + threads * kTile * (3 + group) * (rank_ + dv_)) * 4,
                               "the states of third-order attention"));
  states_ = Matrix<float>((pieces_ + 1) * 2, state_);
  const auto floats = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n)); };
  for (int i = 0; i < threads; ++i)
    workers_.push_back({floats(p_.q.dim), floats(kTile * group * rank_), floats(kTile * rank_), floats(kTile * rank_),
                        floats(kTile * dv_), floats(kTile * dv_), floats(kTile * rank_), floats(kTile * group * dv_),
                        floats(kTile * group), floats(rank_)});
  for (int64_t kv = 0; kv < p_.k.heads; ++kv) {
    executor_.ParallelFor(pieces_, [&](int64_t piece, int worker) { SumPiece(kv, piece, workers_[size_t(worker)]); });
    constexpr int64_t kStep = 1 << 13;
    executor_.ParallelFor((state_ + kStep - 1) / kStep,
                          [&](int64_t task, int) { Scan(task * kStep, std::min(kStep, state_ - task * kStep)); });
    if (p_.mask.causal)
      executor_.ParallelFor(pieces_, [&](int64_t piece, int worker) { ReadCausal(kv, piece, worker); });
    ReadRest(kv);
  }
  std::vector<int64_t> failed;
  for (const auto& some : failed_) failed.insert(failed.end(), some.begin(), some.end());
  std::sort(failed.begin(), failed.end());
  return failed;
}

}  // namespace

Result<std::vector<int64_t>> RunFeatures(Executor& executor, const Problem& p, const Output& output,
                                         const Monomials& monomials, const Polynomial& polynomial) {
  return FeatureRun(executor, p, output, monomials, monomials.Coefficients(polynomial, double(p.scale))).Run();
}

}  // namespace croquis::attention::tensor
