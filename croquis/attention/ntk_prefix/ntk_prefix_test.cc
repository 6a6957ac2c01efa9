// A prefix as a state: against explicit sums, against exact attention, through files, and out of bounds.
#include "croquis/attention/ntk_prefix/ntk_prefix.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "croquis/attention/test_problem.h"
#include "croquis/simd/target.h"

namespace croquis::attention {
namespace {

using testing::Answer;
using testing::Case;
using testing::RandomProblem;
using testing::RandomTensor;

Answer RunMethod(const std::string& method, const Problem& p, RunReport* report = nullptr, int threads = 2) {
  Answer answer(p);
  Executor executor(threads);
  const auto made = Make(method, 3);
  EXPECT_TRUE(made) << made.error().message;
  const std::string name = method.substr(0, method.find(':'));
  const Status ran = Run(executor, **FindMethod(name), **made, p, answer.View(), report);
  EXPECT_TRUE(ran) << ran.error().message;
  return answer;
}

// sum |a - b| / sum |b|
double RelativeL1(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::abs(double(a[i]) - double(b[i]));
    size += std::abs(double(b[i]));
  }
  return difference / size;
}

double Dot(const float* a, const float* b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += double(a[i]) * double(b[i]);
  return s;
}

// Where phi is exact for a polynomial score, the method is attention over virtual tokens with that score and real ones
// with e^s: row by row in double. Logits of several hundred (far) are off by 1e-4 in f32.
void ExpectMergeIdentity(Case c, const char* features, double (*weight)(double), bool far) {
  c.nq = 37, c.nk = 101, c.dim = 10, c.value_dim = 13;
  RandomProblem r(c);
  const int64_t prefix = 70;
  // Real keys far out: logits of a few hundred, beyond what e^s holds in f32.
  if (far)
    for (int64_t i = prefix * c.dim; i < c.nk * c.dim; ++i) r.k.f32()[i] *= 200;
  const Answer got = RunMethod("ntk-prefix:prefix=" + std::to_string(prefix) + ",features=" + features, r.problem);
  const float *q = r.q.f32(), *k = r.k.f32(), *v = r.v.f32();
  for (int64_t i = 0; i < c.nq; ++i) {
    const int64_t last = r.problem.Visible(i).last;
    double top = 0;
    for (int64_t j = 0; j < last; ++j)
      top = std::max(top, double(r.problem.scale) * Dot(q + i * c.dim, k + j * c.dim, c.dim));
    std::vector<double> sum(size_t(c.value_dim));
    double mass = 0;
    for (int64_t j = 0; j < last; ++j) {
      const double s = double(r.problem.scale) * Dot(q + i * c.dim, k + j * c.dim, c.dim);
      const double w = j < prefix && last >= prefix ? weight(s) * std::exp(-top) : std::exp(s - top);
      mass += w;
      for (int64_t x = 0; x < c.value_dim; ++x) sum[size_t(x)] += w * double(v[j * c.value_dim + x]);
    }
    for (int64_t x = 0; x < c.value_dim; ++x)
      ASSERT_NEAR(got.out[size_t(i * c.value_dim + x)], sum[size_t(x)] / mass, far ? 3e-4 : 2e-5)
          << features << " row " << i;
    ASSERT_NEAR(got.lse[size_t(i)], top + std::log(mass), 2e-5 * (1 + top)) << features << " row " << i;
  }
}

TEST(NtkPrefix, EqualsVirtualTokensWithAPolynomialScore) {
  for (const simd::Target target : simd::Reachable()) {
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    for (const bool causal : {false, true})
      for (const bool far : {false, true}) {
        ExpectMergeIdentity(
            {.causal = causal, .size = .5}, "taylor1", [](double s) { return 1 + s; }, far);
        ExpectMergeIdentity(
            {.causal = causal}, "taylor2", [](double s) { return 1 + s + s * s / 2; }, far);
      }
  }
  ASSERT_TRUE(simd::Force(""));
}

// The spec's measurement (6.5, c6): dim 64, 64 queries and real keys, values with a mean and a share of the keys.
TEST(NtkPrefix, ConversionErrors) {
  struct Row {
    const char* features;
    double few[3], many[3];  // prefix 64 and 1024, logits of standard deviation 1/16, 1/4, 1; 0: not in the table
  };
  const Row table[] = {{"elu-paper", {1.03, .94, .91}, {.058, .063, .089}},
                       {"elu", {.009, .029, .24}, {.002, .009, .064}},
                       {"taylor1", {}, {1e-4, .002, .042}},
                       {"taylor2", {}, {1e-5, 3e-4, .022}},
                       {"favor", {}, {.003, .014, .18}}};
  const float sizes[] = {.25f, .5f, 1};
  for (const Row& row : table)
    for (int s = 0; s < 3; ++s)
      for (const int64_t prefix : {64, 1024}) {
        const double want = (prefix == 64 ? row.few : row.many)[s];
        if (want == 0) continue;
        RandomProblem r({.nq = 64, .nk = prefix + 64, .size = sizes[s]});
        for (int64_t j = 0; j < prefix; ++j)
          for (int64_t x = 0; x < 64; ++x) {
            float& v = r.v.f32()[j * 64 + x];
            v = .5f + .5f * v + (x < 8 ? r.k.f32()[j * 64 + x] : 0);
          }
        RunReport report;
        const Answer got =
            RunMethod("ntk-prefix:precision=f32,prefix=" + std::to_string(prefix) + ",features=" + row.features,
                      r.problem, &report);
        const Answer exact = RunMethod("exact:precision=f32", r.problem);
        const double error = RelativeL1(got.out, exact.out);
        // One draw there and one here; the table is rounded to its digits.
        EXPECT_LT(error, 1.5 * want + 1e-5) << row.features << " " << sizes[s] << " " << prefix;
        EXPECT_GT(error, want / 2 - 1e-4) << row.features << " " << sizes[s] << " " << prefix;
        EXPECT_EQ(report.fallback_rows, 0);
        EXPECT_GT(report.est_error, 0);
      }
}

TEST(NtkPrefix, PositiveFeaturesAreUnbiased) {
  const int64_t dim = 6, keys = 5;
  RandomTensor q(1, 1, 1, dim), k(2, 1, keys, dim), v(3, 1, keys, 1);
  Executor executor(1);
  double want = 0, sum = 0, squares = 0;
  for (int64_t j = 0; j < keys; ++j) want += std::exp(.3 * Dot(q.f32(), k.f32() + j * dim, dim));
  const int draws = 3000;
  for (int draw = 0; draw < draws; ++draw) {
    PrefixConfig config{.features = PrefixFeatures::kFavor, .favor = 16, .scale = .3f, .seed = uint64_t(draw)};
    const auto prefix = NtkPrefix::FromKeysValues(executor, k.View(), v.View(), config);
    ASSERT_TRUE(prefix);
    auto scratch = prefix->MakeScratch(1);
    float a = 0, m = 0, l = 0;
    prefix->Evaluate(0, {q.f32(), 1, dim}, {&a, 1, 1}, &m, &l, scratch);
    const double mass = double(l) * std::exp(double(m));
    sum += mass, squares += mass * mass;
  }
  const double mean = sum / draws, error = std::sqrt((squares / draws - mean * mean) / draws);
  EXPECT_NEAR(mean, want, 5 * error);  // failure probability 6e-7
  EXPECT_LT(error, .05 * want);
}

TEST(NtkPrefix, OddShapesMeanTheSameAsExactWhereNothingIsReplaced) {
  const Case cases[] = {{.heads = 4, .kv_heads = 2, .nq = 67, .nk = 131, .dim = 24, .value_dim = 17, .causal = true},
                        {.nq = 131, .nk = 67, .dim = 5, .value_dim = 33, .causal = true},
                        {.nq = 1, .nk = 1, .dim = 1, .value_dim = 1},
                        {.heads = 2, .nq = 29, .nk = 29, .dim = 8, .value_dim = 8, .causal = true}};
  for (const Case& c : cases) {
    const RandomProblem r(c);
    const Answer exact = RunMethod("exact", r.problem);
    const Answer none = RunMethod("ntk-prefix:prefix=0", r.problem);
    EXPECT_LT(RelativeL1(none.out, exact.out), 1e-6);
    // Longer than the keys: the state stands for all of them.
    for (const char* features : {"elu", "elu-paper", "taylor1", "taylor2", "favor"}) {
      const Answer all = RunMethod(std::string("ntk-prefix:prefix=100000,features=") + features, r.problem);
      for (const float x : all.out) ASSERT_TRUE(std::isfinite(x)) << features;
    }
    // Rows within the prefix are exact under a causal mask.
    if (!c.causal) continue;
    const Answer half = RunMethod("ntk-prefix:prefix=20", r.problem);
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t i = 0; i < c.nq; ++i) {
        if (r.problem.Visible(i).last >= 20) continue;
        for (int64_t x = 0; x < c.value_dim; ++x) {
          const size_t at = size_t((h * c.nq + i) * c.value_dim + x);
          ASSERT_NEAR(half.out[at], exact.out[at], 1e-6);
        }
      }
  }
}

TEST(NtkPrefix, RowsWithoutPositiveMassAreExact) {
  const RandomProblem r({.nq = 200, .nk = 40, .dim = 16, .value_dim = 8, .size = 3});
  RunReport report;
  const Answer got = RunMethod("ntk-prefix:prefix=2,features=taylor1", r.problem, &report);
  const Answer exact = RunMethod("exact", r.problem);
  EXPECT_GT(report.fallback_rows, 20);
  int64_t equal = 0;
  for (int64_t i = 0; i < 200; ++i) {
    double difference = 0;
    for (int64_t x = 0; x < 8; ++x)
      difference += std::abs(double(got.out[size_t(i * 8 + x)]) - double(exact.out[size_t(i * 8 + x)]));
    equal += difference < 1e-5;
  }
  EXPECT_GE(equal, report.fallback_rows);
}

TEST(NtkPrefix, LargeLogitsStayFinite) {
  // Logits of both signs up to several hundred, in the prefix and outside.
  const RandomProblem r({.heads = 2, .nq = 65, .nk = 200, .dim = 32, .value_dim = 16, .size = 12});
  for (const char* features : {"elu", "elu-paper", "taylor1", "taylor2", "favor"}) {
    const Answer got = RunMethod(std::string("ntk-prefix:prefix=100,features=") + features, r.problem);
    for (const float x : got.out) ASSERT_TRUE(std::isfinite(x)) << features;
    for (const float x : got.lse) ASSERT_TRUE(std::isfinite(x)) << features;
  }
  // Sums that do not fit f32 are refused, except by favor, whose exponents are kept apart.
  const RandomProblem huge({.nq = 2, .nk = 5, .dim = 4, .value_dim = 4, .size = 1e36f});
  Answer out(huge.problem);
  Executor executor(1);
  for (const char* method : {"ntk-prefix:features=taylor2"}) {
    const auto made = Make(method);
    const Status ran = attention::Run(executor, **FindMethod("ntk-prefix"), **made, huge.problem, out.View());
    ASSERT_FALSE(ran);
    EXPECT_EQ(ran.error().code, Code::kNumeric);
  }
}

TEST(NtkPrefix, ChangingATokenChangesNoEarlierRowAndThreadsNothing) {
  for (const char* method :
       {"ntk-prefix:prefix=40", "ntk-prefix:prefix=40,features=taylor2", "ntk-prefix:prefix=40,features=favor"})
    for (const int64_t changed : {17, 90}) {
      RandomProblem r({.heads = 2, .nq = 150, .nk = 150, .dim = 9, .value_dim = 8, .causal = true});
      const Answer before = RunMethod(method, r.problem), one = RunMethod(method, r.problem, nullptr, 1);
      EXPECT_EQ(before.out, one.out);
      for (int64_t c = 0; c < 9; ++c) r.k.f32()[changed * 9 + c] *= -3;
      for (int64_t c = 0; c < 8; ++c) r.v.f32()[changed * 8 + c] += 100;
      const Answer after = RunMethod(method, r.problem);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t i = 0; i < changed * 8; ++i)
          ASSERT_EQ(before.out[size_t(h * 1200 + i)], after.out[size_t(h * 1200 + i)]) << method << " " << i / 8;
      EXPECT_NE(before.out[size_t(changed * 8)], after.out[size_t(changed * 8)]);
    }
}

class NtkPrefixFile : public ::testing::Test {
 protected:
  std::string path_ = ::testing::TempDir() + "/croquis_prefix_test_" + std::to_string(::getpid()) + ".ntk";
  void TearDown() override { std::remove(path_.c_str()); }

  std::string Bytes() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void Write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }
};

TEST_F(NtkPrefixFile, ComesBackTheSame) {
  const RandomProblem r({.heads = 2, .kv_heads = 2, .nq = 9, .nk = 50, .dim = 7, .value_dim = 5});
  Executor executor(2);
  for (const PrefixFeatures features : {PrefixFeatures::kElu, PrefixFeatures::kTaylor2, PrefixFeatures::kFavor}) {
    const PrefixConfig config{.features = features, .favor = 33, .scale = .4f, .seed = 9};
    const auto made = NtkPrefix::FromKeysValues(executor, r.problem.k, r.problem.v, config);
    ASSERT_TRUE(made);
    ASSERT_TRUE(made->Save(path_));
    const auto loaded = NtkPrefix::Load(path_);
    ASSERT_TRUE(loaded) << loaded.error().message;
    EXPECT_EQ(loaded->bytes(), made->bytes());
    Matrix<float> a(9, 5), b(9, 5);
    float m[2][9], l[2][9];
    auto scratch = made->MakeScratch(9);
    for (int64_t h = 0; h < 2; ++h) {
      const MatView<const float> q(reinterpret_cast<const float*>(r.problem.q.Head(h).data), 9, 7);
      made->Evaluate(h, q, a.View(), m[0], l[0], scratch);
      loaded->Evaluate(h, q, b.View(), m[1], l[1], scratch);
      for (int64_t i = 0; i < 9; ++i) {
        EXPECT_EQ(m[0][i], m[1][i]);
        EXPECT_EQ(l[0][i], l[1][i]);
        for (int64_t x = 0; x < 5; ++x) EXPECT_EQ(a.Row(i)[x], b.Row(i)[x]);
      }
    }
  }
}

TEST_F(NtkPrefixFile, DamageIsNoticed) {
  const RandomProblem r({.nq = 1, .nk = 20, .dim = 4, .value_dim = 3});
  Executor executor(1);
  const auto made = NtkPrefix::FromKeysValues(executor, r.problem.k, r.problem.v, {});
  ASSERT_TRUE(made);
  ASSERT_TRUE(made->Save(path_));
  const std::string good = Bytes();
  const auto expect = [&](std::string bytes, Code code) {
    Write(bytes);
    const auto loaded = NtkPrefix::Load(path_);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
  };
  expect("", Code::kCorrupt);
  expect(good.substr(0, 30), Code::kCorrupt);
  expect(good.substr(0, good.size() - 1), Code::kCorrupt);
  expect(good + "x", Code::kCorrupt);
  // Any bit behind the version changes the checksum, the size, or the number of features.
  for (size_t at = 8; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ (1 << at % 8));
    expect(bad, Code::kCorrupt);
  }
  std::string other = good;
  other[7] = '1';
  expect(other, Code::kUnsupported);
  for (const size_t at : {0, 8, 12, 16, 20, 24}) {  // magic, and each number of the header
    std::string bad = good;
    for (size_t i = 0; i < 4; ++i) bad[at + i] = char(0xff);
    expect(bad, Code::kCorrupt);
  }
  // Numbers that are none, with a right checksum.
  std::string nan = good;
  for (size_t i = good.size() - 8; i < good.size() - 4; ++i) nan[i] = char(0xff);
  const auto sum = uint32_t(crc32(0, reinterpret_cast<const Bytef*>(nan.data()), uInt(nan.size() - 4)));
  std::memcpy(&nan[nan.size() - 4], &sum, 4);
  expect(nan, Code::kCorrupt);
  EXPECT_EQ(NtkPrefix::Load(path_ + ".none").error().code, Code::kNotFound);
  EXPECT_EQ(made->Save("/nonexistent-folder/x").error().code, Code::kIo);
}

// A file that is there stays when another cannot be written, and nothing else is left in the folder.
TEST_F(NtkPrefixFile, IsWrittenWholeOrNotAtAll) {
  const RandomProblem r({.nq = 1, .nk = 20, .dim = 4, .value_dim = 3});
  Executor executor(1);
  const auto made = NtkPrefix::FromKeysValues(executor, r.problem.k, r.problem.v, {});
  ASSERT_TRUE(made);
  ASSERT_TRUE(made->Save(path_));
  ASSERT_TRUE(made->Save(path_));  // replaces itself
  EXPECT_TRUE(NtkPrefix::Load(path_));
  namespace fs = std::filesystem;
  const fs::path folder = path_ + ".folder";
  fs::create_directories(folder / "taken");
  const Status failed = made->Save((folder / "taken").string());
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Code::kIo);
  EXPECT_NE(failed.error().message.find("ntk-prefix"), std::string::npos);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
  fs::remove_all(folder);
}

// A state from a file stands before all keys: the same as replacing the first keys of a longer problem, for rows that
// see all of those.
TEST_F(NtkPrefixFile, StandsBeforeTheKeys) {
  const int64_t prefix = 90, rest = 75, d = 8;
  for (const bool causal : {false, true})
    for (const char* features : {"elu", "taylor2", "favor"}) {
      const RandomProblem r({.heads = 4,
                             .kv_heads = 2,
                             .nq = rest,
                             .nk = prefix + rest,
                             .dim = d,
                             .value_dim = d,
                             .causal = causal,
                             .size = .7f});
      Executor executor(2);
      TensorView k = r.problem.k, v = r.problem.v;
      k.rows = v.rows = prefix;
      const Spec spec = *ResolveSpec(std::string("ntk-prefix:m=64,features=") + features);
      const auto state = NtkPrefix::FromKeysValues(executor, k, v, PrefixConfig::From(spec, r.problem.scale, 3));
      ASSERT_TRUE(state);
      ASSERT_TRUE(state->Save(path_));
      RunReport report;
      const Answer want =
          RunMethod("ntk-prefix:precision=f32,m=64,prefix=90,features=" + std::string(features), r.problem);
      Problem after = r.problem;
      after.k.data = r.problem.k.Head(0).Row(prefix), after.v.data = r.problem.v.Head(0).Row(prefix);
      after.k.rows = after.v.rows = rest;
      after.mask.offset = 0;
      const std::string method = "ntk-prefix:precision=f32,file=" + path_;
      const Answer got = RunMethod(method, after, &report);
      EXPECT_LT(RelativeL1(got.out, want.out), 2e-6) << features;
      EXPECT_LT(RelativeL1(got.lse, want.lse), 2e-6) << features;
      EXPECT_EQ(report.est_error, -1);
      EXPECT_GT(report.pairs, report.exact_pairs);
      // Its own reference says the same.
      Answer reference(after);
      ASSERT_TRUE((*Make(method))->RunReference(executor, after, reference.View()));
      EXPECT_LT(RelativeL1(got.out, reference.out), 2e-6) << features;
      EXPECT_LT(RelativeL1(got.lse, reference.lse), 2e-6) << features;
    }
}

TEST_F(NtkPrefixFile, AnswersRowsThatSeeNoKeyAndProblemsWithoutKeys) {
  const RandomProblem r({.heads = 2, .kv_heads = 2, .nq = 70, .nk = 40, .dim = 8, .value_dim = 8, .causal = true});
  Executor executor(2);
  const auto state = NtkPrefix::FromKeysValues(executor, r.problem.k, r.problem.v, {.scale = r.problem.scale});
  ASSERT_TRUE(state);
  ASSERT_TRUE(state->Save(path_));
  const std::string method = "ntk-prefix:file=" + path_;
  // The state alone: rows 0 to 29 see no key here.
  const Answer some = RunMethod(method, r.problem);
  Problem none = r.problem;
  none.k.rows = none.v.rows = 0;
  const Answer alone = RunMethod(method, none);
  const Answer want = RunMethod("ntk-prefix:prefix=40", [&] {
    Problem p = r.problem;
    p.mask.causal = false;
    return p;
  }());
  EXPECT_LT(RelativeL1(alone.out, want.out), 1e-6);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t i = 0; i < 70; ++i)
      for (int64_t c = 0; c < 8; ++c) {
        const size_t at = size_t((h * 70 + i) * 8 + c);
        if (i < 30) {
          ASSERT_NEAR(some.out[at], alone.out[at], 1e-6) << i;
        } else if (c == 0) {
          EXPECT_NE(some.out[at], alone.out[at]) << i;
        }
      }
}

TEST_F(NtkPrefixFile, RefusesWhatItWasNotMadeFor) {
  const RandomProblem r({.heads = 2, .kv_heads = 2, .nq = 9, .nk = 50, .dim = 8, .value_dim = 8, .size = 3});
  Executor executor(1);
  const auto save = [&](const PrefixConfig& config) {
    const auto made = NtkPrefix::FromKeysValues(executor, r.problem.k, r.problem.v, config);
    ASSERT_TRUE(made);
    ASSERT_TRUE(made->Save(path_));
  };
  save({.scale = r.problem.scale});
  const auto expect = [&](const Problem& p, Code code, const char* says) {
    const auto method = Make("ntk-prefix:file=" + path_);
    ASSERT_TRUE(method);
    Answer a(p);
    const Status ran = attention::Run(executor, **FindMethod("ntk-prefix"), **method, p, a.View());
    ASSERT_FALSE(ran) << says;
    EXPECT_EQ(ran.error().code, code) << ran.error().message;
    EXPECT_NE(ran.error().message.find(says), std::string::npos) << ran.error().message;
  };
  Problem p = r.problem;
  p.scale *= 2;
  expect(p, Code::kInvalidArgument, "scale");
  expect(RandomProblem({.nq = 9, .nk = 9, .dim = 8, .value_dim = 8}).problem, Code::kInvalidArgument, "2 kv heads");
  expect(RandomProblem({.heads = 2, .kv_heads = 2, .nq = 9, .nk = 9, .dim = 7, .value_dim = 8}).problem,
         Code::kInvalidArgument, "of dim 8");
  // Two of a batch.
  RunMethod("ntk-prefix:file=" + path_,
            RandomProblem({.heads = 4, .kv_heads = 4, .nq = 9, .nk = 9, .dim = 8, .value_dim = 8}).problem);
  // 1 + s is negative for most keys.
  save({.features = PrefixFeatures::kTaylor1, .scale = r.problem.scale});
  expect(RandomProblem({.heads = 2, .kv_heads = 2, .nq = 200, .nk = 9, .dim = 8, .value_dim = 8, .size = 30}).problem,
         Code::kNumeric, "no positive mass");
  EXPECT_EQ(Make("ntk-prefix:prefix=3,file=" + path_).error().code, Code::kInvalidArgument);
  EXPECT_EQ(Make("ntk-prefix:file=" + path_ + ".none").error().code, Code::kNotFound);
  Write("something else");
  EXPECT_EQ(Make("ntk-prefix:file=" + path_).error().code, Code::kCorrupt);
}

TEST(NtkPrefix, TrainedStatesEnterByMagnitude) {
  const std::vector<float> sums = {1, 2, 3, 4, 5, 6}, masses = {-2, 3};
  PrefixConfig config{.features = PrefixFeatures::kEluPaper};
  const auto made = NtkPrefix::FromState(config, 1, 2, 3, sums, masses);
  ASSERT_TRUE(made);
  auto scratch = made->MakeScratch(1);
  const float q[2] = {1, -1};  // phi = (2, 1/e)
  float a[3], m = 1, l = 0;
  made->Evaluate(0, {q, 1, 2}, {a, 1, 3}, &m, &l, scratch);
  const float e = std::exp(-1.f);
  EXPECT_EQ(m, 0);
  EXPECT_NEAR(l, 4 + 3 * e, 1e-5);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(a[i], 2 * sums[size_t(i)] + e * sums[size_t(3 + i)], 1e-5);
  EXPECT_FALSE(NtkPrefix::FromState(config, 1, 2, 3, sums, {}));
  EXPECT_FALSE(NtkPrefix::FromState(config, 0, 2, 3, {}, {}));
}

}  // namespace
}  // namespace croquis::attention
