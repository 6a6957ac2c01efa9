#include "croquis/kvcache/plan.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "croquis/base/memory.h"
#include "croquis/kvcache/layer_view.h"
#include "croquis/kvcache/unit_pool.h"

namespace croquis::kvcache {
namespace {

using codecs::Codec;
using codecs::kPageTokens;
using codecs::Role;

constexpr int64_t kMaxHeads = 65536;  // layers times heads
constexpr int64_t kMaxTokens = int64_t{1} << 31;
// Tokens that leave the ring together at least, also for codecs that could take them one by one: then every method
// keeps the same tokens exact, and comparisons between methods compare the codes.
constexpr int64_t kLeastRun = 16;

Error Range(const char* what, int64_t got, int64_t min, int64_t max) {
  return OutOfRange("cache: " + std::string(what) + " must be " + std::to_string(min) + " to " + std::to_string(max) +
                    ", got " + std::to_string(got));
}

Status CheckConfig(const CacheConfig& c) {
  if (c.layers < 1 || c.layers > kMaxHeads) return Range("layers", c.layers, 1, kMaxHeads);
  if (c.kv_heads < 1 || c.kv_heads > kMaxHeads / c.layers)
    return Range("kv_heads", c.kv_heads, 1, kMaxHeads / c.layers);
  if (c.head_dim < 8 || c.head_dim > 256) return Range("head_dim", c.head_dim, 8, 256);
  if (c.capacity < 1 || c.capacity > kMaxTokens) return Range("capacity", c.capacity, 1, kMaxTokens);
  if (c.sinks < 0 || c.sinks > kMaxTokens) return Range("sinks", c.sinks, 0, kMaxTokens);
  if (c.ring < 0 || c.ring > kMaxTokens) return Range("ring", c.ring, 0, kMaxTokens);
  if (int64_t(c.rope.inv_freq.size()) > c.head_dim / 2)
    return Range("rotated pairs", int64_t(c.rope.inv_freq.size()), 0, c.head_dim / 2);
  for (const double w : c.rope.inv_freq)
    if (!(std::fabs(w) <= 1e6)) return InvalidArgument("cache: a RoPE frequency is not a finite number");
  for (const auto& o : c.policy.overrides) CROQUIS_CHECK_OK(o.at.Check("cache", c.layers, c.kv_heads, "kv heads"));
  return {};
}

simd::RowType RingType(const Codec& key) {
  const std::string_view name = key.Method().substr(0, key.Method().find(':'));
  if (name == "f32") return simd::RowType::kF32;
  return name == "bf16" ? simd::RowType::kBf16 : simd::RowType::kF16;
}

// One codec object for each distinct method and role.
class CodecSet {
 public:
  CodecSet(const CacheConfig& config, Plan& plan) : config_(config), plan_(plan) {}

  Result<const Codec*> Get(const std::string& text, Role role) {
    const auto key = std::make_pair(text, role);
    if (const auto it = by_text_.find(key); it != by_text_.end()) return it->second;
    CROQUIS_TRY(auto made, codecs::Make(text, config_.head_dim, role, config_.seed));
    for (const auto& c : plan_.codecs)
      if (c->GetRole() == role && c->Method() == made->Method()) return by_text_[key] = c.get();
    plan_.codecs.push_back(std::move(made));
    return by_text_[key] = plan_.codecs.back().get();
  }

 private:
  const CacheConfig& config_;
  Plan& plan_;
  std::map<std::pair<std::string, Role>, const Codec*> by_text_;
};

// Makes the eviction policy of a layer, if it has one, and sets its ring.
Status ChoosePolicy(const CacheConfig& config, int64_t l, Plan& plan) {
  LayerPlan& layer = plan.layers[size_t(l)];
  const std::string method = config.policy.At(l, 0).evict;
  for (int64_t h = 1; h < config.kv_heads; ++h)
    if (config.policy.At(l, h).evict != method)
      return Unsupported("cache: an eviction policy is for all kv heads of a layer; layer " + std::to_string(l) +
                         " has it for some, so name whole layers in the overrides");
  if (method.empty()) return {};
  CROQUIS_TRY(const Spec spec, ResolvePolicy(method));
  layer.ring = std::min(config.ring, spec.Int("recent"));
  CROQUIS_TRY(auto made, MakePolicy(method, {.spec = {},
                                             .head_dim = config.head_dim,
                                             .sinks = plan.config.sinks,
                                             .ring = layer.ring,
                                             .capacity = config.capacity,
                                             .rope = config.rope,
                                             .seed = config.seed}));
  for (const auto& p : plan.policies)
    if (p->Method() == made->Method()) layer.policy = p.get();
  if (layer.policy != nullptr) return {};
  plan.policies.push_back(std::move(made));
  layer.policy = plan.policies.back().get();
  return {};
}

}  // namespace

int64_t EncodedTokens(int64_t length, int64_t sinks, int64_t ring, int64_t granularity) {
  return std::max<int64_t>(0, length - sinks - ring) / granularity * granularity;
}

int64_t Plan::Encoded(int64_t layer, int64_t length) const {
  const LayerPlan& l = layers[size_t(layer)];
  return EncodedTokens(length, config.sinks, l.ring, l.granularity);
}

int64_t Plan::Units(int64_t layer, int64_t length) const {
  if (layers[size_t(layer)].policy != nullptr) return 0;
  return (Encoded(layer, length) + kPageTokens - 1) / kPageTokens;
}

Result<std::shared_ptr<const Plan>> Plan::Make(const CacheConfig& config) {
  CROQUIS_CHECK_OK(CheckConfig(config));
  auto plan = std::make_shared<Plan>();
  plan->config = config;
  plan->config.sinks = std::min(config.sinks, config.capacity);
  CodecSet codecs(config, *plan);
  double rows_bytes = 0;
  for (int64_t l = 0; l < config.layers; ++l) {
    LayerPlan& layer = plan->layers.emplace_back();
    layer.granularity = kLeastRun;
    layer.ring = config.ring;
    CROQUIS_CHECK_OK(ChoosePolicy(config, l, *plan));
    for (int64_t h = 0; h < config.kv_heads; ++h) {
      const KvPair pair = config.policy.At(l, h);
      HeadPlan& head = layer.heads.emplace_back();
      CROQUIS_TRY(head.key, codecs.Get(pair.key, Role::kKey));
      CROQUIS_TRY(head.value, codecs.Get(pair.value, Role::kValue));
      head.type = RingType(*head.key);
      layer.granularity = std::max({layer.granularity, head.key->Granularity(), head.value->Granularity()});
      layer.unit_key_bytes += head.key->PageBytes();
      plan->centering = plan->centering || head.key->GetCenter() != codecs::Center::kNone;
    }
    // A head's value page follows its key page: what dense kernels prefetch past the end of one is the other's start.
    for (HeadPlan& head : layer.heads) {
      head.key_offset = layer.unit_bytes;
      head.value_offset = head.key_offset + head.key->PageBytes();
      layer.unit_bytes = head.value_offset + head.value->PageBytes();
    }
    layer.slots = std::min(layer.ring + layer.granularity, config.capacity);
    for (HeadPlan& head : layer.heads) {
      const int64_t row = config.head_dim * simd::RowTypeBytes(head.type);
      rows_bytes += double(row) * 2 * double(plan->config.sinks + layer.slots);
      if (rows_bytes > 0x1p60)
        return NoMemory("cache: the sinks and the ring do not fit any memory; use a smaller ring");
      head.rows_offset = plan->rows_bytes;
      plan->rows_bytes += size_t(2 * row * (plan->config.sinks + layer.slots));
      plan->sink_bytes += size_t(2 * row * plan->config.sinks);
    }
  }
  if (plan->centering) {
    if (config.head_dim % 2 != 0)
      return Unsupported("cache: removing the common part of keys needs an even head_dim, got " +
                         std::to_string(config.head_dim) + "; use center=none");
    plan->rope = std::make_unique<RopeTable>(config.rope, config.head_dim);
  }
  return std::shared_ptr<const Plan>(std::move(plan));
}

Result<Report> Plan::Formula(int64_t length) const {
  Report r;
  r.tokens = length;
  r.sinks = int64_t(sink_bytes);
  r.ring = int64_t(rows_bytes - sink_bytes);
  if (rope) r.tables = RopeTable::Bytes(config.rope, config.head_dim);
  double total = double(r.total());
  for (int64_t l = 0; l < config.layers; ++l) {
    const LayerPlan& layer = layers[size_t(l)];
    if (layer.policy != nullptr) {
      AddKept(Kept(l, length), config.kv_heads, r);
      total += double(Kept(l, length).bytes()) * double(config.kv_heads);
    }
    const int64_t units = Units(l, length);
    total += double(units) * double(layer.unit_bytes + sizeof(Unit));
    if (total > 0x1p60) return NoMemory("cache: " + std::to_string(length) + " tokens do not fit any memory");
    r.key_pages += units * int64_t(layer.unit_key_bytes);
    r.value_pages += units * int64_t(layer.unit_bytes - layer.unit_key_bytes);
    // NOLINTNEXTLINE(bugprone-sizeof-expression): a table of pointers
    r.tables += units * int64_t(sizeof(Unit)) + Units(l, config.capacity) * int64_t(sizeof(Unit*));
    if (rope) r.tables += config.kv_heads * int64_t(sizeof(Center));
  }
  DescribeCodecs(*this, r);
  return r;
}

void AddKept(const StateLayout& layout, int64_t heads, Report& report) {
  report.key_pages += heads * layout.bytes(StatePart::Holds::kKeys);
  report.value_pages += heads * layout.bytes(StatePart::Holds::kValues);
  report.tables += heads * layout.bytes(StatePart::Holds::kTables);
}

void DescribeCodecs(const Plan& plan, Report& report) {
  const CacheConfig& c = plan.config;
  const double heads = double(c.layers * c.kv_heads);
  const double numbers = heads * double(c.head_dim) * 2 * double(report.tokens);
  report.f16_bytes = int64_t(2 * numbers);
  report.bits_per_number = numbers > 0 ? 8 * double(report.total()) / numbers : 0;
  report.key_bits = report.value_bits = 0;
  report.all_fast = true;
  report.kernels.clear();
  for (const auto& codec : plan.codecs) {
    const bool key = codec->GetRole() == codecs::Role::kKey;
    int64_t used = 0;
    for (const LayerPlan& layer : plan.layers)
      for (const HeadPlan& head : layer.heads)
        used += layer.policy == nullptr && (key ? head.key : head.value) == codec.get();
    if (used == 0) continue;
    (key ? report.key_bits : report.value_bits) += codec->BitsPerNumber() * double(used) / heads;
    report.all_fast = report.all_fast && codec->HasFastPath();
    report.kernels.push_back((key ? "k " : "v ") + std::string(codec->Method()) + ": " + std::string(codec->Kernel()) +
                             " (" + std::to_string(used) + (used == 1 ? " head)" : " heads)"));
  }
  for (const auto& policy : plan.policies) {
    int64_t layers = 0;
    for (int64_t l = 0; l < c.layers; ++l) {
      if (plan.layers[size_t(l)].policy != policy.get()) continue;
      // Stored bits a number of the tokens that have left the ring.
      const StateLayout layout = plan.Kept(l, report.tokens);
      const double left = double(std::max<int64_t>(1, plan.Encoded(l, report.tokens)));
      const double bits = 8 / (left * double(c.head_dim) * double(c.layers));
      const double notes = double(layout.bytes(StatePart::Holds::kTables)) / 2;
      report.key_bits += bits * (double(layout.bytes(StatePart::Holds::kKeys)) + notes);
      report.value_bits += bits * (double(layout.bytes(StatePart::Holds::kValues)) + notes);
      ++layers;
    }
    report.kernels.push_back(std::string(policy->Method()) + ": f16 rows (" + std::to_string(layers) +
                             (layers == 1 ? " layer)" : " layers)"));
  }
}

}  // namespace croquis::kvcache
