// polarquant: random rotation, four levels of polar coordinates, quantised angles and one radius for 16 numbers
// (Han, Kacham, Karbasi, Mirrokni, Zandieh; arXiv 2502.02617).
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "croquis/base/dtype.h"
#include "croquis/codecs/generic_codec.h"
#include "croquis/codecs/polarquant/angles.h"

namespace croquis::codecs {
namespace {

constexpr int64_t kGroup = 32, kGroups = kPageTokens / kGroup;  // tokens that share an online codebook
constexpr int64_t kMaxBlocks = GenericCodec::kMaxDim / kPolarBlock;
constexpr float kMaxHalf = 65504;

constexpr ParamInfo kParams[] = {
    {"levels", "4222", 0, 0, "4222|3222|5333", "bits of the angles of levels 1 to 4"},
    {"codebook", "analytic", 0, 0, "analytic|online",
     "levels 2 to 4: Lloyd-Max on the known densities, or fitted to every 32 tokens"},
};

using Books = std::array<AngleBook, kPolarLevels>;

struct Shape {
  int64_t blocks;                      // of 16 numbers in a padded row
  std::array<int, kPolarLevels> bits;  // of an angle
  bool online;

  // A page: the first-level codes, `bits[0]` bytes a block; the other levels' codes, UpperBits a block, as a
  // string of bits a token; the online codebooks in f16; the radii in f16.
  int UpperBits() const { return 4 * bits[1] + 2 * bits[2] + bits[3]; }
  int64_t FirstBytes() const { return blocks * bits[0]; }
  int64_t UpperBytes() const { return (blocks * UpperBits() + 7) / 8; }
  int64_t BookEntries() const { return online ? (1 << bits[1]) + (1 << bits[2]) + (1 << bits[3]) : 0; }
  int64_t UpperAt() const { return kPageTokens * FirstBytes(); }
  int64_t BooksAt() const { return UpperAt() + kPageTokens * UpperBytes(); }
  int64_t RadiiAt() const { return BooksAt() + kGroups * BookEntries() * 2; }
  size_t PageBytes() const { return RoundUp64(size_t(RadiiAt() + kPageTokens * blocks * 2)); }
};

// The radii of one block of 16 on every level: r[0] the numbers themselves, r[4] one radius.
struct Radii {
  std::array<std::array<float, kPolarBlock>, kPolarLevels + 1> r;

  explicit Radii(const float* x) {
    std::copy_n(x, kPolarBlock, r[0].begin());
    for (size_t l = 0; l < kPolarLevels; ++l) {
      for (size_t j = 0; j < size_t{kPolarBlock} >> (l + 1); ++j) {
        const float a = r[l][2 * j], b = r[l][2 * j + 1];
        r[l + 1][j] = std::sqrt(a * a + b * b);
      }
    }
  }
};

class PolarQuant final : public GenericCodec {
 public:
  PolarQuant(const CodecRequest& request, const Shape& shape, transforms::Rotation rotation)
      : GenericCodec(request, std::move(rotation)), shape_(shape) {
    for (int l = 0; l < kPolarLevels; ++l) books_[size_t(l)] = AnalyticBook(l + 1, shape.bits[size_t(l)]);
  }

  size_t PageBytes() const noexcept override { return shape_.PageBytes(); }
  int64_t Granularity() const noexcept override { return shape_.online ? kGroup : 16; }

  void Encode(MatView<const float> x, int64_t first, std::byte* page) const noexcept override {
    const int64_t dim = BasisDim(), step = Granularity();
    float y[kGroup * kMaxDim];
    for (int64_t begin = 0; begin < x.rows; begin += step) {
      for (int64_t t = 0; t < step; ++t) GetRotation()->Apply(x.Row(begin + t), y + t * dim);
      Books fitted;
      if (shape_.online) {
        const int64_t group = (first + begin) / kGroup;
        FitBooks(y, BookAt(page, group));
        fitted = LoadBooks(page, group);
      }
      for (int64_t t = 0; t < step; ++t)
        EncodeRow(y + t * dim, shape_.online ? fitted : books_, first + begin + t, page);
    }
  }

 protected:
  void DecodeTile(const std::byte* page, int64_t first, int64_t count, float* x) const noexcept override {
    Books loaded;
    int64_t group = -1;
    for (int64_t t = first; t < first + count; ++t, x += BasisDim()) {
      if (shape_.online && t / kGroup != group) {
        group = t / kGroup;
        loaded = LoadBooks(page, group);
      }
      DecodeRow(page, t, shape_.online ? loaded : books_, x);
    }
  }

 private:
  f16* BookAt(std::byte* page, int64_t group) const noexcept {
    return reinterpret_cast<f16*>(page + shape_.BooksAt()) + group * shape_.BookEntries();
  }

  // Starts at the analytic codebooks and fits levels 2 to 4 to the angles of 32 rows. Level 1 stays uniform: after the
  // rotation no direction of a pair is distinguished.
  void FitBooks(const float* y, f16* stored) const noexcept {
    std::array<float, kGroup * kMaxBlocks * 4> angles;
    for (size_t l = 1; l < kPolarLevels; ++l) {
      size_t n = 0;
      for (int64_t b = 0; b < kGroup * shape_.blocks; ++b) {
        const Radii radii(y + b * kPolarBlock);
        for (size_t j = 0; j < size_t{kPolarBlock} >> (l + 1); ++j) {
          const float a = radii.r[l][2 * j], c = radii.r[l][2 * j + 1];
          if (a + c > 0 && a + c < 1e30f) angles[n++] = std::atan2(c, a);
        }
      }
      std::array<float, 32> centroids = books_[l].angle;
      const size_t entries = size_t{1} << shape_.bits[l];
      FitAngles({angles.data(), n}, {centroids.data(), entries});
      for (size_t i = 0; i < entries; ++i) *stored++ = FloatToF16(centroids[i]);
    }
  }

  Books LoadBooks(const std::byte* page, int64_t group) const noexcept {
    Books books;
    books[0] = books_[0];
    const f16* stored = reinterpret_cast<const f16*>(page + shape_.BooksAt()) + group * shape_.BookEntries();
    for (size_t l = 1; l < kPolarLevels; ++l) {
      std::array<float, 32> angle;
      const size_t entries = size_t{1} << shape_.bits[l];
      for (size_t i = 0; i < entries; ++i) angle[i] = F16ToFloat(*stored++);
      books[l] = AngleBook::FromCentroids({angle.data(), entries});
    }
    return books;
  }

  void EncodeRow(const float* y, const Books& books, int64_t t, std::byte* page) const noexcept {
    std::byte* first = page + t * shape_.FirstBytes();
    std::byte* upper = page + shape_.UpperAt() + t * shape_.UpperBytes();
    f16* radius = reinterpret_cast<f16*>(page + shape_.RadiiAt()) + t * shape_.blocks;
    std::memset(upper, 0, size_t(shape_.UpperBytes()));
    int64_t bit = 0;
    for (int64_t b = 0; b < shape_.blocks; ++b) {
      const Radii radii(y + b * kPolarBlock);
      uint64_t codes = 0;
      for (size_t j = 0; j < 8; ++j) {
        codes |= uint64_t(books[0].CircleCode(radii.r[0][2 * j], radii.r[0][2 * j + 1]))
                 << (j * size_t(shape_.bits[0]));
      }
      for (int k = 0; k < shape_.bits[0]; ++k) *first++ = std::byte(uint8_t(codes >> (8 * k)));
      for (size_t l = 1; l < kPolarLevels; ++l) {
        for (size_t j = 0; j < size_t{kPolarBlock} >> (l + 1); ++j) {
          const int code = books[l].QuadrantCode(radii.r[l][2 * j], radii.r[l][2 * j + 1]);
          for (int k = 0; k < shape_.bits[l]; ++k, ++bit) upper[bit / 8] |= std::byte((code >> k & 1) << (bit % 8));
        }
      }
      const float r = radii.r[kPolarLevels][0];
      radius[b] = FloatToF16(r < kMaxHalf ? r : r >= kMaxHalf ? kMaxHalf : 0.f);  // NaN gives 0
    }
  }

  void DecodeRow(const std::byte* page, int64_t t, const Books& books, float* x) const noexcept {
    const std::byte* first = page + t * shape_.FirstBytes();
    const std::byte* upper = page + shape_.UpperAt() + t * shape_.UpperBytes();
    const f16* radius = reinterpret_cast<const f16*>(page + shape_.RadiiAt()) + t * shape_.blocks;
    const int block_bits = shape_.UpperBits();
    for (int64_t b = 0; b < shape_.blocks; ++b, x += kPolarBlock) {
      // Loads of 8 and 4 bytes may reach past their field, never past the radii that follow.
      uint64_t codes;
      uint32_t rest;
      std::memcpy(&codes, first + b * shape_.bits[0], 8);
      std::memcpy(&rest, upper + b * block_bits / 8, 4);
      rest >>= b * block_bits % 8;
      std::array<float, kPolarBlock> r, next;
      r[0] = F16ToFloat(radius[b]);
      std::array<uint32_t, kPolarLevels> at = {0, 0, uint32_t(4 * shape_.bits[1]), 0};
      at[3] = at[2] + uint32_t(2 * shape_.bits[2]);
      for (size_t l = kPolarLevels - 1; l >= 1; --l) {
        const size_t pairs = size_t{kPolarBlock} >> (l + 1);
        const uint32_t mask = (1u << shape_.bits[l]) - 1;
        for (size_t j = 0; j < pairs; ++j) {
          const uint32_t code = rest >> (at[l] + j * uint32_t(shape_.bits[l])) & mask;
          next[2 * j] = r[j] * books[l].cos[code];
          next[2 * j + 1] = r[j] * books[l].sin[code];
        }
        r = next;
      }
      const uint64_t mask = (uint64_t{1} << shape_.bits[0]) - 1;
      for (size_t j = 0; j < 8; ++j, codes >>= shape_.bits[0]) {
        x[2 * j] = r[j] * books[0].cos[codes & mask];
        x[2 * j + 1] = r[j] * books[0].sin[codes & mask];
      }
    }
  }

  Shape shape_;
  Books books_;
};

Shape ShapeOf(int64_t head_dim, const Spec& spec) {
  Shape s{transforms::Rotation::Padded(head_dim) / kPolarBlock, {}, spec.Word("codebook") == "online"};
  const std::string_view word = spec.Word("levels");
  for (size_t l = 0; l < kPolarLevels; ++l) s.bits[l] = word[l] - '0';
  return s;
}

// Rows are padded to a multiple of 32. Zeros in other numbers than 16 would make the 16 of a block depend on each
// other, and the angles' densities would be wrong.
Status CheckHeadDim(int64_t head_dim) {
  if (head_dim > 0 && head_dim % kPolarBlock == 0) return {};
  return Unsupported("polarquant keeps one radius for 16 numbers, so head_dim must be a multiple of 16; got " +
                     std::to_string(head_dim) + ". eden, int8 and kivi take other sizes");
}

// How much of the noise of Gaussian rows is left by Decode, which drops what lies in the padding. Every 16 rotated
// numbers have independent noise proportional to their variance, and variances differ between blocks when zeros
// are padded: |P R^T e|^2 / |e|^2 = sum_p v_p w_p / sum_p v_p with v_p the variance of number p and w_p that of its
// block.
double KeptNoise(const transforms::Rotation& rotation) {
  const int64_t padded = rotation.PaddedDim();
  std::array<float, GenericCodec::kMaxDim> x{}, y{};
  std::array<double, GenericCodec::kMaxDim> variance{};
  for (int64_t i = 0; i < rotation.HeadDim(); ++i) {
    x[size_t(i)] = 1;
    rotation.Apply(x.data(), y.data());
    x[size_t(i)] = 0;
    for (size_t p = 0; p < size_t(padded); ++p) variance[p] += double(y[p]) * double(y[p]);
  }
  double kept = 0, all = 0;
  for (size_t begin = 0; begin < size_t(padded); begin += kPolarBlock) {
    double block = 0;
    for (size_t p = begin; p < begin + kPolarBlock; ++p) block += variance[p];
    kept += block * block / kPolarBlock;
    all += block;
  }
  return kept / all;
}

// Fitted codebooks are a little better on the rows that they were fitted to: the loss of a level with k entries and n
// angles shrinks by about (1.5 + .23 k) k / n (measured at 4 and 8 entries, head sizes 48 to 256).
double FittedGain(const Shape& s, int level) {
  if (!s.online || level == 1) return 1;
  const double entries = double(1 << s.bits[size_t(level) - 1]);
  return 1 - (1.5 + 0.23 * entries) * entries / double(kGroup * s.blocks * (kPolarBlock >> level));
}

// What is decoded from a unit vector is a unit vector, and its projection on the original is the product of the
// levels' mean cosines.
Result<Contract> ContractOf(int64_t head_dim, Role, const Spec& spec) {
  CROQUIS_CHECK_OK(CheckHeadDim(head_dim));
  const Shape s = ShapeOf(head_dim, spec);
  CROQUIS_TRY(const transforms::Rotation rotation, transforms::Rotation::Make(head_dim, 1, 0));
  double slope = 1;
  for (int l = 1; l <= kPolarLevels; ++l) {
    slope *= 1 - (1 - MeanCosine(l, AnalyticBook(l, s.bits[size_t(l) - 1]))) * FittedGain(s, l);
  }
  const double total = 2 - 2 * slope, shrink = (1 - slope) * (1 - slope);
  const double mse = shrink + (total - shrink) * KeptNoise(rotation);
  return Contract{8 * double(s.PageBytes()) / double(kPageTokens * head_dim), mse, false};
}

Result<std::unique_ptr<const Codec>> MakeCodec(const CodecRequest& request) {
  CROQUIS_CHECK_OK(CheckHeadDim(request.head_dim));
  CROQUIS_TRY(transforms::Rotation rotation, transforms::Rotation::Make(request.head_dim, 1, request.seed));
  return std::unique_ptr<const Codec>(
      new PolarQuant(request, ShapeOf(request.head_dim, request.spec), std::move(rotation)));
}

}  // namespace

extern const MethodInfo kMethod_polarquant;
const MethodInfo kMethod_polarquant = {
    "polarquant",       "rotation, recursive polar coordinates, quantised angles, one f16 radius for 16 numbers",
    "arXiv 2502.02617", kParams,
    ContractOf,         MakeCodec};

}  // namespace croquis::codecs
