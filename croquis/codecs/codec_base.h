// What every codec of this family has: the request it was made from, its kernels' names, and small helpers for its
// bytes.
#pragma once

#include <array>
#include <string>

#include "croquis/codecs/codec.h"
#include "croquis/simd/target.h"

namespace croquis::codecs {

constexpr size_t RoundUp64(size_t bytes) { return (bytes + 63) / 64 * 64; }

class CodecBase : public Codec {
 public:
  int64_t HeadDim() const noexcept final { return head_dim_; }
  Role GetRole() const noexcept final { return role_; }
  std::string_view Method() const noexcept final { return method_; }
  // By the target now in force (NameKernels).
  std::string_view Kernel() const noexcept override { return kernel_[size_t(simd::Active())]; }
  bool HasFastPath() const noexcept override { return simd::Active() != simd::Target::kScalar; }
  // Only keys have a common part worth removing.
  Center GetCenter() const noexcept final { return center_; }

 protected:
  // request.spec is complete (ResolveSpec); a method that resolves `auto` words stores them in it before.
  explicit CodecBase(const CodecRequest& request)
      : head_dim_(request.head_dim), role_(request.role), method_(ToString(request.spec)) {
    const std::string_view c = request.spec.Word("center");
    if (role_ == Role::kKey && c != "none") center_ = c == "auto" ? Center::kAuto : Center::kRope;
  }
  // name(target): what computes on the codes there. Once, in the constructor.
  template <class F>
  void NameKernels(const F& name) {
    for (const simd::Target t : simd::Reachable()) kernel_[size_t(t)] = name(t);
  }
  bool IsValue() const noexcept { return role_ == Role::kValue; }

 private:
  int64_t head_dim_;
  Role role_;
  Center center_ = Center::kNone;
  std::string method_;
  std::array<std::string, 8> kernel_;  // by target
};

}  // namespace croquis::codecs
