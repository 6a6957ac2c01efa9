// What commands print: aligned tables for people, one JSON object for programs, both from the same rows.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/base/file.h"
#include "croquis/base/result.h"

namespace croquis::apps {

using Json = nlohmann::ordered_json;  // keeps columns in the order in which they were set

// How a cell of a table is written. The JSON row holds the number itself.
enum class Format : uint8_t {
  kText,        // as it is
  kInt,         // 32,768
  kFixed1,      // 3.1
  kFixed2,      // 3.14
  kFixed3,      // 3.142
  kScientific,  // 3.14e-04
  kPercent,     // 0.987 -> 98.7 %
  kBytes        // HumanBytes
};

struct Column {
  std::string key;    // of the JSON row
  std::string title;  // of the table
  Format format = Format::kText;
};

// One cell; "-" for null, absent and not-a-number values.
std::string FormatCell(const Json& value, Format format);
// 1234567 -> "1,234,567".
std::string Grouped(int64_t value);
// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string Printf(const char* format, ...);

// Header, rule and rows. Text is left-aligned, numbers right-aligned; widths count characters, not bytes. Columns that
// no row has are left out.
std::string FormatTable(const std::vector<Column>& columns, const Json& rows);

// The one object of --json: {"command", "machine", "commit", "threads", "rows", ...extra}.
Json Envelope(std::string_view command, int threads, Json rows);

// Processor, caches, memory and the instruction set in use.
Json MachineInfo();
// The commit this binary was built from ("unknown" outside a git checkout; "-dirty" appended for changed sources).
std::string_view Commit();

}  // namespace croquis::apps
