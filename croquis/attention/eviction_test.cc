// Attention over what eviction policies keep.
#include <gtest/gtest.h>

#include "croquis/attention/hydragen/attend_batch.h"
#include "croquis/attention/observe.h"
#include "croquis/attention/test_reference.h"
#include "croquis/kvcache/test_cache.h"

// After the others: its Stream hides the one of random numbers.
#include "croquis/attention/stream.h"

namespace croquis::attention::testing {
namespace {

// Reads tokens through attention, as a model does. Returns the output of the last chunk.
Matrix<float> Read(Executor& executor, kvcache::KvCache& cache, const Sequence& s, int64_t tokens, int64_t chunk) {
  Matrix<float> out;
  while (tokens > 0) {
    const int64_t n = std::min(tokens, chunk), first = cache.length();
    const auto q = s.Q(first, n), k = s.K(cache.config(), first, n), v = s.V(first, n);
    out = Matrix<float>(n, q.cols());
    const Status status = AttendAndAppend(executor, cache, {.scale = 0.125f}, q.View(), k.View(), v.View(), out.View());
    EXPECT_TRUE(status) << status.error().message;
    cache.Commit(n);
    tokens -= n;
  }
  return out;
}

std::unique_ptr<kvcache::KvCache> Make(const Shape& shape, const std::string& kv) {
  auto made = kvcache::KvCache::Make(Config(shape, kv));
  EXPECT_TRUE(made) << made.error().message;
  return *std::move(made);
}

double Apart(const Matrix<float>& a, const Matrix<float>& b) {
  double d = 0, n = 0;
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i)
    d += std::pow(double(a.data()[i]) - double(b.data()[i]), 2), n += std::pow(double(b.data()[i]), 2);
  return std::sqrt(d / n);
}

TEST(Eviction, AllOfTheMemoryIsF16) {
  Executor executor(2);
  for (const char* kv :
       {"window:memory=100", "h2o:memory=100", "subgen:memory=100", "subgen:variant=paper,memory=100"}) {
    const Sequence s{{2, 2, 64}, {}};
    auto cache = Make(s.shape, kv), f16 = Make(s.shape, "f16");
    Read(executor, *cache, s, 700, 97), Read(executor, *f16, s, 700, 97);
    EXPECT_LT(Apart(Read(executor, *cache, s, 9, 9), Read(executor, *f16, s, 9, 9)), 1e-6) << kv;
  }
}

// In double: the rows that the view shows with their weights, sinks, ring and chunk.
TEST(Eviction, KeptRowsCountWithTheirWeights) {
  Executor executor(2);
  for (const char* kv : {"window", "h2o", "subgen", "subgen:memory=25", "subgen:variant=paper"}) {
    const Shape shape{2, 3, 64};
    const Sequence s{shape, {}};
    auto cache = Make(shape, kv);
    Read(executor, *cache, s, 900, 100);
    const int64_t first = cache->length(), d = 64;
    const auto q = s.Q(first, 1), k = s.K(cache->config(), first, 1), v = s.V(first, 1);
    Matrix<double> expected(1, q.cols());
    for (int64_t h = 0; h < shape.heads(); ++h) {
      const auto view = kvcache::ViewHead(*cache, 0, h / shape.group);
      std::vector<float> key(64), value(64);
      double mass = 0;
      const auto add = [&](const std::byte* kr, const std::byte* vr, double weight, bool counts) {
        kvcache::WidenRow(view.type, kr, d, key.data());
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) dot += double(q.Row(0)[h * d + i]) * double(key[size_t(i)]);
        const double w = weight * std::exp(dot * 0.125);
        if (counts) mass += w;
        if (vr == nullptr) return;
        kvcache::WidenRow(view.type, vr, d, value.data());
        for (int64_t i = 0; i < d; ++i) expected.Row(0)[h * d + i] += w * double(value[size_t(i)]);
      };
      for (const auto& kept : view.kept)
        for (int64_t r = 0; r < kept.rows; ++r)
          add(kept.k + r * view.row_bytes,
              kept.use == kvcache::KeptRows::Use::kMass ? nullptr : kept.v + r * view.row_bytes,
              kept.log2_weight == nullptr ? 1 : std::exp2(double(kept.log2_weight[r])),
              kept.use != kvcache::KeptRows::Use::kValues);
      std::vector<std::byte> chunk(size_t(2 * view.row_bytes));
      kvcache::RoundRow(view.type, k.Row(0) + h / shape.group * d, d, chunk.data());
      kvcache::RoundRow(view.type, v.Row(0) + h / shape.group * d, d, chunk.data() + view.row_bytes);
      for (const DenseRows& rows : ExactRows(view, chunk.data(), chunk.data() + view.row_bytes, 1))
        for (int64_t r = 0; r < rows.tokens; ++r)
          add(rows.k + r * view.row_bytes, rows.v + r * view.row_bytes, 1, true);
      for (int64_t i = 0; i < d; ++i) expected.Row(0)[h * d + i] /= mass;
    }
    EXPECT_LT(RelativeError(Attend(executor, *cache, s, 1, {.scale = 0.125f}), expected), 2e-6) << kv;
  }
}

TEST(Eviction, ThreadsMakeNoDifference) {
  for (const char* kv : {"window", "h2o", "subgen", "subgen:variant=paper"}) {
    const Sequence s{{3, 2, 64}, {}};
    Executor one(1), three(3);
    auto a = Make(s.shape, kv), b = Make(s.shape, kv);
    const auto x = Read(one, *a, s, 800, 90), y = Read(three, *b, s, 800, 90);
    EXPECT_EQ(Apart(x, y), 0) << kv;
    EXPECT_EQ(kvcache::testing::State(*a), kvcache::testing::State(*b)) << kv;
  }
}

// What attention noted is undone as well, whether or not tokens have left the ring.
TEST(Eviction, RollbackForgetsWhatWasSeen) {
  Executor executor(2);
  for (const char* kv : {"h2o", "subgen"})
    for (const int64_t tokens : {1, 5, 40}) {
      const Sequence s{{2, 2, 64}, {}};
      auto cache = Make(s.shape, kv);
      Read(executor, *cache, s, 401, 100);
      const std::string before = kvcache::testing::State(*cache);
      Attend(executor, *cache, s, tokens, {.scale = 0.125f});
      EXPECT_EQ(kvcache::testing::State(*cache), before) << kv << " " << tokens;
    }
}

// One key, far back, that every query points at: h2o keeps it when hundreds of others go.
TEST(Eviction, HeavyHittersStay) {
  const Shape shape{1, 1, 64};
  Executor executor(1);
  auto cache = Make(shape, "h2o:slots=200");
  constexpr int64_t kHeavy = 50, kTokens = 800;
  for (int64_t p = 0; p < kTokens; ++p) {
    Matrix<float> q(1, 64), k = Rows(1, p, 1, 64), v = Rows(2, p, 1, 64), out(1, 64);
    q.Row(0)[7] = 4;
    k.Row(0)[7] = p == kHeavy ? 6.f : 0.f;
    ASSERT_TRUE(AttendAndAppend(executor, *cache, {.scale = 1}, q.View(), k.View(), v.View(), out.View()));
    cache->Commit(1);
  }
  const auto view = kvcache::ViewHead(*cache, 0, 0);
  int64_t found = 0;
  std::vector<float> row(64);
  for (int64_t r = 0; r < view.kept[0].rows; ++r) {
    kvcache::WidenRow(view.type, view.kept[0].k + r * view.row_bytes, 64, row.data());
    found += row[7] == 6;
  }
  EXPECT_EQ(found, 1);
  EXPECT_LT(view.kept[0].rows, 150);
}

// The masses that h2o accumulates are those of a softmax: every query row gives 1 in all, sinks included.
TEST(Eviction, ObservedMassIsASoftmax) {
  Executor executor(2);
  const Sequence s{{2, 3, 64}, {}};
  auto cache = Make(s.shape, "h2o");
  Read(executor, *cache, s, 500, 100);
  const auto q = s.Q(500, 20), k = s.K(cache->config(), 500, 20);
  Observe(executor, *cache, {.scale = 0.125f}, q.View(), k.View());
  for (int64_t h = 0; h < 2; ++h) {
    const kvcache::Observation& seen = kvcache::PendingObservation(*cache, 0, h);
    const auto view = kvcache::ViewHead(*cache, 0, h);
    EXPECT_EQ(seen.queries, 60);
    EXPECT_EQ(int64_t(seen.kept.size()), view.kept[0].rows);
    EXPECT_EQ(int64_t(seen.ring.size()), 500 - view.sinks - view.encoded);
    ASSERT_EQ(seen.chunk.size(), 20u);
    double all = 0;
    for (const auto* part : {&seen.kept, &seen.ring, &seen.chunk})
      for (const float x : *part) all += double(x);
    EXPECT_LT(all, 60.0);
    EXPECT_GT(all, 60.0 * 0.9);  // four sinks of some 500 keys have the rest
  }
}

TEST(Eviction, BatchesGoOneByOne) {
  Executor executor(2);
  const Sequence s{{2, 2, 64}, {}};
  auto a = Make(s.shape, "subgen");
  Read(executor, *a, s, 500, 100);
  auto b = a->Branch(), alone = a->Branch();
  const auto q = s.Q(500, 2), k = s.K(a->config(), 500, 2), v = s.V(500, 2);
  Matrix<float> out(2, q.cols()), expected(1, q.cols());
  kvcache::KvCache* const caches[] = {a.get(), b.get()};
  ASSERT_TRUE(AttendBatch(executor, caches, {.scale = 0.125f}, q.View(), k.View(), v.View(), out.View()));
  ASSERT_TRUE(AttendAndAppend(executor, *alone, {.scale = 0.125f}, q.View().Rows(1, 1), k.View().Rows(1, 1),
                              v.View().Rows(1, 1), expected.View()));
  for (int64_t i = 0; i < q.cols(); ++i) EXPECT_EQ(out.Row(1)[i], expected.Row(0)[i]);
}

TEST(Eviction, RefusesSlidingWindowsOfTheModel) {
  Executor executor(1);
  const Sequence s{{1, 1, 64}, {}};
  auto cache = Make(s.shape, "subgen");
  const auto q = s.Q(0, 1), k = s.K(cache->config(), 0, 1), v = s.V(0, 1);
  Matrix<float> out(1, 64);
  const Status status = AttendAndAppend(executor, *cache, {.window = 100}, q.View(), k.View(), v.View(), out.View());
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kUnsupported);
  EXPECT_NE(status.error().message.find("--kv-layers"), std::string::npos);
}

}  // namespace
}  // namespace croquis::attention::testing
