#include "croquis/base/layer_heads.h"

#include <charconv>
#include <string>

namespace croquis {
namespace {

// "3" or "0-3" into a half-open range.
bool ParseRange(std::string_view s, int64_t& begin, int64_t& end) {
  const char* const last = s.data() + s.size();
  auto [p, ec] = std::from_chars(s.data(), last, begin);
  if (ec != std::errc() || begin < 0 || begin >= INT32_MAX) return false;
  end = begin;
  if (p != last) {
    if (*p != '-') return false;
    auto [q, ec2] = std::from_chars(p + 1, last, end);
    if (ec2 != std::errc() || q != last || end < begin || end >= INT32_MAX) return false;
  }
  ++end;
  return true;
}

Status CheckRange(std::string_view what, std::string_view of, int64_t begin, int64_t end, int64_t n) {
  if (0 <= begin && begin < end && end <= n) return {};
  return OutOfRange(std::string(what) + ": an override names " + std::string(of) + " " + std::to_string(begin) +
                    " to " + std::to_string(end - 1) + ", but the model has " + std::string(of) + " 0 to " +
                    std::to_string(n - 1));
}

}  // namespace

std::string Quoted(std::string_view s) {
  std::string out = "'";
  for (char c : s.substr(0, 80)) out += (c >= 32 && c < 127) ? c : '?';
  return out + (s.size() > 80 ? "...'" : "'");
}

Status LayerHeads::Check(std::string_view what, int64_t layers, int64_t heads, std::string_view heads_are) const {
  CROQUIS_CHECK_OK(CheckRange(what, "layers", layer_begin, layer_end, layers));
  return head_end < 0 ? Status() : CheckRange(what, heads_are, head_begin, head_end, heads);
}

Result<std::pair<LayerHeads, std::string_view>> ParseLayerHeads(std::string_view text, std::string_view example) {
  const size_t eq = text.find('=');
  const std::string_view where = text.substr(0, eq);
  const size_t slash = where.find('/');
  LayerHeads at;
  const bool ok = eq != text.npos && ParseRange(where.substr(0, slash), at.layer_begin, at.layer_end) &&
                  (slash == where.npos || ParseRange(where.substr(slash + 1), at.head_begin, at.head_end));
  if (!ok)
    return InvalidArgument("layer override " + Quoted(text) +
                           ": wanted LAYERS=METHODS or LAYERS/HEADS=METHODS, as in " + std::string(example));
  return std::pair(at, text.substr(eq + 1));
}

}  // namespace croquis
