#include "croquis/attention/hydragen/attend_batch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "croquis/attention/hydragen/common_rows.h"
#include "croquis/attention/hydragen/prefix_tree.h"
#include "croquis/attention/test_reference.h"

namespace croquis::attention {
namespace {

using kvcache::KvCache;
using testing::Config;
using testing::Shape;

using Caches = std::vector<std::unique_ptr<KvCache>>;

// Rows [n, cols] that differ with every call's `what`.
Matrix<float> Gaussian(uint64_t what, int64_t n, int64_t cols) { return testing::Rows(what, 0, n, cols); }

// Appends `tokens` rows that no other call appends.
void Grow(KvCache& cache, int64_t tokens, uint64_t& what) {
  const auto& c = cache.config();
  for (int64_t done = 0; done < tokens;) {
    const int64_t n = std::min<int64_t>(100, tokens - done);
    const uint64_t id = ++what;
    const auto k = Gaussian(2 * id, n, c.kv_heads * c.head_dim), v = Gaussian(2 * id + 1, n, c.kv_heads * c.head_dim);
    ASSERT_TRUE(cache.Append(0, k.View().Rows(0, n), v.View().Rows(0, n)));
    cache.Commit(n);
    done += n;
  }
}

// A random tree of depth up to `depth`: each node sometimes forgets some tokens, grows by up to 700 (often none) and
// has one to three children.
void GrowTree(std::unique_ptr<KvCache> cache, int64_t depth, const Stream& random, uint64_t& draw, uint64_t& what,
              Caches& leaves) {
  const auto below = [&](uint32_t n) { return int64_t(random.U32(draw++) % n); };
  constexpr int64_t kLengths[] = {0, 0, 1, 17, 130, 256, 300, 520, 700};
  if (below(4) == 0) {
    ASSERT_TRUE(cache->Truncate(std::max<int64_t>(0, cache->length() - below(200))));
  }
  Grow(*cache, kLengths[below(9)], what);
  if (depth == 0) return leaves.push_back(std::move(cache));
  const int64_t children = 1 + below(3);
  for (int64_t i = 0; i < children; ++i)
    GrowTree(i + 1 < children ? cache->Branch() : std::move(cache), depth - 1, random, draw, what, leaves);
}

std::vector<KvCache*> Pointers(const Caches& caches) {
  std::vector<KvCache*> p;
  for (const auto& c : caches) p.push_back(c.get());
  return p;
}

struct Token {
  Matrix<float> q, k, v;
  Token(const Shape& s, int64_t sequences, uint64_t what)
      : q(Gaussian(3 * what, sequences, s.heads() * s.head_dim)),
        k(Gaussian(3 * what + 1, sequences, s.kv_heads * s.head_dim)),
        v(Gaussian(3 * what + 2, sequences, s.kv_heads * s.head_dim)) {}
};

AttendOptions Options(const Shape& s, int64_t window = 0) {
  return {.layer = 0, .scale = 1 / std::sqrt(float(s.head_dim)), .window = window};
}

Matrix<float> Batch(Executor& executor, std::span<KvCache* const> caches, const AttendOptions& options,
                    const Token& t) {
  Matrix<float> out(t.q.rows(), t.q.cols());
  const Status s = AttendBatch(executor, caches, options, t.q.View(), t.k.View(), t.v.View(), out.View());
  EXPECT_TRUE(s) << s.error().message;
  return out;
}

Matrix<float> OneByOne(Executor& executor, std::span<KvCache* const> caches, const AttendOptions& options,
                       const Token& t) {
  Matrix<float> out(t.q.rows(), t.q.cols());
  for (int64_t b = 0; b < t.q.rows(); ++b) {
    const Status s = AttendAndAppend(executor, *caches[size_t(b)], options, t.q.View().Rows(b, 1),
                                     t.k.View().Rows(b, 1), t.v.View().Rows(b, 1), out.View().Rows(b, 1));
    EXPECT_TRUE(s) << s.error().message;
  }
  return out;
}

// Largest |a - b| of a row over that row's norm.
double RowError(const Matrix<float>& a, const Matrix<float>& b) {
  double worst = 0;
  for (int64_t r = 0; r < a.rows(); ++r) {
    double diff = 0, norm = 1e-30;
    for (int64_t i = 0; i < a.cols(); ++i) {
      diff += std::pow(double(a.Row(r)[i]) - double(b.Row(r)[i]), 2);
      norm += std::pow(double(b.Row(r)[i]), 2);
    }
    worst = std::max(worst, std::isfinite(diff) ? std::sqrt(diff / norm) : 1e30);
  }
  return worst;
}

void RollbackAll(std::span<KvCache* const> caches) {
  for (KvCache* c : caches) c->Rollback();
}

TEST(AttendBatch, RandomTreesAreWhatEachSequenceGetsAlone) {
  Executor executor(2);
  // f32 is the bar; queries and weights that meet f16 rows have 17 bits, and logits here reach ten. Codes are scored by
  // integer products that do not depend on the number of rows, but a last bit of a weight may change how it is
  // quantised: kernels are right to 2e-4 of the values' norm, and averaging leaves answers a few times smaller than the
  // values.
  const std::pair<const char*, double> methods[] = {
      {"f32", 2e-6}, {"f16", 2e-5}, {"eden:bits=4", 1e-3}, {"kivi", 1e-3}};
  const Stream random{17, Purpose("attend_batch.test")};
  uint64_t draw = 0, what = 0;
  for (const auto& [method, tolerance] : methods)
    for (int64_t depth = 1; depth <= 4; ++depth)
      for (const int64_t group : {1, 2, 3, 8}) {
        const Shape shape{.kv_heads = 2, .group = group, .head_dim = 64};
        auto config = Config(shape, method);
        config.ring = 32;
        Caches caches;
        GrowTree(*KvCache::Make(config), depth, random, draw, what, caches);
        const auto all = Pointers(caches);
        for (const int64_t window : {0, 200}) {
          const Token token(shape, int64_t(all.size()), 1000 + ++what);
          const auto expected = OneByOne(executor, all, Options(shape, window), token);
          RollbackAll(all);
          const auto got = Batch(executor, all, Options(shape, window), token);
          EXPECT_LT(RowError(got, expected), tolerance)
              << method << " depth " << depth << " group " << group << " window " << window << " of " << all.size();
          RollbackAll(all);
        }
      }
}

TEST(AttendBatch, AppendsWhatItAttendedTo) {
  Executor executor(2);
  const Shape shape{.kv_heads = 2, .group = 2, .head_dim = 64};
  uint64_t what = 0;
  Caches caches, apart;
  caches.push_back(*KvCache::Make(Config(shape, "eden:bits=3")));
  Grow(*caches[0], 700, what);
  for (int i = 1; i < 4; ++i) caches.push_back(caches[0]->Branch());
  for (const auto& c : caches) apart.push_back(c->Branch());
  const auto all = Pointers(caches), alone = Pointers(apart);
  // Long enough for rings to turn over, for the shared, unfinished page to be copied, and for new pages.
  for (uint64_t step = 0; step < 300; ++step) {
    const Token token(shape, 4, 5000 + step);
    const auto got = Batch(executor, all, Options(shape), token),
               expected = OneByOne(executor, alone, Options(shape), token);
    ASSERT_LT(RowError(got, expected), 2e-3) << step;
    for (KvCache* c : all) c->Commit(1);
    for (KvCache* c : alone) c->Commit(1);
  }
  for (size_t b = 0; b < 4; ++b) {
    EXPECT_EQ(caches[b]->length(), 1000);
    for (int64_t h = 0; h < 2; ++h) {
      const auto x = testing::DecodeHead(*caches[b], 0, h), y = testing::DecodeHead(*apart[b], 0, h);
      EXPECT_EQ(std::memcmp(x.k.data(), y.k.data(), 1000 * 64 * 4), 0);
      EXPECT_EQ(std::memcmp(x.v.data(), y.v.data(), 1000 * 64 * 4), 0);
    }
  }
}

TEST(AttendBatch, ThreadsChangeNothing) {
  const Shape shape{.kv_heads = 2, .group = 4, .head_dim = 64};
  for (const char* method : {"f32", "eden:bits=4"}) {
    uint64_t what = 0;
    Caches caches;
    caches.push_back(*KvCache::Make(Config(shape, method)));
    Grow(*caches[0], 2000, what);
    for (int i = 1; i < 20; ++i) {
      caches.push_back(caches[0]->Branch());
      Grow(*caches.back(), 60 * i, what);
    }
    const auto all = Pointers(caches);
    const Token token(shape, 20, 9000);
    Matrix<float> first;
    for (const int threads : {1, 2, 3, 7}) {
      Executor executor(threads);
      auto out = Batch(executor, all, Options(shape), token);
      RollbackAll(all);
      if (threads == 1)
        first = std::move(out);
      else
        EXPECT_EQ(std::memcmp(out.data(), first.data(), size_t(out.rows() * out.cols()) * 4), 0) << threads;
    }
  }
}

TEST(AttendBatch, CentredKeys) {
  // A common part that centring removes: shared pages carry it too.
  const Shape shape{.kv_heads = 1, .group = 4, .head_dim = 64};
  const auto config = Config(shape, "eden:bits=4,center=rope");
  testing::Sequence sequence{shape, std::vector<float>(64, 3.f)};
  Executor executor(2);
  Caches caches;
  caches.push_back(*KvCache::Make(config));
  ASSERT_TRUE(testing::Fill(*caches[0], sequence, 1200));
  ASSERT_NE(kvcache::ViewHead(*caches[0], 0, 0).center, nullptr);
  uint64_t what = 0;
  for (int i = 1; i < 40; ++i) {
    caches.push_back(caches[0]->Branch());
    Grow(*caches.back(), 7 * i, what);
  }
  const auto all = Pointers(caches);
  const Token token(shape, 40, 77);
  const auto expected = OneByOne(executor, all, Options(shape), token);
  RollbackAll(all);
  EXPECT_LT(RowError(Batch(executor, all, Options(shape), token), expected), 2e-4);
}

TEST(AttendBatch, OneSequenceAndNoneAndCachesWithNothingInCommon) {
  const Shape shape{.kv_heads = 2, .group = 3, .head_dim = 64};
  Executor executor(2);
  uint64_t what = 0;
  for (const int64_t sequences : {1, 3}) {
    Caches caches;
    for (int64_t b = 0; b < sequences; ++b) {
      caches.push_back(*KvCache::Make(Config(shape, "f32")));
      Grow(*caches.back(), 600 * b, what);  // the first one is empty
    }
    const auto all = Pointers(caches);
    const Token token(shape, sequences, 31);
    const auto expected = OneByOne(executor, all, Options(shape), token);
    RollbackAll(all);
    EXPECT_LT(RowError(Batch(executor, all, Options(shape), token), expected), 2e-6);
  }
  EXPECT_TRUE(AttendBatch(executor, {}, Options(shape), {}, {}, {}, {}));
}

TEST(AttendBatch, ErrorsNameTheSequenceAndAppendNothing) {
  const Shape shape{.kv_heads = 1, .group = 1, .head_dim = 64};
  Executor executor(2);
  Caches caches;
  for (int i = 0; i < 3; ++i) caches.push_back(*KvCache::Make(Config(shape, "f16")));
  const auto all = Pointers(caches);
  Token token(shape, 3, 1);
  Matrix<float> out(3, 64);
  const auto run = [&](std::span<KvCache* const> c) {
    return AttendBatch(executor, c, Options(shape), token.q.View(), token.k.View(), token.v.View(), out.View());
  };
  token.k.Row(2)[5] = std::numeric_limits<float>::quiet_NaN();
  const Status bad = run(all);
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().message.find("sequence 2"), std::string::npos) << bad.error().message;
  token.k.Row(2)[5] = 0;
  std::vector<KvCache*> twice = {all[0], all[1], all[0]};
  ASSERT_FALSE(run(twice));
  EXPECT_NE(run(twice).error().message.find("twice"), std::string::npos);
  EXPECT_FALSE(run(std::span(all).first(2)));
  auto other = *KvCache::Make(Config({.kv_heads = 2, .group = 1, .head_dim = 32}, "f16"));
  std::vector<KvCache*> mixed = {all[0], all[1], other.get()};
  ASSERT_FALSE(run(mixed));
  EXPECT_NE(run(mixed).error().message.find("sequence 2"), std::string::npos);
  EXPECT_TRUE(run(all));  // nothing was left pending
}

TEST(PrefixTree, EveryPageIsInOneRunAndShortRunsAreRead) {
  std::vector<kvcache::Unit> units(64);
  const auto table = [&](std::initializer_list<int> pages) {
    std::vector<kvcache::Unit*> t;
    for (const int p : pages) t.push_back(&units[size_t(p)]);
    return t;
  };
  // 0-3 share pages 0..2; 0 and 2 page 3 and 4, too; 3 has nothing else. 4 is apart.
  const std::vector<std::vector<kvcache::Unit*>> tables = {
      table({0, 1, 2, 3, 4, 10}), table({0, 1, 2, 5}), table({0, 1, 2, 3, 4, 11}), table({0, 1, 2}), table({20, 1})};
  std::vector<std::span<kvcache::Unit* const>> spans(tables.begin(), tables.end());
  for (const int64_t group : {1, 2, 8}) {
    const PrefixTree tree = FindPrefixTree(spans, group);
    std::vector<std::vector<int>> seen(tables.size());
    for (const SharedRun& run : tree.runs) {
      if (run.sequences > 1) {
        EXPECT_GE(run.sequences * group, kLeastSharedRows);
        EXPECT_GE(run.pages, kLeastSharedPages);
      }
      for (int64_t i = run.first; i < run.first + run.sequences; ++i) {
        const auto s = size_t(tree.order[size_t(i)]);
        for (int64_t p = run.first_page; p < run.first_page + run.pages; ++p) {
          seen[s].push_back(int(p));
          EXPECT_EQ(tables[s][size_t(p)], tables[size_t(tree.order[size_t(run.first)])][size_t(p)]);
        }
      }
    }
    for (size_t s = 0; s < tables.size(); ++s) {
      std::vector<int> all(tables[s].size());
      for (size_t i = 0; i < all.size(); ++i) all[i] = int(i);
      EXPECT_EQ(seen[s], all) << s;
    }
    // Shared by four at every group; by two only where they bring four rows.
    int64_t joint = 0;
    for (const SharedRun& run : tree.runs) joint += run.sequences > 1;
    EXPECT_EQ(joint, group == 1 ? 1 : 2);
  }
}

TEST(CommonRows, AreFoundUpToWhereSequencesPart) {
  const Shape shape{.kv_heads = 1, .group = 1, .head_dim = 64};
  for (const char* method : {"f16", "eden:bits=4"}) {
    uint64_t what = 0;
    Caches caches;
    caches.push_back(*KvCache::Make(Config(shape, method)));  // 4 sinks, a ring of 128
    Grow(*caches[0], 1000, what);
    for (int i = 1; i < 6; ++i) caches.push_back(caches[0]->Branch());
    for (int i = 0; i < 5; ++i) Grow(*caches[size_t(i)], 40 + i, what);
    caches.push_back(*KvCache::Make(Config(shape, method)));
    Grow(*caches.back(), 1000, what);
    const auto all = Pointers(caches);
    const auto tables = PageTables(all, 0);
    // Page 6 (tokens 772 to 899) was being filled at the branch; those that grew filled it for themselves.
    EXPECT_NE(kvcache::ViewHead(*all[0], 0, 0).units[6], kvcache::ViewHead(*all[1], 0, 0).units[6]);
    EXPECT_EQ(tables[0][6], tables[1][6]);
    EXPECT_NE(tables[0][6], tables[5][6]) << "not as full";
    EXPECT_NE(tables[0][0], tables[6][0]);
    const PrefixTree tree = BatchTree(all, 0, 1);
    for (const bool pages_are_rows : {true, false}) {
      const auto rows = FindCommonRows(all, 0, 1, tree, pages_are_rows);
      // Pages 0 to 5 are a run; page 6 alone is too short for one, but its rows count where pages are rows. Otherwise
      // rows are those that all of them still have in the ring.
      ASSERT_EQ(rows.size(), 1u);
      EXPECT_EQ(rows[0].sequences, (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
      EXPECT_EQ(rows[0].begin, 4 + (pages_are_rows ? 6 * 128 : 912)) << method;
      EXPECT_EQ(rows[0].end, 1000);
    }
  }
}

TEST(AttendBatch, DescribesWhatItSaves) {
  const Shape shape{.kv_heads = 1, .group = 1, .head_dim = 64};
  uint64_t what = 0;
  Caches caches;
  auto config = Config(shape, "f16");
  config.sinks = 0, config.ring = 0;
  caches.push_back(*KvCache::Make(config));
  Grow(*caches[0], 1024, what);
  for (int i = 1; i < 8; ++i) caches.push_back(caches[0]->Branch());
  Grow(*caches[3], 256, what);
  const auto all = Pointers(caches);
  const SharingReport r = DescribeSharing(all, 0, 1);
  EXPECT_EQ(r.nodes, 1);
  EXPECT_EQ(r.depth, 1);
  EXPECT_EQ(r.pages, 8 * 8 + 2);
  EXPECT_EQ(r.pages_read, 8 + 2);
}

}  // namespace
}  // namespace croquis::attention
