#include "croquis/attention/tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "croquis/base/check.h"
#include "croquis/simd/row_kernels.h"

namespace croquis::attention {
namespace {

constexpr float kLog2E = std::numbers::log2e_v<float>;
constexpr float kLn2 = std::numbers::ln2_v<float>;

}  // namespace

void RowsView::Read(int64_t r, float* out) const { simd::RowLoops().widen(type, Row(r), stride, nullptr, 1, dim, out); }

double Problem::Pairs() const {
  double pairs = 0;
  for (int64_t i = 0; i < q.rows; ++i) pairs += double(Visible(i).size());
  return pairs * double(q.heads);
}

Range Problem::Seen(int64_t first, int64_t n) const {
  Range seen{Keys(), 0};
  for (int64_t i = first; i < first + n; ++i)
    if (const Range mine = Visible(i); mine.size() > 0)
      seen = {std::min(seen.first, mine.first), std::max(seen.last, mine.last)};
  return seen.size() > 0 ? seen : Range{};
}

Problem Problem::OneHead(int64_t h) const {
  const int64_t kv = h / Group();
  Problem one = *this;
  one.q = q.Heads(h, 1);
  for (TensorView* t : {&one.k, &one.v, &one.k2, &one.v2})
    if (t->data != nullptr) *t = t->Heads(kv, 1);
  return one;
}

size_t KeySet::Bytes(TileType type, int64_t keys, int64_t dim, int64_t value_dim) {
  const simd::TileLayout layout{type, dim, value_dim};
  return size_t((keys + kTileKeys - 1) / kTileKeys) * (layout.KeyBlockBytes() + layout.ValueBlockBytes());
}

KeySet::KeySet(TileType type, int64_t keys, int64_t dim, int64_t value_dim)
    : layout_{type, dim, value_dim}, keys_(keys), packed_(Bytes(type, keys, dim, value_dim)) {}

void KeySet::PackBlock(int64_t block, const RowsView& k, const RowsView& v, std::span<const int32_t> index) {
  const int64_t first = block * kTileKeys, n = std::min(kTileKeys, keys_ - first);
  const bool gather = !index.empty();
  const RowsView from_k = gather ? k : k.Rows(first, n), from_v = gather ? v : v.Rows(first, n);
  simd::Tiles(layout_.type)
      .pack_block(
          layout_, k.type, from_k.data, k.stride, from_v.data, v.stride, gather ? index.data() + first : nullptr, n,
          packed_.data() + size_t(block) * layout_.KeyBlockBytes(),
          packed_.data() + size_t(blocks()) * layout_.KeyBlockBytes() + size_t(block) * layout_.ValueBlockBytes());
}

void KeySet::Pack(Executor& executor, const RowsView& k, const RowsView& v, std::span<const int32_t> index) {
  executor.ParallelFor(blocks(), [&](int64_t block, int) { PackBlock(block, k, v, index); });
}

void KeySet::SetLogWeight(int64_t slot, float log_weight) {
  if (bias_.empty()) bias_.resize(size_t(blocks() * kTileKeys));
  bias_[size_t(slot)] = log_weight * kLog2E;
}

void KeySet::SetFactor(int64_t slot, float factor) {
  if (factor_.empty()) factor_.resize(size_t(blocks() * kTileKeys));
  factor_[size_t(slot)] = factor * kLog2E;
}

QueryTile::QueryTile(TileType type, int64_t dim, int64_t value_dim)
    : layout_{type, dim, value_dim},
      kernels_(&simd::Tiles(type)),
      queries_(layout_.QueryBytes()),
      scratch_(kernels_->scratch_bytes(layout_)),
      sums_(kTileRows, layout_.PaddedValueDim()),
      max_(kTileRows),
      mass_(kTileRows),
      row_factor_(kTileRows),
      first_(kTileRows),
      last_(kTileRows) {}

void QueryTile::Load(const RowsView& q, int64_t rows, float scale, std::span<const int32_t> index,
                     std::span<const float> row_factors) {
  CROQUIS_DCHECK(rows <= kTileRows);
  rows_ = rows;
  // bf16 queries keep their bits: what is packed is +-q, and the kernel scales the logits.
  const float exponent = scale * kLog2E,
              factor = layout_.type == TileType::kF32 ? exponent : float((scale > 0) - (scale < 0));
  scale_ = layout_.type == TileType::kF32 || scale == 0 ? 1 : std::abs(exponent);
  kernels_->pack_queries(layout_, q.type, q.data, q.stride, index.empty() ? nullptr : index.data(), rows, factor,
                         queries_.data());
  std::fill(row_factor_.begin(), row_factor_.end(), 0.f);
  std::copy(row_factors.begin(), row_factors.end(), row_factor_.begin());
  Clear();
}

void QueryTile::Clear() {
  std::fill(max_.begin(), max_.end(), simd::kMasked);
  std::fill(mass_.begin(), mass_.end(), 0.f);
  std::fill_n(sums_.data(), rows_ * sums_.cols(), 0.f);
}

void QueryTile::Attend(const KeySet& keys, int64_t begin, int64_t end) {
  Run(keys, begin, end, nullptr, nullptr, keys.bias_.empty() ? nullptr : keys.bias_.data());
}

void QueryTile::Attend(const KeySet& keys, int64_t begin, int64_t end, std::span<const float> log_weights) {
  CROQUIS_DCHECK(int64_t(log_weights.size()) == end - begin);
  if (bias_.size() < size_t(end)) bias_.resize(size_t(keys.blocks() * kTileKeys));
  for (int64_t slot = begin; slot < end; ++slot)
    bias_[size_t(slot)] = std::max(simd::kMasked, log_weights[size_t(slot - begin)] * kLog2E);
  Run(keys, begin, end, nullptr, nullptr, bias_.data());
}

void QueryTile::Attend(const KeySet& keys, int64_t begin, int64_t end, std::span<const Range> visible) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  for (int64_t r = 0; r < rows_; ++r) {
    first_[size_t(r)] = int32_t(std::clamp<int64_t>(visible[size_t(r)].first, 0, kMost));
    last_[size_t(r)] = int32_t(std::clamp<int64_t>(visible[size_t(r)].last, 0, kMost));
  }
  Run(keys, begin, end, first_.data(), last_.data(), keys.bias_.empty() ? nullptr : keys.bias_.data());
}

void QueryTile::Run(const KeySet& keys, int64_t begin, int64_t end, const int32_t* first, const int32_t* last,
                    const float* bias) {
  CROQUIS_DCHECK(0 <= begin && end <= keys.keys_);
  if (begin >= end || rows_ == 0) return;
  simd::TileCall call;
  call.layout = layout_;
  call.queries = queries_.data();
  call.rows = rows_;
  call.keys = keys.packed_.data();
  call.values = keys.packed_.data() + size_t(keys.blocks()) * layout_.KeyBlockBytes();
  call.begin = begin, call.end = end;
  call.scale = scale_;
  call.first = first, call.last = last;
  call.bias = bias;
  if (!keys.factor_.empty()) call.row_factor = row_factor_.data(), call.key_factor = keys.factor_.data();
  call.max = max_.data(), call.mass = mass_.data();
  call.sums = sums_.View();
  call.scratch = scratch_.data();
  kernels_->attend(call);
}

Partial QueryTile::State(int64_t row) {
  const bool empty = mass_[size_t(row)] == 0;
  return {
      empty ? kEmptyMax : max_[size_t(row)] * kLn2, mass_[size_t(row)], {sums_.Row(row), size_t(layout_.value_dim)}};
}

void QueryTile::Merge(int64_t row, const Partial& from) {
  Partial into = State(row);
  attention::Merge(from, into);
  max_[size_t(row)] = into.l == 0 ? simd::kMasked : into.m * kLog2E;
  mass_[size_t(row)] = into.l;
}

}  // namespace croquis::attention
