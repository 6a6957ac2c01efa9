// Files and golden rows for the tokenizer tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "croquis/model/tokenizer.h"

namespace croquis::model {

using Ids = std::vector<int32_t>;

inline std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}
inline std::string TestData(const std::string& name) {
  return ReadAll(std::string(CROQUIS_SOURCE_DIR "/croquis/model/testdata/") + name);
}
inline std::span<const std::byte> AsBytes(const std::string& s) { return std::as_bytes(std::span(s)); }

// Texts with the ids and the decoded text that the reference libraries give (tests/peer/transformers_tokenizers.py).
struct GoldenRow {
  std::string text, decoded;
  Ids ids, ids_special;  // special tokens as text, and parsed
};
inline std::vector<GoldenRow> Golden(const std::string& name) {
  const auto root = nlohmann::json::parse(TestData("tokenizer_golden.json"));
  std::vector<GoldenRow> rows;
  for (const auto& row : root.at(name)) {
    GoldenRow r;
    r.text = row.at("text").get<std::string>();
    r.ids = row.at("ids").get<Ids>();
    r.ids_special = row.value("ids_special", r.ids);
    r.decoded = row.value("decoded", r.text);
    rows.push_back(std::move(r));
  }
  EXPECT_GT(rows.size(), 50u);
  return rows;
}

inline Ids Encode(const Tokenizer& tokenizer, std::string_view text, bool special = false, bool parse = false) {
  auto ids = tokenizer.Encode(text, special, parse);
  EXPECT_TRUE(ids) << (ids ? "" : ids.error().message);
  return ids ? *ids : Ids{};
}

inline void ExpectGolden(const Tokenizer& tokenizer, const std::string& name) {
  for (const GoldenRow& row : Golden(name)) {
    EXPECT_EQ(Encode(tokenizer, row.text), row.ids) << row.text;
    EXPECT_EQ(Encode(tokenizer, row.text, false, true), row.ids_special) << row.text;
    EXPECT_EQ(tokenizer.Decode(row.ids), row.decoded);
  }
}

}  // namespace croquis::model
