#include "croquis/kvcache/cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "croquis/kvcache/impl.h"
#include "croquis/simd/page_kernels.h"

namespace croquis::kvcache {

HeadView ViewHead(const KvCache& cache, int64_t layer, int64_t head) {
  const KvCache::Impl& impl = cache.impl();
  const Plan& plan = *impl.plan;
  const LayerState& state = impl.layers[size_t(layer)];
  const HeadPlan& h = plan.layers[size_t(layer)].heads[size_t(head)];
  HeadView v;
  v.key = h.key, v.value = h.value, v.type = h.type;
  v.row_bytes = plan.config.head_dim * simd::RowTypeBytes(h.type);
  v.length = impl.length;
  v.sinks = std::min(plan.config.sinks, impl.length);
  v.encoded = plan.Encoded(layer, impl.length);
  v.slots = plan.layers[size_t(layer)].slots;
  v.sink_k = impl.rows.data() + h.rows_offset;
  v.sink_v = v.sink_k + plan.config.sinks * v.row_bytes;
  v.ring_k = v.sink_v + plan.config.sinks * v.row_bytes;
  v.ring_v = v.ring_k + v.slots * v.row_bytes;
  v.units = state.units.data();
  v.key_offset = h.key_offset, v.value_offset = h.value_offset;
  if (impl.edits.edited()) v.edits = &impl.edits;
  if (!state.centers.empty() && state.centers[size_t(head)].pairs > 0)
    v.center = &state.centers[size_t(head)], v.rope = plan.rope.get();
  if (const Policy* policy = plan.layers[size_t(layer)].policy; policy != nullptr) {
    v.evicts = true;
    v.sees = policy->Observes();
    v.kept = policy->View(state.kept[size_t(head)]);
  }
  return v;
}

void RoundRow(simd::RowType type, const float* x, int64_t n, std::byte* out) {
  switch (type) {
    case simd::RowType::kF16:
      return simd::Pages().f32_to_f16(x, n, reinterpret_cast<uint16_t*>(out));
    case simd::RowType::kBf16:
      return simd::Pages().f32_to_bf16(x, n, reinterpret_cast<uint16_t*>(out));
    case simd::RowType::kF32:
      std::memcpy(out, x, size_t(n) * 4);
  }
}

void WidenRow(simd::RowType type, const std::byte* x, int64_t n, float* out) {
  switch (type) {
    case simd::RowType::kF16:
      return simd::Pages().f16_to_f32(reinterpret_cast<const uint16_t*>(x), n, out);
    case simd::RowType::kBf16:
      return simd::Pages().bf16_to_f32(reinterpret_cast<const uint16_t*>(x), n, out);
    case simd::RowType::kF32:
      std::memcpy(out, x, size_t(n) * 4);
  }
}

const Lineage& LineageOf(const KvCache& cache) { return cache.impl().lineage; }

int64_t CommonTokens(const KvCache& a, const KvCache& b) {
  return Lineage::Common(a.impl().lineage, a.length(), b.impl().lineage, b.length());
}

Observation& PendingObservation(KvCache& cache, int64_t layer, int64_t head) {
  return cache.impl().layers[size_t(layer)].observed[size_t(head)];
}

std::byte* Workspace(KvCache& cache, size_t bytes) {
  Buffer& w = cache.impl().workspace;
  if (w.size() < bytes) w = Buffer(), w = Buffer(bytes);
  return w.data();
}

KvCache::KvCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvCache::~KvCache() = default;

Result<std::unique_ptr<KvCache>> KvCache::Make(const CacheConfig& config) {
  CROQUIS_TRY(auto plan, Plan::Make(config));
  CROQUIS_TRY(const Report full, plan->Formula(config.capacity));
  CROQUIS_CHECK_OK(CheckMemory(
      full.total(), "a cache of " + std::to_string(config.capacity) + " tokens (" + config.policy.text + ")"));
  return std::unique_ptr<KvCache>(new KvCache(std::make_unique<Impl>(std::move(plan))));
}

const CacheConfig& KvCache::config() const { return impl_->plan->config; }
int64_t KvCache::length() const { return impl_->length; }

namespace {

Error BadNumber(int64_t layer, int64_t head, int64_t position, const char* what, std::span<const float> row,
                float limit) {
  float bad = 0;
  for (const float x : row)
    if (!(std::fabs(x) <= limit)) bad = x;
  std::string m = "cache: the " + std::string(what) + " of layer " + std::to_string(layer) + ", kv head " +
                  std::to_string(head) + ", position " + std::to_string(position) + " contains " + std::to_string(bad);
  if (std::isfinite(bad)) m += ", larger than f16 holds (65504); use a cache whose keys are bf16 or f32";
  return Numeric(std::move(m));
}

}  // namespace

Status CheckAppend(const KvCache& cache, int64_t layer, MatView<const float> k, MatView<const float> v) {
  const KvCache::Impl& impl = cache.impl();
  const CacheConfig& c = impl.plan->config;
  if (layer < 0 || layer >= c.layers)
    return OutOfRange("cache: layer " + std::to_string(layer) + " of " + std::to_string(c.layers));
  const int64_t width = c.kv_heads * c.head_dim;
  if (k.cols != width || v.cols != width || k.rows != v.rows)
    return InvalidArgument("cache: keys and values must be [tokens, " + std::to_string(width) + "], got [" +
                           std::to_string(k.rows) + ", " + std::to_string(k.cols) + "] and [" + std::to_string(v.rows) +
                           ", " + std::to_string(v.cols) + "]");
  if (impl.layers[size_t(layer)].pending > 0)
    return InvalidArgument("cache: layer " + std::to_string(layer) +
                           " was already appended to; Commit or Rollback comes first");
  if (k.rows > c.capacity - impl.length)
    return OutOfRange("cache: " + std::to_string(impl.length) + " tokens and " + std::to_string(k.rows) +
                      " more do not fit its capacity of " + std::to_string(c.capacity) +
                      "; make it with a larger capacity");
  const auto& kernels = simd::Dense();
  for (int64_t h = 0; h < c.kv_heads; ++h) {
    const auto type = impl.plan->layers[size_t(layer)].heads[size_t(h)].type;
    const float limit = type == simd::RowType::kF16 ? 65504.f : std::numeric_limits<float>::max();
    for (int64_t t = 0; t < k.rows; ++t)
      for (const auto* x : {&k, &v}) {
        const float* row = x->Row(t) + h * c.head_dim;
        if (!kernels.all_below(row, c.head_dim, limit))
          return BadNumber(layer, h, impl.length + t, x == &k ? "key" : "value", {row, size_t(c.head_dim)}, limit);
      }
  }
  return {};
}

Status KvCache::Append(int64_t layer, MatView<const float> k, MatView<const float> v) {
  CROQUIS_CHECK_OK(CheckAppend(*this, layer, k, v));
  Executor serial;
  AppendChecked(serial, *this, layer, k, v);
  return {};
}

void AppendChecked(Executor& executor, KvCache& cache, int64_t layer, MatView<const float> k, MatView<const float> v) {
  KvCache::Impl& impl = cache.impl();
  const int64_t heads = impl.plan->config.kv_heads;
  impl.BeginAppend(layer, k.rows);
  // One token is less work than waking the workers.
  if (k.rows < 16) {
    for (int64_t h = 0; h < heads; ++h) impl.AppendHead(layer, h, k, v);
  } else {
    executor.ParallelFor(heads, [&](int64_t h, int) { impl.AppendHead(layer, h, k, v); });
  }
  impl.EndAppend(layer, k.rows);
}

void KvCache::Commit(int64_t tokens) {
  for (LayerState& layer : impl_->layers) {
    CROQUIS_DCHECK(layer.pending == tokens);
    layer.pending = 0;
    layer.undo = Undo();
  }
  if (impl_->edits.edited()) impl_->edits.Append(impl_->length, tokens);
  if (tokens > 0) impl_->lineage.Grow(impl_->length);
  impl_->length += tokens;
}

void KvCache::Rollback() { impl_->Rollback(); }

Status KvCache::Truncate(int64_t length) {
  impl_->Rollback();
  if (length < 0 || length > tokens())
    return OutOfRange("cache: cannot keep " + std::to_string(length) + " of " + std::to_string(tokens()) + " tokens");
  if (edited()) return Delete(length, tokens());
  for (int64_t l = 0; l < config().layers; ++l) {
    const int64_t had = impl_->plan->Encoded(l, impl_->length), keep = impl_->plan->Encoded(l, length);
    if (impl_->plan->layers[size_t(l)].policy != nullptr && keep != had && keep != 0)
      return Unsupported("cache: cannot keep " + std::to_string(length) + " of " + std::to_string(impl_->length) +
                         " tokens: " + std::string(impl_->plan->layers[size_t(l)].policy->Method()) +
                         " has evicted or merged those before; keep 0 and read the text again, or branch earlier");
  }
  impl_->Truncate(length);
  return {};
}

int64_t KvCache::tokens() const { return impl_->edits.Tokens(impl_->length); }
bool KvCache::edited() const { return impl_->edits.edited(); }

Status KvCache::Delete(int64_t begin, int64_t end) {
  if (impl_->Pending()) return InvalidArgument("cache: tokens are pending; Commit or Rollback comes before an edit");
  if (begin < 0 || begin > end || end > tokens())
    return OutOfRange("cache: cannot delete tokens " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
                      std::to_string(tokens()));
  if (!edited() && end == tokens()) return Truncate(begin);
  CROQUIS_CHECK_OK(impl_->CheckEditable());
  impl_->edits.Delete(impl_->length, begin, end);
  return {};
}

Status KvCache::InsertAt(int64_t position) {
  if (impl_->Pending()) return InvalidArgument("cache: tokens are pending; Commit or Rollback comes before an edit");
  if (position < 0 || position > tokens())
    return OutOfRange("cache: cannot insert at position " + std::to_string(position) + " of " +
                      std::to_string(tokens()) + " tokens");
  if (edited() || position < tokens()) CROQUIS_CHECK_OK(impl_->CheckEditable());
  impl_->edits.InsertAt(impl_->length, position);
  return {};
}

std::unique_ptr<KvCache> KvCache::Branch() const {
  auto impl = std::make_unique<Impl>(*impl_);
  impl->Rollback();
  return std::unique_ptr<KvCache>(new KvCache(std::move(impl)));
}

Report KvCache::GetReport() const {
  const Plan& plan = *impl_->plan;
  Report r;
  r.tokens = impl_->length;
  r.sinks = int64_t(plan.sink_bytes);
  r.ring = int64_t(impl_->rows.size()) - r.sinks;
  if (plan.rope) r.tables = RopeTable::Bytes(plan.config.rope, plan.config.head_dim);
  for (size_t l = 0; l < impl_->layers.size(); ++l) {
    const LayerState& state = impl_->layers[l];
    // NOLINTNEXTLINE(bugprone-sizeof-expression): a table of pointers
    r.tables += int64_t(state.units.capacity() * sizeof(Unit*) + state.centers.size() * sizeof(Center));
    for (const Unit* unit : state.units) {
      const int64_t keys = int64_t(plan.layers[l].unit_key_bytes);
      r.key_pages += keys;
      r.value_pages += unit->bytes - int64_t(sizeof(Unit)) - keys;
      r.tables += int64_t(sizeof(Unit));
    }
    for (const PolicyState& kept : state.kept) AddKept(kept.layout(), 1, r);
    for (const Center& center : state.centers) r.centered_heads += center.pairs > 0, r.centered_pairs += center.pairs;
  }
  DescribeCodecs(plan, r);
  return r;
}

Result<int64_t> KvCache::BytesFor(const CacheConfig& config, int64_t tokens) {
  if (tokens < 0 || tokens > config.capacity)
    return OutOfRange("cache: " + std::to_string(tokens) + " tokens in a cache with a capacity of " +
                      std::to_string(config.capacity));
  CROQUIS_TRY(const auto plan, Plan::Make(config));
  CROQUIS_TRY(const Report report, plan->Formula(tokens));
  return report.total();
}

int64_t BytesTogether(std::span<const KvCache* const> caches) {
  int64_t bytes = 0;
  std::unordered_set<const Unit*> units;
  std::unordered_set<const Plan*> plans;
  for (const KvCache* cache : caches) {
    const KvCache::Impl& impl = cache->impl();
    bytes += int64_t(impl.rows.size());
    if (impl.plan->rope && plans.insert(impl.plan.get()).second)
      bytes += RopeTable::Bytes(impl.plan->config.rope, impl.plan->config.head_dim);
    for (const LayerState& state : impl.layers) {
      // NOLINTNEXTLINE(bugprone-sizeof-expression): a table of pointers
      bytes += int64_t(state.units.capacity() * sizeof(Unit*) + state.centers.size() * sizeof(Center));
      for (const Unit* unit : state.units)
        if (units.insert(unit).second) bytes += unit->bytes;
    }
  }
  return bytes;
}

}  // namespace croquis::kvcache
