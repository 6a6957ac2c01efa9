#include "croquis/attention/tiles.h"

#include <algorithm>
#include <cmath>
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
  if (!index.empty()) return PackRows(block, k, v, index.subspan(size_t(first), size_t(n)));
  Pack(block, k.Rows(first, n), v.Rows(first, n), nullptr, n);
}

void KeySet::PackRows(int64_t block, const RowsView& k, const RowsView& v, std::span<const int32_t> index) {
  Pack(block, k, v, index.data(), int64_t(index.size()));
}

void KeySet::Pack(int64_t block, const RowsView& k, const RowsView& v, const int32_t* index, int64_t n) {
  simd::Tiles(layout_.type)
      .pack_block(layout_, k.type, k.data, k.stride, v.data, v.stride, index, n,
                  packed_.data() + (Keys(block) - packed_.data()), packed_.data() + (Values(block) - packed_.data()));
}

void KeySet::Pack(Executor& executor, const RowsView& k, const RowsView& v, std::span<const int32_t> index) {
  executor.ParallelFor(blocks(), [&](int64_t block, int) { PackBlock(block, k, v, index); });
}

void KeySet::Fetch(int64_t begin, int64_t end) const {
  constexpr size_t kLine = 64;
  for (int64_t block = (begin + kTileKeys - 1) / kTileKeys; block * kTileKeys < end; ++block) {
    for (size_t at = 0; at < layout_.KeyBlockBytes(); at += kLine) __builtin_prefetch(Keys(block) + at, 0, 2);
    for (size_t at = 0; at < layout_.ValueBlockBytes(); at += kLine) __builtin_prefetch(Values(block) + at, 0, 2);
  }
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
  query_factor_ = factor;
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
  const KeyRange range{.keys = &keys, .begin = begin, .end = end};
  Attend({&range, 1});
}

void QueryTile::Attend(const KeySet& keys, int64_t begin, int64_t end, std::span<const Range> visible) {
  const KeyRange range{.keys = &keys, .begin = begin, .end = end, .visible = visible};
  Attend({&range, 1});
}

void QueryTile::Attend(std::span<const KeyRange> ranges) {
  if (first_.size() < ranges.size() * kTileRows) first_.resize(ranges.size() * kTileRows), last_.resize(first_.size());
  ranges_.clear();
  int32_t *first = first_.data(), *last = last_.data();
  for (const KeyRange& range : ranges) {
    const KeySet& set = *range.keys;
    const int64_t row_end = std::min(rows_, range.last_row);
    CROQUIS_DCHECK(0 <= range.begin && range.end <= set.keys_ && range.first_row % 16 == 0);
    if (range.begin >= range.end || range.first_row >= row_end) continue;
    // Slots are counted from the first block on.
    const int64_t block = range.begin / kTileKeys, base = block * kTileKeys;
    simd::TileRange r{.keys = set.Keys(block),
                      .values = set.Values(block),
                      .begin = range.begin - base,
                      .end = range.end - base,
                      .row_begin = range.first_row,
                      .row_end = row_end};
    if (!range.log2_weights.empty())
      r.bias = range.log2_weights.data();
    else if (!set.bias_.empty())
      r.bias = set.bias_.data() + base;
    if (!set.factor_.empty()) {
      r.row_factor = range.row_factors.empty() ? row_factor_.data() : range.row_factors.data();
      r.key_factor = set.factor_.data() + base;
    }
    if (!range.visible.empty()) {
      CROQUIS_DCHECK(int64_t(range.visible.size()) >= row_end - range.first_row);
      r.first = first, r.last = last;
      for (int64_t row = range.first_row; row < row_end; ++row) {
        const Range v = range.visible[size_t(row - range.first_row)];
        first[row] = int32_t(std::clamp<int64_t>(v.first - base, 0, r.end));
        last[row] = int32_t(std::clamp<int64_t>(v.last - base, 0, r.end));
      }
      first += kTileRows, last += kTileRows;
    }
    ranges_.push_back(r);
  }
  if (!ranges_.empty()) Run(ranges_);
}

void QueryTile::Run(std::span<const simd::TileRange> ranges) {
  simd::TileCall call;
  call.layout = layout_;
  call.queries = queries_.data();
  call.rows = rows_;
  call.more = ranges.data(), call.more_ranges = int64_t(ranges.size());
  call.scale = scale_;
  call.max = max_.data(), call.mass = mass_.data();
  call.sums = sums_.View();
  call.scratch = scratch_.data();
  kernels_->attend(call);
}

void QueryTile::Resume(int64_t row, float max2, float mass, std::span<const float> sums) {
  max_[size_t(row)] = max2, mass_[size_t(row)] = mass;
  std::copy(sums.begin(), sums.end(), sums_.Row(row));
}

void QueryTile::AddProducts(const KeySet& matrix, std::span<const float> weights) {
  CROQUIS_DCHECK(matrix.keys_ == layout_.dim && int64_t(weights.size()) >= rows_);
  weights_.assign(weights.begin(), weights.begin() + rows_);
  for (float& x : weights_) x = query_factor_ == 0 ? 0 : x / query_factor_;
  kernels_->add_products(
      {layout_, queries_.data(), rows_, matrix.Values(0), weights_.data(), sums_.View(), scratch_.data()});
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
