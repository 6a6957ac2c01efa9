// What every codec of this family has: the request it was made from, and small helpers for its bytes.
#pragma once

#include <string>

#include "croquis/codecs/codec.h"

namespace croquis::codecs {

constexpr size_t RoundUp64(size_t bytes) { return (bytes + 63) / 64 * 64; }

class CodecBase : public Codec {
 public:
  int64_t HeadDim() const noexcept final { return head_dim_; }
  Role GetRole() const noexcept final { return role_; }
  std::string_view Method() const noexcept final { return method_; }
  // Only keys have a common part worth removing.
  Center GetCenter() const noexcept final { return center_; }

 protected:
  // request.spec is complete (ResolveSpec); a method that resolves `auto` words stores them in it before.
  explicit CodecBase(const CodecRequest& request)
      : head_dim_(request.head_dim), role_(request.role), method_(ToString(request.spec)) {
    const std::string_view c = request.spec.Word("center");
    if (role_ == Role::kKey && c != "none") center_ = c == "auto" ? Center::kAuto : Center::kRope;
  }
  bool IsValue() const noexcept { return role_ == Role::kValue; }

 private:
  int64_t head_dim_;
  Role role_;
  Center center_ = Center::kNone;
  std::string method_;
};

}  // namespace croquis::codecs
