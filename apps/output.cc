#include "apps/output.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstring>

#include "croquis/base/memory.h"

namespace croquis::apps {
namespace {

// Characters of a UTF-8 string: bytes that do not continue one.
size_t Width(std::string_view s) {
  return size_t(std::count_if(s.begin(), s.end(), [](char c) { return (uint8_t(c) & 0xC0) != 0x80; }));
}

std::string Pad(const std::string& s, size_t width, bool right) {
  const size_t w = Width(s), fill = width > w ? width - w : 0;
  return right ? std::string(fill, ' ') + s : s + std::string(fill, ' ');
}

}  // namespace

std::string Printf(const char* format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  std::string out(size_t(std::max(0, std::vsnprintf(nullptr, 0, format, args))), '\0');
  std::vsnprintf(out.data(), out.size() + 1, format, again);
  va_end(args);
  va_end(again);
  return out;
}

std::string Grouped(int64_t value) {
  std::string digits = std::to_string(value);
  const int64_t first = value < 0 ? 1 : 0;
  for (int64_t at = int64_t(digits.size()) - 3; at > first; at -= 3) digits.insert(size_t(at), ",");
  return digits;
}

std::string FormatCell(const Json& value, Format format) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (!value.is_number()) return value.dump();
  const double x = value.get<double>();
  if (std::isnan(x)) return "-";
  switch (format) {
    case Format::kInt:
      return Grouped(std::llround(x));
    case Format::kFixed1:
      return Printf("%.1f", x);
    case Format::kFixed2:
      return Printf("%.2f", x);
    case Format::kFixed3:
      return Printf("%.3f", x);
    case Format::kScientific:
      return x == 0 ? "0" : Printf("%.2e", x);
    case Format::kPercent:
      return Printf("%.1f %%", 100 * x);
    case Format::kBytes:
      return HumanBytes(x);
    case Format::kText:
      break;
  }
  return value.dump();
}

std::string FormatTable(const std::vector<Column>& columns, const Json& rows) {
  std::vector<Column> shown;
  for (const Column& c : columns) {
    const bool any = std::any_of(rows.begin(), rows.end(), [&](const Json& r) { return r.contains(c.key); });
    if (any || rows.empty()) shown.push_back(c);
  }
  std::vector<std::vector<std::string>> cells;
  std::vector<size_t> widths;
  widths.reserve(shown.size());
  for (const Column& c : shown) widths.push_back(Width(c.title));
  for (const Json& row : rows) {
    std::vector<std::string> line;
    for (size_t i = 0; i < shown.size(); i++) {
      line.push_back(row.contains(shown[i].key) ? FormatCell(row[shown[i].key], shown[i].format) : "-");
      widths[i] = std::max(widths[i], Width(line.back()));
    }
    cells.push_back(std::move(line));
  }
  std::string out;
  const auto put = [&](const auto& cell_of) {
    std::string line;
    for (size_t i = 0; i < shown.size(); i++) {
      if (i > 0) line += "  ";
      line += Pad(cell_of(i), widths[i], shown[i].format != Format::kText);
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + "\n";
  };
  put([&](size_t i) { return shown[i].title; });
  put([&](size_t i) { return std::string(widths[i], '-'); });
  for (const auto& line : cells) put([&](size_t i) { return line[i]; });
  return out;
}

Json Envelope(std::string_view command, int threads, Json rows) {
  Json o;
  o["command"] = command;
  o["machine"] = MachineInfo();
  o["commit"] = Commit();
  o["threads"] = threads;
  o["rows"] = std::move(rows);
  return o;
}

}  // namespace croquis::apps
