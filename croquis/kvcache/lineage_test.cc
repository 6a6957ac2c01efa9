#include "croquis/kvcache/lineage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "croquis/base/rng.h"

namespace croquis::kvcache {
namespace {

// A lineage beside what it stands for: one number a token, which no other append draws.
struct Text {
  Lineage lineage;
  std::vector<uint64_t> tokens;
};

int64_t Common(const Text& a, const Text& b) {
  return Lineage::Common(a.lineage, int64_t(a.tokens.size()), b.lineage, int64_t(b.tokens.size()));
}

int64_t TrulyCommon(const Text& a, const Text& b) {
  const size_t most = std::min(a.tokens.size(), b.tokens.size());
  const auto end = a.tokens.begin() + std::ptrdiff_t(most);
  return std::mismatch(a.tokens.begin(), end, b.tokens.begin()).first - a.tokens.begin();
}

int64_t ChainLength(const Lineage& lineage) {
  int64_t n = 0;
  for (const auto* s = lineage.last(); s != nullptr; s = s->parent.get()) ++n;
  return n;
}

TEST(Lineage, IsTheLongestCommonPrefix) {
  const Stream random{5, Purpose("lineage.test")};
  uint64_t draw = 0, next = 0;
  const auto below = [&](size_t n) { return size_t(random.U32(draw++) % uint32_t(n)); };
  std::vector<Text> texts(2);
  const auto grow = [&](Text& t, size_t n) {
    if (n > 0) t.lineage.Grow(int64_t(t.tokens.size()));
    for (size_t i = 0; i < n; ++i) t.tokens.push_back(next++);
  };
  for (int step = 0; step < 3000; ++step) {
    Text& t = texts[below(texts.size())];
    switch (below(6)) {
      case 0:
      case 1:
        grow(t, below(4));
        break;
      case 2:
        if (texts.size() < 12) texts.push_back(Text(t));
        break;
      case 3: {  // what follows is changed, and maybe shorter
        const size_t same = below(t.tokens.size() + 1), length = same + below(t.tokens.size() - same + 1);
        t.tokens.resize(length);
        for (size_t i = same; i < length; ++i) t.tokens[i] = next++;
        t.lineage.Cut(int64_t(same));
        break;
      }
      case 4:
        if (texts.size() > 2) texts.erase(texts.begin() + std::ptrdiff_t(below(texts.size())));
        break;
      default:
        t = texts[below(texts.size())];
    }
    for (const Text& a : texts)
      for (const Text& b : texts) ASSERT_EQ(Common(a, b), TrulyCommon(a, b)) << step;
  }
}

TEST(Lineage, ChainsStayShort) {
  Text text;
  for (int i = 0; i < 1000; ++i) {
    const Text branch = text;  // gone before the next one
    text.lineage.Grow(int64_t(text.tokens.size()));
    text.tokens.push_back(uint64_t(i));
    EXPECT_EQ(Common(text, branch), i);
  }
  text.lineage.Grow(1000);
  EXPECT_LE(ChainLength(text.lineage), 2);
}

}  // namespace
}  // namespace croquis::kvcache
