// The list of methods, completed by the parameters that all of them share.
#include <array>
#include <string>
#include <vector>

#include "croquis/base/registry.h"
#include "croquis/codecs/codec.h"

namespace croquis::codecs {
#include "registry.inc"

namespace {

constexpr int64_t kMinHeadDim = 8, kMaxHeadDim = 256;
constexpr ParamInfo kCenterParam = {
    "center",
    "none",
    0,
    0,
    "auto|none|rope",
    "keys: remove the common part before encoding and add its exact contribution to the logits; auto where it pays"};

struct Registry {
  static constexpr size_t kCount = std::size(kMethods);
  std::array<std::vector<ParamInfo>, kCount> params;
  std::array<MethodInfo, kCount> infos;
  std::array<const MethodInfo*, kCount> list;

  Registry() {
    for (size_t i = 0; i < kCount; ++i) {
      infos[i] = *kMethods[i];
      bool has_center = false;
      for (const ParamInfo& p : infos[i].params) {
        params[i].push_back(p);
        has_center |= p.name == kCenterParam.name;
      }
      if (!has_center) params[i].push_back(kCenterParam);
      infos[i].params = params[i];
      list[i] = &infos[i];
    }
  }
};

const Registry& TheRegistry() {
  static const Registry registry;
  return registry;
}

}  // namespace

std::span<const MethodInfo* const> Methods() { return TheRegistry().list; }

Result<const MethodInfo*> FindMethod(std::string_view name) { return FindNamed(Methods(), name, "codec"); }

Result<Spec> ResolveSpec(std::string_view text) {
  CROQUIS_TRY(const Spec spec, ParseSpec(text));
  CROQUIS_TRY(const MethodInfo* method, FindMethod(spec.name));
  return Complete(spec, method->params);
}

Result<std::unique_ptr<const Codec>> Make(std::string_view text, int64_t head_dim, Role role, uint64_t seed) {
  CROQUIS_TRY(Spec spec, ResolveSpec(text));
  CROQUIS_TRY(const MethodInfo* method, FindMethod(spec.name));
  if (head_dim < kMinHeadDim || head_dim > kMaxHeadDim)
    return OutOfRange("codec " + spec.name + ": head_dim must be " + std::to_string(kMinHeadDim) + " to " +
                      std::to_string(kMaxHeadDim) + ", got " + std::to_string(head_dim));
  CROQUIS_CHECK_OK(method->contract(head_dim, role, spec));
  return method->make({head_dim, role, std::move(spec), seed});
}

}  // namespace croquis::codecs
