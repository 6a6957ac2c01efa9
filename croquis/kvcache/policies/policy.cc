#include "croquis/kvcache/policies/policy.h"

#include <algorithm>
#include <cstring>

namespace croquis::kvcache {

extern const PolicyInfo kPolicy_window, kPolicy_h2o, kPolicy_subgen;

namespace {
// A policy is a file of this folder and a line here.
constexpr const PolicyInfo* kPolicies[] = {
    &kPolicy_window,
    &kPolicy_h2o,
    &kPolicy_subgen,
};
}  // namespace

std::span<const PolicyInfo* const> Policies() { return kPolicies; }

const PolicyInfo* FindPolicy(std::string_view text) {
  const std::string_view name = text.substr(0, text.find(':'));
  for (const PolicyInfo* p : kPolicies)
    if (p->name == name) return p;
  return nullptr;
}

Result<Spec> ResolvePolicy(std::string_view text) {
  CROQUIS_TRY(const Spec spec, ParseSpec(text));
  const PolicyInfo* info = FindPolicy(spec.name);
  if (info == nullptr) return NotFound("no eviction policy '" + spec.name + "'");
  return Complete(spec, info->params);
}

Result<std::unique_ptr<const Policy>> MakePolicy(std::string_view text, PolicyRequest request) {
  CROQUIS_TRY(request.spec, ResolvePolicy(text));
  return FindPolicy(text)->make(request);
}

int64_t StateLayout::bytes() const {
  int64_t sum = int64_t(sizeof(PolicyState::Header));
  for (size_t i = 0; i < count; ++i) sum += parts[i].bytes();
  return sum;
}

int64_t StateLayout::bytes(StatePart::Holds holds) const {
  int64_t sum = holds == StatePart::Holds::kTables ? int64_t(sizeof(PolicyState::Header)) : 0;
  for (size_t i = 0; i < count; ++i) sum += parts[i].holds == holds ? parts[i].bytes() : 0;
  return sum;
}

PolicyState::PolicyState(const StateLayout& layout) : data_(size_t(layout.bytes())), layout_(layout) {
  int64_t at = int64_t(sizeof(Header));
  for (size_t i = 0; i < layout.count; ++i) offset_[i] = at, at += layout.parts[i].bytes();
}

PolicyState::PolicyState(const PolicyState& other)
    : data_(other.data_.size()), layout_(other.layout_), offset_(other.offset_) {
  if (data_.size() > 0) std::memcpy(data_.data(), other.data_.data(), data_.size());
}

PolicyState& PolicyState::operator=(const PolicyState& other) {
  if (this != &other) *this = PolicyState(other);
  return *this;
}

bool PolicyState::Finite(size_t i) const {
  const auto* x = Part<uint16_t>(i);
  return std::all_of(x, x + layout_.parts[i].items * layout_.parts[i].item_bytes / 2,
                     [](uint16_t h) { return (h & 0x7c00) != 0x7c00; });
}

void PolicyState::Resize(const StateLayout& layout) {
  if (layout.bytes() == int64_t(data_.size())) return;
  PolicyState to(layout);
  to.header() = header();
  for (size_t i = 0; i < layout.count; ++i) {
    const StatePart &from = layout_.parts[i], &into = layout.parts[i];
    std::memcpy(to.Part<std::byte>(i), Part<std::byte>(i), size_t(std::min(from.items, into.items) * into.item_bytes));
  }
  *this = std::move(to);
}

Budget::Budget(const PolicyRequest& request)
    : memory_(request.spec.Int("memory")),
      slots_(request.spec.Int("slots")),
      row_bytes_(4 * request.head_dim),
      exact_(request.sinks + request.ring),
      taken_(request.sinks + std::min(request.ring + kPolicyRun, request.capacity)) {}

int64_t Budget::Tokens(int64_t left) const { return slots_ > 0 ? slots_ : (exact_ + left) * memory_ / 100; }

int64_t Budget::Bytes(int64_t left) const { return (Tokens(left) - taken_) * row_bytes_; }

int64_t Budget::Rows(int64_t left, int64_t item_bytes, int64_t fixed) const {
  const int64_t rows = std::max<int64_t>(0, Bytes(left) - fixed) / item_bytes / 16 * 16;
  return std::min(left, std::max(rows, kLeast));
}

Status Budget::Check(const PolicyRequest& request, int64_t item_bytes, int64_t fixed) const {
  const int64_t missing = fixed + kLeast * item_bytes - Bytes(0);
  if (slots_ == 0 || missing <= 0) return {};
  return OutOfRange(request.spec.name + ": slots=" + std::to_string(slots_) + " is less than the first " +
                    std::to_string(request.sinks) + " and most recent " + std::to_string(taken_ - request.sinks) +
                    " tokens and " + std::to_string(kLeast) + " rows take; wanted at least " +
                    std::to_string(slots_ + (missing + row_bytes_ - 1) / row_bytes_) + ", or a smaller recent");
}

}  // namespace croquis::kvcache
