// Every registered method against its own contract, in both roles, at all head sizes it takes. A new method needs no
// change here.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "croquis/base/rng.h"
#include "croquis/codecs/measure.h"
#include "croquis/simd/target.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kHeadDims[] = {8, 32, 64, 80, 96, 112, 128, 192, 256};
constexpr Role kRoles[] = {Role::kKey, Role::kValue};
constexpr Rows kKinds[] = {Rows::kGaussian, Rows::kHeavyTailed, Rows::kSparse, Rows::kConstant};

// The method with its defaults, and with each parameter changed alone: every word, every integer of short ranges, both
// ends of long ones.
std::vector<std::string> Variants(const MethodInfo& method) {
  std::vector<std::string> all = {std::string(method.name)};
  const auto add = [&](const ParamInfo& p, const std::string& value) {
    if (value != p.def) all.push_back(std::string(method.name) + ":" + std::string(p.name) + "=" + value);
  };
  for (const ParamInfo& p : method.params) {
    if (p.name == "center") continue;  // acts in the cache, not here
    if (p.choices.empty()) {
      if (p.max - p.min < 8) {
        for (int64_t v = p.min; v <= p.max; ++v) add(p, std::to_string(v));
      } else {
        add(p, std::to_string(p.min)), add(p, std::to_string(p.max));
      }
    }
    for (std::string_view rest = p.choices; !rest.empty();) {
      const size_t bar = rest.find('|');
      add(p, std::string(rest.substr(0, bar)));
      rest = bar == rest.npos ? "" : rest.substr(bar + 1);
    }
  }
  return all;
}

std::string Where(std::string_view text, int64_t d, Role role) {
  return std::string(text) + " head_dim " + std::to_string(d) + (role == Role::kKey ? " keys" : " values");
}

// Calls fn(text, d, role, contract) for all combinations that the method takes.
template <class F>
void ForEach(bool variants, const F& fn) {
  for (const MethodInfo* method : Methods())
    for (const std::string& text : variants ? Variants(*method) : std::vector{std::string(method->name)})
      for (const int64_t d : kHeadDims)
        for (const Role role : kRoles) {
          const auto spec = ResolveSpec(text);
          ASSERT_TRUE(spec) << text;
          const auto contract = method->contract(d, role, *spec);
          if (contract) fn(text, d, role, *contract);
        }
}

std::unique_ptr<const Codec> MustMake(const std::string& text, int64_t d, Role role) {
  auto codec = Make(text, d, role, 17);
  EXPECT_TRUE(codec) << Where(text, d, role) << (codec ? "" : codec.error().message);
  return codec ? *std::move(codec) : nullptr;
}

Matrix<float> SomeRows(Rows kind, int64_t rows, int64_t d, uint64_t seed) {
  Matrix<float> x(rows, d);
  FillRows(kind, seed, 0, x.View());
  return x;
}

double Dot(const float* a, const float* b, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += double(a[i]) * double(b[i]);
  return s;
}

TEST(Conformance, MethodsHaveRecords) {
  std::set<std::string_view> names;
  for (const MethodInfo* m : Methods()) {
    EXPECT_TRUE(names.insert(m->name).second) << m->name;
    EXPECT_FALSE(m->summary.empty()) << m->name;
    EXPECT_FALSE(m->paper.empty()) << m->name;
    for (const ParamInfo& p : m->params) EXPECT_FALSE(p.help.empty()) << m->name << " " << p.name;
    EXPECT_TRUE(ResolveSpec(m->name)) << m->name;
  }
  ForEach(true, [](const std::string& text, int64_t d, Role role, const Contract&) {
    EXPECT_TRUE(Make(text, d, role)) << Where(text, d, role);
  });
}

TEST(Conformance, TakesTheUsualHeads) {
  for (const MethodInfo* m : Methods())
    for (const int64_t d : {64, 96, 128, 192, 256}) EXPECT_TRUE(Make(m->name, d, Role::kKey)) << m->name << " " << d;
}

// What a contract refuses, Make refuses in the same words; and no method goes beyond 8..256.
TEST(Conformance, RefusalsAreErrors) {
  for (const MethodInfo* m : Methods())
    for (const std::string& text : Variants(*m)) {
      for (const int64_t d : {8, 20, 72, 80, 100})
        for (const Role role : kRoles) {
          const auto contract = m->contract(d, role, *ResolveSpec(text));
          const auto codec = Make(text, d, role);
          EXPECT_EQ(bool(contract), bool(codec)) << Where(text, d, role);
          if (!contract && !codec) {
            EXPECT_EQ(contract.error().message, codec.error().message);
          }
        }
      for (const int64_t d : {int64_t(-1), int64_t(0), int64_t(7), int64_t(257), int64_t(1) << 40})
        EXPECT_FALSE(Make(text, d, Role::kKey)) << text << " " << d;
    }
  EXPECT_NE(Make("nothing", 64, Role::kKey).error().message.find("eden"), std::string::npos);
  EXPECT_FALSE(Make("eden:bits=9", 64, Role::kKey));
  EXPECT_FALSE(Make("eden:colour=red", 64, Role::kKey));
}

TEST(Conformance, StoredBitsAreThoseOfTheContract) {
  ForEach(true, [](const std::string& text, int64_t d, Role role, const Contract& contract) {
    const auto codec = MustMake(text, d, role);
    EXPECT_NEAR(codec->BitsPerNumber(), contract.bits_per_number, 1e-9) << Where(text, d, role);
    EXPECT_EQ(codec->PageBytes() % 64, 0u) << Where(text, d, role);
    EXPECT_EQ(kPageTokens % codec->Granularity(), 0) << Where(text, d, role);
    EXPECT_EQ(codec->HeadDim(), d);
    EXPECT_EQ(codec->GetRole(), role);
    EXPECT_GE(codec->AccDim(), d);
    EXPECT_FALSE(codec->Kernel().empty());
    // The full method string names the same codec.
    const auto again = Make(codec->Method(), d, role, 17);
    ASSERT_TRUE(again) << codec->Method();
    EXPECT_EQ((*again)->Method(), codec->Method());
    EXPECT_EQ((*again)->PageBytes(), codec->PageBytes());
  });
}

// 2 %, and four standard errors of the sample: 2,048 rows under 16 seeds for defaults, 1,024 under 8 for variants (one
// role each).
TEST(Conformance, ErrorsAreThoseOfTheContract) {
  const auto check = [](const std::string& text, int64_t d, Role role, const Contract& contract, int64_t rows) {
    const auto m = Measure(text, d, role, Rows::kGaussian, 1, rows, false);
    ASSERT_TRUE(m);
    // Rotations of very few numbers differ much among themselves, with a long tail that 16 seeds do not show.
    const double share = d < 32 ? 0.3 : 0.02;
    EXPECT_NEAR(m->rel_mse, contract.rel_mse, share * contract.rel_mse + 1e-7 + 4 * m->rel_mse_error)
        << Where(text, d, role);
  };
  ForEach(false, [&](const std::string& text, int64_t d, Role role, const Contract& contract) {
    if (role == Role::kKey || d == 64 || d == 128) check(text, d, role, contract, 2048);
  });
  ForEach(true, [&](const std::string& text, int64_t d, Role role, const Contract& contract) {
    if ((d == 80 && role == Role::kKey) || (d == 128 && role == Role::kValue)) check(text, d, role, contract, 1024);
  });
}

// 2,048 rows under 16 seeds: Student's t with 15 degrees of freedom exceeds 7 four times in 10^6. The floor is the
// rounding of scales in constant rows.
TEST(Conformance, UnbiasedWherePromised) {
  ForEach(true, [](const std::string& text, int64_t d, Role role, const Contract& contract) {
    if (!contract.unbiased || d != (role == Role::kKey ? 64 : 80)) return;
    for (const Rows kind : kKinds) {
      const auto m = Measure(text, d, role, kind, 2, 2048, false);
      ASSERT_TRUE(m);
      EXPECT_LT(std::fabs(m->slope - 1), 7 * m->slope_error + 1e-6) << Where(text, d, role) << " " << Name(kind);
    }
  });
}

// Error allowed to the kernels, relative to the root mean square of the result.
double KernelTolerance(const Codec& codec) {
  return codec.Kernel().find("fast") != std::string_view::npos   ? 3e-2
         : codec.Kernel().find("fine") != std::string_view::npos ? 4e-4
         : codec.Kernel().find("bits") != std::string_view::npos ? 1e-4
                                                                 : 1e-5;
}

void CheckScore(const Codec& codec, const std::byte* page, MatView<const float> decoded, int64_t rows,
                const std::string& where) {
  const int64_t d = codec.HeadDim();
  const Matrix<float> q = SomeRows(Rows::kGaussian, rows, d, 99);
  Buffer query(codec.QueryBytes(rows)), scratch(codec.ScratchBytes(rows));
  std::vector<float> logits(size_t(rows * kPageTokens), std::numeric_limits<float>::quiet_NaN());
  codec.Prepare(q.View(), 0.125f, query.data());
  codec.Score(page, query.data(), rows, {page, codec.PageBytes()}, logits.data(), scratch.data());
  for (int64_t r = 0; r < rows; ++r) {
    double error = 0, power = 0;
    for (int64_t t = 0; t < kPageTokens; ++t) {
      const double want = 0.125 * Dot(q.Row(r), decoded.Row(t), d);
      const double e = double(logits[size_t(r * kPageTokens + t)]) - want;
      error += e * e, power += want * want;
    }
    EXPECT_LE(std::sqrt(error / power), KernelTolerance(codec)) << where << " row " << r << " of " << rows;
  }
}

// Sums start from what acc holds; weights of rows fall off at different speeds, slots after `used` have none.
void CheckAccumulate(const Codec& codec, const std::byte* page, MatView<const float> decoded, int64_t rows,
                     int64_t used, const std::string& where) {
  const int64_t d = codec.HeadDim();
  Buffer scratch(codec.ScratchBytes(rows));
  Matrix<float> p(rows, kPageTokens), acc(rows, codec.AccDim()), out(rows, d);
  std::vector<float> p_scale(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    p_scale[size_t(r)] = r == 1 ? 0 : 1 / float(1 + r);
    for (int64_t t = 0; t < used; ++t) p.Row(r)[t] = std::exp(-float((t * 37 + r) % used) * float(r) * 0.05f);
  }
  for (int pass = 0; pass < 2; ++pass)
    codec.Accumulate(page, p.data(), p_scale.data(), rows, {page, codec.PageBytes()}, acc.View(), scratch.data());
  codec.Finish(acc.View(), out.View());
  for (int64_t r = 0; r < rows; ++r) {
    double error = 0, power = 0;
    for (int64_t i = 0; i < d; ++i) {
      double want = 0;
      for (int64_t t = 0; t < used; ++t)
        want += 2 * double(p_scale[size_t(r)]) * double(p.Row(r)[t]) * double(decoded.Row(t)[i]);
      const double e = double(out.Row(r)[i]) - want;
      error += e * e, power += want * want;
    }
    EXPECT_LE(std::sqrt(error), KernelTolerance(codec) * std::sqrt(power)) << where << " row " << r << " of " << rows;
  }
}

TEST(Conformance, ScoresAndSumsAreThoseOfDecodedRows) {
  for (const simd::Target target : simd::Reachable()) {
    ASSERT_TRUE(simd::Force(simd::Name(target)));
    ForEach(true, [&](const std::string& text, int64_t d, Role role, const Contract&) {
      const bool plain = text.find(':') == text.npos;
      if (!plain && d != 80 && d != 128) return;
      const auto codec = MustMake(text, d, role);
      const Matrix<float> x = SomeRows(Rows::kGaussian, kPageTokens, d, 4);
      Buffer page(codec->PageBytes());
      Matrix<float> decoded(kPageTokens, d);
      codec->Encode(x.View(), 0, page.data());
      codec->Decode(page.data(), 0, decoded.View());
      const std::string where = Where(text, d, role) + " on " + std::string(simd::Name(target));
      for (const int64_t rows : plain ? std::vector<int64_t>{1, 5, 16} : std::vector<int64_t>{4}) {
        if (role == Role::kKey) CheckScore(*codec, page.data(), decoded.View(), rows, where);
        if (role == Role::kValue) CheckAccumulate(*codec, page.data(), decoded.View(), rows, 128, where);
      }
      if (role == Role::kValue) CheckAccumulate(*codec, page.data(), decoded.View(), 3, 37, where);
    });
  }
  ASSERT_TRUE(simd::Force(""));
}

TEST(Conformance, SlicesAreTheWhole) {
  ForEach(true, [](const std::string& text, int64_t d, Role role, const Contract&) {
    if (text.find(':') != text.npos && d != 80 && d != 128) return;
    const auto codec = MustMake(text, d, role);
    const int64_t step = codec->Granularity();
    const Matrix<float> x = SomeRows(Rows::kHeavyTailed, kPageTokens, d, 4);
    Buffer whole(codec->PageBytes()), slices(codec->PageBytes());
    codec->Encode(x.View(), 0, whole.data());
    for (int64_t t = kPageTokens; (t -= step) >= 0;) codec->Encode(x.View().Rows(t, step), t, slices.data());
    EXPECT_EQ(std::memcmp(whole.data(), slices.data(), whole.size()), 0) << Where(text, d, role);
    // Any window decodes as the whole does.
    Matrix<float> all(kPageTokens, d), part(21, d);
    codec->Decode(whole.data(), 0, all.View());
    codec->Decode(whole.data(), 13, part.View());
    EXPECT_EQ(std::memcmp(all.Row(13), part.data(), size_t(21 * d) * sizeof(float)), 0) << Where(text, d, role);
    // A strided view is read as its rows are.
    Matrix<float> wide(kPageTokens, d + 5);
    for (int64_t r = 0; r < kPageTokens; ++r) std::copy_n(x.Row(r), d, wide.Row(r) + 3);
    Buffer strided(codec->PageBytes());
    codec->Encode(MatView<const float>(wide.View()).Cols(3, d), 0, strided.data());
    EXPECT_EQ(std::memcmp(whole.data(), strided.data(), whole.size()), 0) << Where(text, d, role);
  });
}

TEST(Conformance, PartialPages) {
  ForEach(false, [](const std::string& text, int64_t d, Role role, const Contract&) {
    const auto codec = MustMake(text, d, role);
    const int64_t used = codec->Granularity() == kPageTokens ? 0 : codec->Granularity();
    const Matrix<float> x = SomeRows(Rows::kGaussian, kPageTokens, d, 4);
    Buffer page(codec->PageBytes()), query(codec->QueryBytes(3)), scratch(codec->ScratchBytes(3));
    Matrix<float> decoded(kPageTokens, d);
    if (used > 0) codec->Encode(x.View().Rows(0, used), 0, page.data());
    codec->Decode(page.data(), 0, decoded.View());
    if (role == Role::kValue) {
      if (used > 0) CheckAccumulate(*codec, page.data(), decoded.View(), 3, used, Where(text, d, role));
      return;
    }
    const Matrix<float> q = SomeRows(Rows::kGaussian, 3, d, 5);
    std::vector<float> logits(3 * kPageTokens, std::numeric_limits<float>::quiet_NaN());
    codec->Prepare(q.View(), 1, query.data());
    codec->Score(page.data(), query.data(), 3, {}, logits.data(), scratch.data());
    for (const float v : logits) EXPECT_TRUE(std::isfinite(v)) << Where(text, d, role);
  });
}

TEST(Conformance, ZeroRowsStayZero) {
  ForEach(true, [](const std::string& text, int64_t d, Role role, const Contract&) {
    if (text.find(':') != text.npos && d != 80 && d != 128) return;
    const auto codec = MustMake(text, d, role);
    const Matrix<float> x(kPageTokens, d);
    Matrix<float> back(kPageTokens, d);
    Buffer page(codec->PageBytes());
    codec->Encode(x.View(), 0, page.data());
    codec->Decode(page.data(), 0, back.View());
    for (int64_t i = 0; i < kPageTokens * d; ++i) ASSERT_EQ(back.data()[i], 0) << Where(text, d, role);
  });
}

// The relative error of a row does not depend on its magnitude between 1e-2 and 1e3 (scales are normal fp16 numbers);
// beyond the range of fp16, and for numbers that are none, decoded rows stay finite or are at worst what was put in.
TEST(Conformance, Magnitudes) {
  ForEach(false, [](const std::string& text, int64_t d, Role role, const Contract&) {
    const auto codec = MustMake(text, d, role);
    const auto error = [&](float factor) {
      Matrix<float> x = SomeRows(Rows::kGaussian, kPageTokens, d, 6), back(kPageTokens, d);
      for (int64_t i = 0; i < kPageTokens * d; ++i) x.data()[i] *= factor;
      Buffer page(codec->PageBytes());
      codec->Encode(x.View(), 0, page.data());
      codec->Decode(page.data(), 0, back.View());
      double e = 0, p = 0;
      for (int64_t i = 0; i < kPageTokens * d; ++i) {
        EXPECT_TRUE(std::isfinite(back.data()[i])) << Where(text, d, role) << " times " << factor;
        const double v = double(x.data()[i]), b = double(back.data()[i]) - v;
        e += b * b, p += v * v;
      }
      return e / p;
    };
    const double at_one = error(1);
    // Scales of tiny rows have fewer bits: 2^-24 / (1e-2 / 127) is 2^-10.3, invisible beside the codes.
    for (const float factor : {1e-2f, 1e3f})
      EXPECT_NEAR(error(factor), at_one, 0.05 * at_one + 2e-6) << Where(text, d, role) << " times " << factor;
    for (const float factor : {1e-30f, 1e-9f, 1e6f, 1e12f}) error(factor);
  });
}

TEST(Conformance, NumbersThatAreNoneDoNotCrash) {
  ForEach(false, [](const std::string& text, int64_t d, Role role, const Contract&) {
    const auto codec = MustMake(text, d, role);
    Matrix<float> x = SomeRows(Rows::kGaussian, kPageTokens, d, 6), back(kPageTokens, d);
    x.Row(3)[1] = std::numeric_limits<float>::quiet_NaN();
    x.Row(40)[d - 1] = std::numeric_limits<float>::infinity();
    x.Row(77)[0] = -std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < d; ++i) x.Row(100)[i] = 3.4e38f;
    Buffer page(codec->PageBytes());
    codec->Encode(x.View(), 0, page.data());
    codec->Decode(page.data(), 0, back.View());
    // Rows of other groups are not touched.
    const int64_t g = codec->Granularity();
    if (g > 32) return;
    for (int64_t i = 0; i < d; ++i) EXPECT_TRUE(std::isfinite(back.Row(127)[i])) << Where(text, d, role);
  });
}

// Pages made on different targets decode to the same numbers, up to the last bit of a 16-bit scale.
TEST(Conformance, PagesDoNotDependOnTheTarget) {
  ForEach(true, [](const std::string& text, int64_t d, Role role, const Contract&) {
    if (d != 80 && d != 128) return;
    const auto codec = MustMake(text, d, role);
    const Matrix<float> x = SomeRows(Rows::kHeavyTailed, kPageTokens, d, 8);
    std::vector<Matrix<float>> decoded;
    for (const simd::Target target : simd::Reachable()) {
      ASSERT_TRUE(simd::Force(simd::Name(target)));
      Buffer page(codec->PageBytes());
      codec->Encode(x.View(), 0, page.data());
      ASSERT_TRUE(simd::Force(""));
      decoded.emplace_back(kPageTokens, d);
      codec->Decode(page.data(), 0, decoded.back().View());
    }
    for (const Matrix<float>& other : decoded)
      for (int64_t t = 0; t < kPageTokens; ++t) {
        double e = 0, p = 0;
        for (int64_t i = 0; i < d; ++i) {
          const double v = double(other.Row(t)[i]), diff = v - double(decoded[0].Row(t)[i]);
          e += diff * diff, p += v * v;
        }
        EXPECT_LE(std::sqrt(e), 1e-3 * std::sqrt(p)) << Where(text, d, role) << " token " << t;
      }
  });
}

}  // namespace
}  // namespace croquis::codecs
