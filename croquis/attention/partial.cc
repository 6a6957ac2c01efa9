#include "croquis/attention/partial.h"

#include <algorithm>
#include <cmath>

#include "croquis/base/check.h"

namespace croquis::attention {

void Merge(const Partial& from, Partial& into) {
  CROQUIS_DCHECK(from.a.size() == into.a.size());
  if (from.l == 0) return;
  if (into.l == 0) {
    into.m = from.m, into.l = from.l;
    std::copy(from.a.begin(), from.a.end(), into.a.begin());
    return;
  }
  const float m = std::max(from.m, into.m);
  const float f = std::exp(from.m - m), i = std::exp(into.m - m);
  into.m = m;
  into.l = into.l * i + from.l * f;
  for (size_t j = 0; j < into.a.size(); ++j) into.a[j] = into.a[j] * i + from.a[j] * f;
}

float Finalize(const Partial& p, std::span<float> out) {
  CROQUIS_DCHECK(p.a.size() == out.size());
  if (p.l == 0) {
    std::fill(out.begin(), out.end(), 0.f);
    return kEmptyMax;
  }
  const float inverse = 1 / p.l;
  for (size_t j = 0; j < out.size(); ++j) out[j] = p.a[j] * inverse;
  return p.m + std::log(p.l);
}

}  // namespace croquis::attention
