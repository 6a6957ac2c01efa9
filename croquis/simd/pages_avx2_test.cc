// What the AVX2 and AVX-VNNI forms promise beyond the bounds that page_kernels_test.cc checks: integer arithmetic equal
// to the plain form's to the last bit, for every width of code, and groups of rows larger than their scratch holds.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/simd/page_kernels.h"

namespace croquis::simd {
namespace {

enum class Kind { kAffine, kTable, kTwoPlanes };

struct Case {
  PageLayout layout;
  Kind kind;
  Precision precision;
  bool negative;  // some scales below zero: weights are signed
};

Levels MakeLevels(const Case& c, Stream s) {
  Levels levels;
  levels.planes = c.kind == Kind::kTwoPlanes ? 2 : 1;
  levels.step = 0.07f;
  for (size_t i = 0; i < 256; ++i) {
    levels.level[0][i] = c.kind == Kind::kAffine ? int8_t(int(i) - 128) : int8_t(s.U32(i) & 255);
    levels.level[1][i] = int8_t(s.U32(1000 + i) & 255);
  }
  return levels;
}

Buffer MakePage(const Case& c, Stream s) {
  Buffer page(c.layout.Bytes());
  for (size_t i = c.layout.CodesAt(); i < page.size(); ++i) page.data()[i] = std::byte(s.U32(i) & 255);
  auto* half = reinterpret_cast<f16*>(page.data());
  for (size_t i = 0; i < c.layout.CodesAt() / 2; ++i) {
    const float size = 0.25f + s.Uniform(i);
    half[i] = FloatToF16(c.negative ? size * s.Sign(i) : size);
  }
  return page;
}

// Logits and sums of one page by one target's kernels; scratch and query begin as rubbish.
std::vector<float> Products(const PageKernels& k, const Case& c, int64_t rows, Stream s) {
  const Levels levels = MakeLevels(c, s.Sub(1));
  const Buffer page = MakePage(c, s.Sub(2));
  const int64_t dim = c.layout.dim;
  std::vector<float> q(size_t(rows * dim)), p(size_t(rows * kPageTokens)), p_scale(static_cast<size_t>(rows), 0.5f);
  for (size_t i = 0; i < q.size(); ++i) q[i] = s.Gaussian(i);
  for (size_t i = 0; i < p.size(); ++i) p[i] = s.Sub(3).Uniform(i) < 0.3f ? 0.f : s.Sub(4).Uniform(i);
  Buffer query(k.query_bytes(c.layout, levels, c.precision, rows));
  Buffer scratch(k.scratch_bytes(c.layout, levels, c.precision, rows));
  std::memset(query.data(), 0x5A, query.size());
  std::memset(scratch.data(), 0xA5, scratch.size());
  std::vector<float> out(p.size() + q.size(), 0.f);
  k.prepare(c.layout, levels, c.precision, {q.data(), rows, dim}, 0.3f, query.data());
  k.score(c.layout, levels, c.precision, page.data(), query.data(), rows, Upcoming{page.data(), page.size()},
          out.data(), scratch.data());
  k.accumulate(c.layout, levels, c.precision, page.data(), p.data(), p_scale.data(), rows, {},
               {out.data() + p.size(), rows, dim}, scratch.data());
  return out;
}

std::vector<Target> Forms() {
  std::vector<Target> forms;
  for (const Target t : Reachable())
    if (t == Target::kAvx2 || t == Target::kAvxVnni) forms.push_back(t);
  return forms;
}

class PagesAvx2Test : public testing::TestWithParam<Target> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PagesAvx2Test);

TEST_P(PagesAvx2Test, EqualsThePlainFormBitForBit) {
  const PageKernels& fast = Pages(GetParam());
  ASSERT_EQ(fast.target, GetParam());
  uint64_t number = 0;
  for (int bits = 1; bits <= 8; ++bits) {
    for (const Kind kind : {Kind::kAffine, Kind::kTable, Kind::kTwoPlanes}) {
      for (const Precision precision : {Precision::kFast, Precision::kFine}) {
        for (const bool negative : {false, true}) {
          for (const int dim : {32, 96, 512}) {
            const uint64_t n = number++;
            const Case c = {{dim, bits, n % 2 ? dim / 32 : 1, n % 3 == 0}, kind, precision, negative};
            // 1..9 rows in turn; now and then more than are held in scratch at once (32).
            const int64_t rows = dim == 32 && n % 5 == 0 ? 37 : 1 + int64_t(n % (dim == 512 ? 2 : 9));
            const Stream s{n, Purpose("pages_avx2_test")};
            const std::vector<float> want = Products(Pages(Target::kScalar), c, rows, s);
            const std::vector<float> got = Products(fast, c, rows, s);
            for (size_t i = 0; i < want.size(); ++i) {
              ASSERT_EQ(got[i], want[i]) << "bits " << bits << " kind " << int(kind) << " precision " << int(precision)
                                         << " signed " << negative << " dim " << dim << " runs " << c.layout.runs
                                         << " mins " << c.layout.mins << " rows " << rows << " element " << i;
            }
          }
        }
      }
    }
  }
}

std::string FormName(const testing::TestParamInfo<Target>& info) { return std::string(Name(info.param)); }
INSTANTIATE_TEST_SUITE_P(Targets, PagesAvx2Test, testing::ValuesIn(Forms()), FormName);

}  // namespace
}  // namespace croquis::simd
