// The yardsticks of the benchmarks: exact attention, its reading of a cache, Gaussian data.
#include "croquis/eval/exact_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "croquis/attention/attention.h"
#include "croquis/eval/attention_bench.h"

namespace croquis::eval {
namespace {

TEST(ExactAttention, TwoKeysByHand) {
  // q = (1, 0), keys with logits ln 3 and 0: weights 3/4 and 1/4.
  const float q[2] = {1, 0};
  ExactAttention a(q, 1, 2, 1.0);
  std::vector<float> k = {0, 5, float(std::log(3.0)), -1}, v = {8, 0, 0, 4};
  a.Add({k.data(), 2, 2}, {v.data(), 2, 2});
  double out[2];
  a.Finish(out);
  EXPECT_NEAR(out[0], 2, 1e-6);
  EXPECT_NEAR(out[1], 3, 1e-6);
  ExactAttention empty(q, 1, 2, 1.0);
  empty.Finish(out);
  EXPECT_EQ(out[0], 0);
}

TEST(ExactAttention, OrderOfKeysDoesNotMatter) {
  constexpr int64_t kDim = 8, kKeys = 40;
  Matrix<float> q(2, kDim), k(kKeys, kDim), v(kKeys, kDim);
  FillGaussian(1, 0, 0, 2 * kDim, q.data());
  FillGaussian(1, 1, 0, kKeys * kDim, k.data());
  FillGaussian(1, 2, 0, kKeys * kDim, v.data());
  ExactAttention forward(q.data(), 2, kDim, 3), backward(q.data(), 2, kDim, 3);
  forward.Add(k.View(), v.View());
  for (int64_t t = kKeys - 1; t >= 0; t--) backward.Add(k.View().Rows(t, 1), v.View().Rows(t, 1));
  std::vector<double> a(2 * kDim), b(2 * kDim);
  forward.Finish(a.data());
  backward.Finish(b.data());
  for (size_t i = 0; i < a.size(); i++) EXPECT_NEAR(a[i], b[i], 1e-12);
}

TEST(Gaussian, MomentsAndSlices) {
  constexpr int64_t kCount = 1 << 18;
  std::vector<float> x(kCount);
  FillGaussian(7, 3, 0, kCount, x.data());
  double m1 = 0, m2 = 0, m4 = 0;
  for (float v : x) {
    m1 += v;
    m2 += double(v) * v;
    m4 += double(v) * v * v * v;
  }
  // Standard errors: 1/sqrt(n), sqrt(2/n), sqrt(96/n); n = 2^18 gives .00195, .0028, .0191. Five of each.
  EXPECT_NEAR(m1 / kCount, 0, .0098);
  EXPECT_NEAR(m2 / kCount, 1, .0139);
  EXPECT_NEAR(m4 / kCount, 3, .0957);
  std::vector<float> part(101);
  FillGaussian(7, 3, 12345, 101, part.data());  // from the middle of a block
  EXPECT_TRUE(std::equal(part.begin(), part.end(), x.begin() + 12345));
  FillGaussian(7, 4, 12345, 101, part.data());
  EXPECT_FALSE(std::equal(part.begin(), part.end(), x.begin() + 12345));
}

// What ForEachStoredBlock hands out is what attention computes with, for plain, coded and centred caches.
TEST(ExactAttention, AgreesWithAttentionOverACache) {
  for (const char* kv : {"f16", "eden:bits=4", "int8", "eden:bits=4,center=rope"}) {
    AttentionBenchOptions o;
    o.n = 700;
    o.heads = 4;
    o.kv_heads = 2;
    o.head_dim = 64;
    o.layers = 2;
    o.reps = 2;
    o.center_pairs = 4;
    o.caches = {*kvcache::ParseKvPolicy(kv)};
    Executor executor(2);
    const auto bench = BenchAttention(executor, o);
    ASSERT_TRUE(bench) << bench.error().message;
    for (const AttentionRow& row : bench->rows) {
      // 16-bit query and weights promise 2e-4 of |q||k|. Keys with a common part 8 times the rest are 8 times as long,
      // and so is the error of their logits unless the common part is removed.
      const bool long_keys = row.kv == "eden:bits=4,center=none";
      EXPECT_LT(row.rel_error, long_keys ? 1.6e-3 : 2e-4) << row.kv << " " << row.kernel << " " << row.keys;
      EXPECT_GT(row.total_error, 0) << row.kv;
      EXPECT_GT(row.ms, 0);
      EXPECT_GT(row.bytes, 0);
    }
    EXPECT_EQ(bench->rows[0].kv, "f16");
    EXPECT_DOUBLE_EQ(bench->rows[0].ratio_to_f16, 1);
    EXPECT_GT(bench->read_gb_per_s, 0);
    // The rows with a common part: centring finds it and lowers the error of 4-bit keys.
    const AttentionRow &none = bench->rows[bench->rows.size() - 2], &rope = bench->rows.back();
    EXPECT_EQ(none.centered_pairs, 0);
    EXPECT_GE(rope.centered_pairs, 2 * 2 * 4);  // layers x heads x pairs
    EXPECT_LT(rope.total_error, none.total_error / 2);
    EXPECT_GT(rope.center_cost, 0);
  }
}

TEST(Bench, OptionsAreChecked) {
  Executor executor(1);
  AttentionBenchOptions o;
  o.n = 64;
  o.heads = 3;
  o.kv_heads = 2;
  EXPECT_EQ(BenchAttention(executor, o).error().code, Code::kInvalidArgument);
  o.heads = 4;
  o.center_pairs = 65;
  EXPECT_EQ(BenchAttention(executor, o).error().code, Code::kOutOfRange);
  o.center_pairs = 0;
  o.n = int64_t(1) << 28;
  EXPECT_EQ(BenchAttention(executor, o).error().code, Code::kNoMemory);
  EXPECT_FALSE(BenchEncode({"nothing"}, 64, 1));
  const auto encode = BenchEncode({"f16", "eden:bits=3"}, 64, 2);
  ASSERT_TRUE(encode);
  ASSERT_EQ(encode->size(), 4u);
  EXPECT_EQ((*encode)[2].codec, "eden:bits=3");
  EXPECT_EQ((*encode)[3].role, "value");
  for (const EncodeRow& r : *encode) EXPECT_GT(r.ns_best, 0);
}

}  // namespace
}  // namespace croquis::eval
