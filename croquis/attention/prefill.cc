#include "croquis/attention/prefill.h"

#include <algorithm>

#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

Status CheckMethod(const std::string& text) {
  CROQUIS_TRY(const Spec spec, ResolveSpec(text));
  CROQUIS_TRY(const MethodInfo* info, FindMethod(spec.name));
  if (!info->softmax || !info->causal)
    return Unsupported("prefill " + Quoted(text) + ": " + spec.name + " " +
                       (info->softmax ? "takes no causal mask" : "has a score function other than softmax") +
                       ", so a trained model cannot run on it; croquis attn --list tells which methods can");
  CROQUIS_TRY(const auto method, Make(text));
  if (method->HasOwnKeys())
    return Unsupported(
        "prefill " + Quoted(text) +
        ": the cache would not hold the prefix of the file, and generation would go on without it; leave "
        "file out");
  return {};
}

}  // namespace

const std::string& PrefillPolicy::At(int64_t layer, int64_t head) const {
  for (auto o = overrides.rbegin(); o != overrides.rend(); ++o)
    if (o->at.Contains(layer, head)) return o->method;
  return base;
}

Result<PrefillPolicy> ParsePrefillPolicy(std::string_view method, std::span<const std::string> layers) {
  PrefillPolicy policy;
  policy.base = policy.text = method;
  CROQUIS_CHECK_OK(CheckMethod(policy.base));
  for (const std::string& layer : layers) {
    CROQUIS_TRY(const auto where, ParseLayerHeads(layer, "0-1=exact or 3/0-2=hyper:samples=64"));
    policy.overrides.push_back({where.first, std::string(where.second)});
    CROQUIS_CHECK_OK(CheckMethod(policy.overrides.back().method));
    policy.text += " " + layer;
  }
  return policy;
}

Result<std::unique_ptr<Prefill>> Prefill::Make(const PrefillPolicy& policy, int64_t layers, int64_t heads,
                                               int64_t kv_heads, bool bf16, uint64_t seed) {
  for (const auto& o : policy.overrides) CROQUIS_CHECK_OK(o.at.Check("prefill", layers, heads, "heads"));
  std::unique_ptr<Prefill> prefill(new Prefill);
  prefill->policy_ = policy;
  prefill->heads_ = heads, prefill->kv_heads_ = kv_heads;
  prefill->bf16_ = bf16 && simd::Active() >= simd::Target::kAvx512;
  prefill->seed_ = seed;
  return prefill;
}

// Made at the first call: a prompt has as many calls as layers, or heads.
Result<const Prefill::Entry*> Prefill::Find(const std::string& text, bool window) {
  auto at = methods_.find({text, window});
  if (at == methods_.end()) {
    CROQUIS_TRY(Entry made, Resolve(text, window));
    at = methods_.emplace(std::pair(text, window), std::move(made)).first;
  }
  return &at->second;
}

// The method of a text, or exact attention where it does not take the layer's window.
Result<Prefill::Entry> Prefill::Resolve(const std::string& text, bool window) const {
  CROQUIS_TRY(Spec spec, ResolveSpec(text));
  CROQUIS_TRY(const MethodInfo* info, FindMethod(spec.name));
  if (window && !info->window) {
    CROQUIS_TRY(spec, ResolveSpec("exact"));
    CROQUIS_TRY(info, FindMethod(spec.name));
  }
  for (const auto& [key, value] : spec.params)
    if (key == kPrecisionParam.name && value == "auto" && bf16_) {
      spec.Set(key, "bf16");
      break;
    }
  CROQUIS_TRY(auto method, attention::Make(ToString(spec), seed_));
  return Entry{info, std::move(method)};
}

Status Prefill::Attend(Executor& executor, const PrefillCall& c) {
  const int64_t d = c.q.cols / heads_, tokens = c.q.rows;
  const auto view = [&](MatView<const float> x, int64_t heads) {
    return TensorView{reinterpret_cast<const std::byte*>(x.data), simd::RowType::kF32, heads, tokens, d, d, x.stride};
  };
  Problem p{view(c.q, heads_), view(c.k, kv_heads_), view(c.v, kv_heads_), c.scale, {true, 0, c.window}};
  const Output output{c.out.data, d, c.out.stride, nullptr};
  if (c.window > 0) report_.windowed = true;
  const std::string& first = policy_.At(c.layer, 0);
  bool same = true;
  for (int64_t h = 1; h < heads_; ++h) same = same && policy_.At(c.layer, h) == first;
  if (same) {
    CROQUIS_TRY(const Entry* entry, Find(first, c.window > 0));
    return Run(executor, *entry, p, output);
  }
  for (int64_t h = 0; h < heads_; ++h) {
    CROQUIS_TRY(const Entry* entry, Find(policy_.At(c.layer, h), c.window > 0));
    CROQUIS_CHECK_OK(Run(executor, *entry, p.OneHead(h), output.OneHead(h, tokens)));
  }
  return {};
}

Status Prefill::Run(Executor& executor, const Entry& entry, const Problem& p, const Output& output) {
  RunReport r;
  CROQUIS_CHECK_OK(attention::Run(executor, *entry.info, *entry.method, p, output, &r));
  report_.pairs += r.pairs, report_.exact_pairs += r.exact_pairs;
  report_.rows += r.rows, report_.fallback_rows += r.fallback_rows;
  if (r.est_error >= 0) {
    const double before = estimated_rows_;
    estimated_rows_ += double(r.rows);
    report_.est_error = (std::max(report_.est_error, 0.0) * before + r.est_error * double(r.rows)) / estimated_rows_;
  }
  if (r.chosen.empty()) r.chosen.assign(size_t(p.q.heads), std::string(entry.info->name));
  for (const std::string& method : r.chosen) ++report_.heads[method];
  if (!r.kernel.empty()) report_.kernel = r.kernel;
  return {};
}

}  // namespace croquis::attention
