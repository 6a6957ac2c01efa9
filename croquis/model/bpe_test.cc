#include "croquis/model/bpe.h"

#include <gtest/gtest.h>

#include <map>

#include "croquis/base/rng.h"

namespace croquis::model {
namespace {

// The definition: while some pair can be merged, merge the leftmost pair of lowest rank.
std::vector<std::string> MergeSlowly(std::vector<std::string> parts,
                                     const std::map<std::pair<std::string, std::string>, int>& ranks) {
  for (;;) {
    int best = -1, at = -1;
    for (size_t i = 1; i < parts.size(); ++i) {
      const auto it = ranks.find({parts[i - 1], parts[i]});
      if (it != ranks.end() && (best < 0 || it->second < best)) best = it->second, at = int(i) - 1;
    }
    if (at < 0) return parts;
    parts[size_t(at)] += parts[size_t(at) + 1];
    parts.erase(parts.begin() + at + 1);
  }
}

TEST(Bpe, MergesAsDefined) {
  const Stream stream{2, Purpose("test.bpe")};
  uint64_t next = 0;
  const auto random = [&](uint32_t n) { return stream.U32(next++) % n; };
  for (int trial = 0; trial < 300; ++trial) {
    // A random vocabulary over three letters, grown by random merges of what is there.
    BpeData data;
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::map<std::pair<std::string, std::string>, int> ranks;
    const uint32_t merges = 1 + random(25);
    for (uint32_t m = 0; m < merges; ++m) {
      const std::string l = tokens[random(uint32_t(tokens.size()))], r = tokens[random(uint32_t(tokens.size()))];
      if (ranks.contains({l, r}) || l.size() + r.size() > 12) continue;
      ranks[{l, r}] = int(data.merges.size());
      data.merges.emplace_back(l, r);
      if (std::find(tokens.begin(), tokens.end(), l + r) == tokens.end()) tokens.push_back(l + r);
    }
    for (size_t i = 0; i < tokens.size(); ++i) data.vocab.emplace_back(tokens[i], int32_t(i));
    const auto model = BpeModel::Make(data);
    ASSERT_TRUE(model);
    BpeModel::Workspace workspace;
    for (int w = 0; w < 20; ++w) {
      std::string word;
      std::vector<std::string> letters;
      for (uint32_t i = random(40); i > 0; --i) word += char('a' + random(trial % 2 ? 1 : 3));
      for (const char c : word) letters.emplace_back(1, c);
      std::vector<int32_t> ids;
      model->Encode(word, workspace, ids);
      std::vector<std::string> got;
      for (const int32_t id : ids) got.push_back(tokens[size_t(id)]);
      ASSERT_EQ(got, MergeSlowly(letters, ranks)) << word;
    }
  }
}

// Each merge removes a symbol and offers two pairs, and there are n - 1 pairs at first: less than 3n look-ups in all.
TEST(Bpe, LongRunsTakeLinearlyManySteps) {
  for (const size_t n : {size_t{1000}, size_t{200000}}) {
    BpeWorkspace<int32_t> workspace;
    for (size_t i = 0; i < n; ++i) workspace.Add(0, i, 1);
    size_t calls = 0;
    MergeSymbols(workspace, [&](const BpeSymbol& a, const BpeSymbol& b, int32_t& rank, int32_t& id) {
      ++calls;
      if (a.id != b.id || a.id >= 6) return false;  // a a -> A, A A -> B, ... six times
      rank = a.id;
      id = a.id + 1;
      return true;
    });
    EXPECT_LT(calls, 3 * n);
    size_t left = 0, bytes = 0;
    for (const BpeSymbol& s : workspace.symbols) left += s.length > 0, bytes += s.length;
    EXPECT_EQ(bytes, n);
    EXPECT_LE(left, n / 64 + 6);
  }
}

TEST(Bpe, UnknownCharactersAndBytes) {
  BpeData data;
  data.vocab = {{"<unk>", 0}, {"a", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  data.byte_fallback = true;
  const auto encode = [&](std::string_view word) {
    const auto model = BpeModel::Make(data);
    BpeModel::Workspace workspace;
    std::vector<int32_t> ids;
    model->Encode(word, workspace, ids);
    return ids;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(encode("a\u00e9a"), (Ids{1, 2, 3, 1}));
  EXPECT_EQ(encode("a\u4f60\u597da"), (Ids{1, 1}));  // no bytes for these and no unknown token: dropped
  data.unk_token = "<unk>";
  EXPECT_EQ(encode("a\u4f60\u597da"), (Ids{1, 0, 0, 1}));
  data.fuse_unk = true;
  EXPECT_EQ(encode("a\u4f60\u597da"), (Ids{1, 0, 1}));
}

TEST(Bpe, ErrorsNameTheToken) {
  BpeData data;
  data.vocab = {{"a", 0}, {"b", 1}};
  data.merges = {{"a", "b"}};
  const auto model = BpeModel::Make(data);
  ASSERT_FALSE(model);
  EXPECT_NE(model.error().message.find("'ab'"), std::string::npos) << model.error().message;
  data.merges.clear();
  data.unk_token = "<unk>";
  EXPECT_FALSE(BpeModel::Make(data));
}

TEST(Bpe, PairTableKeepsTheLastValue) {
  PairTable table;
  EXPECT_EQ(table.Find(0, 0), nullptr);
  for (int32_t i = 0; i < 5000; ++i) table.Set(i % 1000, i % 7, {i, i});
  for (int32_t i = 0; i < 5000; ++i) {
    const auto* value = table.Find(i % 1000, i % 7);
    ASSERT_NE(value, nullptr);
    EXPECT_GE(value->rank, i);
    EXPECT_EQ(value->rank % 1000, i % 1000);
  }
  EXPECT_EQ(table.Find(1000, 0), nullptr);
}

}  // namespace
}  // namespace croquis::model
