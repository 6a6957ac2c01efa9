// ggml's formats on pages: the page holds exactly the blocks that quantising the rows gives, and decodes to the same
// numbers.
#include "croquis/codecs/ggml/ggml_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/codecs/kivi/minmax.h"

namespace croquis::codecs {
namespace {

struct Format {
  const char* name;
  GgmlType type;
  double bits;
};
constexpr Format kFormats[] = {{"q8_0", GgmlType::kQ8_0, 8.5}, {"q5_1", GgmlType::kQ5_1, 6},
                               {"q5_0", GgmlType::kQ5_0, 5.5}, {"q4_1", GgmlType::kQ4_1, 5},
                               {"q4_0", GgmlType::kQ4_0, 4.5}, {"iq4_nl", GgmlType::kIq4Nl, 4.5}};

// Gaussian rows of very different size, some zero.
Matrix<float> SomeRows(int64_t rows, int64_t d) {
  Matrix<float> x(rows, d);
  const Stream s{11, Purpose("ggml.page.test")};
  for (int64_t r = 0; r < rows; ++r) {
    const float size = r % 7 == 0 ? 0 : std::exp2(float(r % 19) - 9);
    for (int64_t i = 0; i < d; ++i) x.Row(r)[i] = size * s.Gaussian(uint64_t(r * d + i));
  }
  return x;
}

void CheckPage(const Format& f, int64_t d, Role role, bool hadamard) {
  SCOPED_TRACE(std::string(f.name) + " " + std::to_string(d) + (role == Role::kKey ? " keys" : " values"));
  constexpr uint64_t kSeed = 5;
  const auto codec = Make(std::string(f.name) + (hadamard ? ":hadamard=1" : ""), d, role, kSeed);
  ASSERT_TRUE(codec);
  EXPECT_EQ((*codec)->BitsPerNumber(), f.bits);
  const Matrix<float> x = SomeRows(kPageTokens, d);
  Matrix<float> basis(kPageTokens, d), decoded(kPageTokens, d), want_rows(kPageTokens, d);
  std::memcpy(basis.data(), x.data(), size_t(kPageTokens * d) * 4);
  if (hadamard) transforms::Rotation::Make(d, 1, kSeed)->Apply(x.View(), basis.View());
  const size_t row_bytes = size_t(d / 32) * BlockBytes(f.type);
  std::vector<std::byte> want(row_bytes * size_t(kPageTokens)), got(want.size());
  ASSERT_TRUE(Quantize(f.type, basis.data(), kPageTokens * d, want.data()));
  Buffer page((*codec)->PageBytes());
  (*codec)->Encode(x.View(), 0, page.data());
  ExportBlocks(f.type, d, role, page.data(), 0, kPageTokens, got.data());
  EXPECT_EQ(want, got);
  std::vector<std::byte> part(row_bytes * 3);
  ExportBlocks(f.type, d, role, page.data(), 50, 3, part.data());
  EXPECT_EQ(std::memcmp(part.data(), &want[50 * row_bytes], part.size()), 0);
  if (hadamard) return;
  (*codec)->Decode(page.data(), 0, decoded.View());
  ASSERT_TRUE(Dequantize(f.type, want.data(), kPageTokens * d, want_rows.data()));
  for (int64_t i = 0; i < kPageTokens * d; ++i) ASSERT_EQ(decoded.data()[i], want_rows.data()[i]) << i;
}

TEST(GgmlCodec, PagesHoldGgmlsBlocks) {
  for (const Format& f : kFormats) {
    for (const int64_t d : {32, 64, 96, 128, 256}) {
      for (const Role role : {Role::kKey, Role::kValue}) {
        CheckPage(f, d, role, false);
        CheckPage(f, d, role, true);
      }
    }
  }
}

TEST(GgmlCodec, OtherHeadSizesAreRefusedInWords) {
  for (const Format& f : kFormats) {
    for (const int64_t d : {8, 80, 112}) {
      const auto codec = Make(f.name, d, Role::kKey);
      ASSERT_FALSE(codec);
      EXPECT_NE(codec.error().message.find("multiple of 32; got " + std::to_string(d)), std::string::npos);
    }
  }
}

// The stated errors of the asymmetric formats are measured; the integral of the min/max quantiser must give the
// same up to the rounding of scale and minimum to f16 (q5_1: 2^-24 / 3 of the squared minimum, under 1e-6).
TEST(GgmlCodec, StatedErrorsAgreeWithTheIntegral) {
  EXPECT_NEAR(GgmlContract(GgmlType::kQ4_1, 128)->rel_mse, MinMaxGaussianMse(15, 32), 1.5e-6 + 1e-5);
  EXPECT_NEAR(GgmlContract(GgmlType::kQ5_1, 128)->rel_mse, MinMaxGaussianMse(31, 32), 1.5e-6 + 3e-6);
}

}  // namespace
}  // namespace croquis::codecs
