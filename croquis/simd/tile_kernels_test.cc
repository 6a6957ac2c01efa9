// Every target's tile kernels against the portable ones.
#include "croquis/simd/tile_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "croquis/base/dtype.h"
#include "croquis/base/memory.h"
#include "croquis/base/rng.h"
#include "croquis/simd/tile_internal.h"

namespace croquis::simd {
namespace {

// Kernels that this machine can run, beside the portable ones.
std::vector<const TileKernels*> Kernels(TileType type) {
  std::vector<const TileKernels*> all;
  for (const Target target : Reachable())
    if (target != Target::kScalar && (all.empty() || all.back() != &Tiles(type, target)))
      all.push_back(&Tiles(type, target));
#if defined(__x86_64__)
  if (Reachable().back() >= Target::kAvx512 && type == TileType::kBf16)
    for (const bool pairs : {false, true}) all.push_back(&TilesAvx512(type, pairs));
#endif
  return all;
}

class Rows {
 public:
  Rows(RowType type, int64_t rows, int64_t dim, float size, uint64_t seed) : type_(type), rows_(rows) {
    data_.resize(size_t(rows * dim * RowTypeBytes(type)));
    const Stream random{seed, Purpose("simd.tile_kernels_test")};
    for (int64_t i = 0; i < rows * dim; ++i) {
      const float x = size * random.Gaussian(uint64_t(i));
      if (type == RowType::kF32)
        reinterpret_cast<float*>(data_.data())[i] = x;
      else
        reinterpret_cast<uint16_t*>(data_.data())[i] = type == RowType::kF16 ? FloatToF16(x) : FloatToBf16(x);
    }
  }
  RowType type() const { return type_; }
  int64_t rows() const { return rows_; }
  const std::byte* data() const { return data_.data(); }

 private:
  RowType type_;
  int64_t rows_;
  std::vector<std::byte> data_;
};

std::string Where(const TileKernels& k, TileType type, int64_t rows, int64_t keys, int64_t dim, int64_t value_dim) {
  return std::string(k.name) + (type == TileType::kBf16 ? " bf16 " : " f32 ") + std::to_string(rows) + " x " +
         std::to_string(keys) + ", dims " + std::to_string(dim) + ", " + std::to_string(value_dim);
}

const int64_t kDims[][2] = {{1, 1},   {16, 16},  {17, 33},   {33, 17},   {64, 64},   {80, 96},
                            {96, 80}, {128, 48}, {128, 128}, {256, 256}, {300, 112}, {64, 1}};

TEST(TileKernels, PackedTilesAreTheSameBits) {
  const std::vector<int32_t> index = {7, 3, 99, 0, 0, 41, 64, 12, 98, 5};
  for (const TileType type : {TileType::kF32, TileType::kBf16})
    for (const TileKernels* kernels : Kernels(type))
      for (const RowType row_type : {RowType::kF32, RowType::kF16, RowType::kBf16})
        for (const auto& [dim, value_dim] : kDims) {
          const TileLayout layout{type, dim, value_dim};
          const Rows k(row_type, 100, dim, 1, 1), v(row_type, 100, value_dim, 1, 2);
          for (const int64_t n : {1, 10, 31, 63, 64}) {
            SCOPED_TRACE(Where(*kernels, type, 0, n, dim, value_dim));
            const int32_t* gather = n == 10 ? index.data() : nullptr;
            Buffer keys[2], values[2], queries[2];
            for (int i = 0; i < 2; ++i) {
              const TileKernels& with = i == 0 ? TilesScalar(type) : *kernels;
              // What stood there before must not matter.
              keys[i] = Buffer(layout.KeyBlockBytes()), values[i] = Buffer(layout.ValueBlockBytes());
              queries[i] = Buffer(layout.QueryBytes());
              for (Buffer* b : {&keys[i], &values[i], &queries[i]}) std::fill_n(b->data(), b->size(), std::byte(0x7f));
              with.pack_block(layout, row_type, k.data(), dim, v.data(), value_dim, gather, n, keys[i].data(),
                              values[i].data());
              with.pack_queries(layout, row_type, k.data(), dim, gather, n,
                                type == TileType::kF32 ? .37f
                                : n % 2 == 0           ? -1.f
                                                       : 1.f,
                                queries[i].data());
            }
            const auto same = [](const Buffer& a, const Buffer& b) {
              return std::equal(a.data(), a.data() + a.size(), b.data());
            };
            EXPECT_TRUE(same(keys[0], keys[1]));
            EXPECT_TRUE(same(values[0], values[1]));
            EXPECT_TRUE(same(queries[0], queries[1]));
          }
        }
}

// A call and the state it leaves.
struct Call {
  TileType type;
  int64_t rows = 64, keys = 64, dim = 64, value_dim = 64;
  int64_t begin = 0, end = -1;  // -1: all keys
  float size = 1;               // standard deviation of queries and keys
  bool ranges = false, biased = false, factors = false;
  bool blind = false;  // with ranges: no row sees anything
  int calls = 1;       // the keys are taken in by so many calls
  int more = 0;        // further ranges of the last call, of some rows each
};

struct State {
  std::vector<float> max, mass, answer;  // answer: sums over mass
};

State Attend(const TileKernels& kernels, const Call& c) {
  const TileLayout layout{c.type, c.dim, c.value_dim};
  const RowType row_type = c.type == TileType::kBf16 ? RowType::kBf16 : RowType::kF32;
  const Rows q(row_type, c.rows, c.dim, c.size, 3), k(row_type, c.keys, c.dim, c.size, 4),
      v(row_type, c.keys, c.value_dim, 1, 5);
  const int64_t blocks = (c.keys + kTileKeys - 1) / kTileKeys, end = c.end < 0 ? c.keys : c.end;
  Buffer keys(size_t(blocks) * layout.KeyBlockBytes()), values(size_t(blocks) * layout.ValueBlockBytes()),
      queries(layout.QueryBytes()), scratch(kernels.scratch_bytes(layout));
  for (int64_t b = 0; b < blocks; ++b)
    kernels.pack_block(layout, row_type, k.data() + b * kTileKeys * c.dim * RowTypeBytes(row_type), c.dim,
                       v.data() + b * kTileKeys * c.value_dim * RowTypeBytes(row_type), c.value_dim, nullptr,
                       std::min(kTileKeys, c.keys - b * kTileKeys), keys.data() + size_t(b) * layout.KeyBlockBytes(),
                       values.data() + size_t(b) * layout.ValueBlockBytes());
  kernels.pack_queries(layout, row_type, q.data(), c.dim, nullptr, c.rows, 1, queries.data());
  const Stream random{9, Purpose("simd.tile_kernels_test")};
  std::vector<int32_t> first, last;
  std::vector<float> bias, row_factor, key_factor;
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t a = int64_t(random.U32(uint64_t(r)) % uint64_t(c.keys + 9)),
                  b = int64_t(random.U32(uint64_t(1000 + r)) % uint64_t(c.keys + 9));
    first.push_back(int32_t(c.blind ? 5 : std::min(a, b)));
    last.push_back(int32_t(c.blind ? 5 : std::max(a, b)));
    row_factor.push_back(random.Gaussian(uint64_t(2000 + r)));
  }
  for (int64_t j = 0; j < blocks * kTileKeys; ++j) {
    bias.push_back(j % 3 == 0 ? kMasked : random.Gaussian(uint64_t(3000 + j)));
    key_factor.push_back(random.Gaussian(uint64_t(9000 + j)));
  }
  Matrix<float> sums(kTileRows, layout.PaddedValueDim());
  State state;
  state.max.assign(size_t(c.rows), kMasked);
  state.mass.assign(size_t(c.rows), 0);
  for (int i = 0; i < c.calls; ++i) {
    TileCall call;
    call.layout = layout;
    call.queries = queries.data(), call.rows = c.rows;
    call.keys = keys.data(), call.values = values.data();
    call.begin = c.begin + (end - c.begin) * i / c.calls, call.end = c.begin + (end - c.begin) * (i + 1) / c.calls;
    call.scale = 1.44f / std::sqrt(float(c.dim));
    if (c.ranges) call.first = first.data(), call.last = last.data();
    if (c.biased) call.bias = bias.data();
    if (c.factors) call.row_factor = row_factor.data(), call.key_factor = key_factor.data();
    call.max = state.max.data(), call.mass = state.mass.data(), call.sums = sums.View();
    call.scratch = scratch.data();
    std::vector<TileRange> more(size_t(i + 1 == c.calls ? c.more : 0), call);
    for (size_t m = 0; m < more.size(); ++m) {
      TileRange& range = more[m];
      range.begin = int64_t(m) * 29 % c.keys, range.end = std::min(c.keys, range.begin + int64_t(m) * 77);
      range.row_begin = int64_t(m % 4) * 16, range.row_end = range.row_begin + int64_t(m % 3 + 1) * 16;
      if (m % 2 == 0) range.first = range.last = nullptr;
      if (m % 3 == 0) range.bias = nullptr;
    }
    call.more = more.data(), call.more_ranges = int64_t(more.size());
    kernels.attend(call);
  }
  for (int64_t r = 0; r < c.rows; ++r)
    for (int64_t i = 0; i < c.value_dim; ++i)
      state.answer.push_back(state.mass[size_t(r)] == 0 ? sums.Row(r)[i] : sums.Row(r)[i] / state.mass[size_t(r)]);
  return state;
}

void ExpectSame(const Call& c) {
  const State want = Attend(TilesScalar(c.type), c);
  for (const TileKernels* kernels : Kernels(c.type)) {
    SCOPED_TRACE(Where(*kernels, c.type, c.rows, c.keys, c.dim, c.value_dim) + ", keys " + std::to_string(c.begin) +
                 " to " + std::to_string(c.end) + (c.ranges ? ", ranges" : "") + (c.biased ? ", bias" : "") +
                 (c.factors ? ", factors" : "") + ", size " + std::to_string(c.size) + ", calls " +
                 std::to_string(c.calls));
    const State got = Attend(*kernels, c);
    // Logits are sums of `dim` products of that size in f32; bf16 weights have 8 bits.
    const double logits = 1.44 * c.size * c.size * std::sqrt(double(c.dim)), weights = std::max(1e-6, 4e-7 * logits),
                 answers = c.type == TileType::kBf16 ? 8e-3 + weights : 8 * weights;
    for (size_t r = 0; r < size_t(c.rows); ++r) {
      ASSERT_EQ(got.mass[r] == 0, want.mass[r] == 0) << "row " << r;
      if (want.mass[r] == 0) {
        ASSERT_EQ(got.max[r], kMasked);
      } else {
        const double lse = got.max[r] + std::log2(double(got.mass[r])),
                     right = want.max[r] + std::log2(double(want.mass[r]));
        ASSERT_NEAR(lse, right, (c.type == TileType::kBf16 ? 2e-4 : 2e-6) + 4 * weights) << "row " << r;
      }
      for (int64_t i = 0; i < c.value_dim; ++i)
        ASSERT_NEAR(got.answer[r * size_t(c.value_dim) + size_t(i)], want.answer[r * size_t(c.value_dim) + size_t(i)],
                    5 * answers)
            << "row " << r << ", number " << i;
    }
  }
}

TEST(TileKernels, AttendEqualsThePortableForm) {
  for (const TileType type : {TileType::kF32, TileType::kBf16}) {
    for (const auto& [dim, value_dim] : kDims)
      ExpectSame({.type = type, .rows = 37, .keys = 150, .dim = dim, .value_dim = value_dim, .ranges = dim % 2 == 0});
    for (int64_t rows = 1; rows <= 64; rows += rows % 5 + 1)
      ExpectSame({.type = type, .rows = rows, .keys = 200, .dim = 32, .value_dim = 48, .ranges = rows % 2 == 0});
    for (const int64_t keys : {1, 63, 64, 65, 128, 640})
      ExpectSame({.type = type, .rows = 64, .keys = keys, .dim = 40, .value_dim = 16});
    ExpectSame({.type = type, .rows = 50, .keys = 700, .begin = 77, .end = 603});
    ExpectSame({.type = type, .rows = 50, .keys = 300, .begin = 130, .end = 131});
    ExpectSame({.type = type, .rows = 64, .keys = 700, .begin = 3, .end = 650, .ranges = true, .calls = 5});
    ExpectSame({.type = type, .rows = 64, .keys = 300, .biased = true});
    ExpectSame({.type = type, .rows = 61, .keys = 300, .factors = true, .calls = 2});
    ExpectSame({.type = type, .rows = 64, .keys = 300, .ranges = true, .biased = true, .factors = true, .calls = 3});
    for (const int64_t rows : {15, 50, 64}) {
      ExpectSame({.type = type, .rows = rows, .keys = 300, .begin = 7, .more = 9});
      ExpectSame({.type = type, .rows = rows, .keys = 300, .begin = 9, .end = 9, .ranges = true, .more = 7});
      ExpectSame({.type = type, .rows = rows, .keys = 300, .biased = true, .factors = true, .calls = 2, .more = 8});
    }
  }
}

TEST(TileKernels, ProductsWithAMatrix) {
  for (const TileType type : {TileType::kF32, TileType::kBf16})
    for (const auto& [dim, value_dim] : kDims)
      for (const int64_t rows : {1, 23, 64}) {
        const TileLayout layout{type, dim, value_dim};
        const Rows q(RowType::kF32, rows, dim, 1, 6), matrix(RowType::kF32, dim, value_dim, 1, 7);
        std::vector<float> weights;
        for (int64_t r = 0; r < rows; ++r) weights.push_back(float(r % 5) - 2);
        std::vector<const TileKernels*> all = Kernels(type);
        all.insert(all.begin(), &TilesScalar(type));
        Matrix<float> want;
        for (const TileKernels* kernels : all) {
          SCOPED_TRACE(Where(*kernels, type, rows, 0, dim, value_dim));
          const int64_t blocks = (dim + kTileKeys - 1) / kTileKeys;
          Buffer packed(size_t(blocks) * layout.ValueBlockBytes()),
              unused(TileLayout{type, 1, value_dim}.KeyBlockBytes()), queries(layout.QueryBytes()),
              scratch(kernels->scratch_bytes(layout));
          for (int64_t b = 0; b < blocks; ++b) {
            const std::byte* from = matrix.data() + b * kTileKeys * value_dim * 4;
            kernels->pack_block({type, 1, value_dim}, RowType::kF32, from, value_dim, from, value_dim, nullptr,
                                std::min(kTileKeys, dim - b * kTileKeys), unused.data(),
                                packed.data() + size_t(b) * layout.ValueBlockBytes());
          }
          kernels->pack_queries(layout, RowType::kF32, q.data(), dim, nullptr, rows, 1, queries.data());
          Matrix<float> sums(kTileRows, layout.PaddedValueDim());
          std::fill_n(sums.data(), kTileRows * sums.cols(), 3.f);
          kernels->add_products(
              {layout, queries.data(), rows, packed.data(), weights.data(), sums.View(), scratch.data()});
          if (kernels == all[0]) {
            want = std::move(sums);
            continue;
          }
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < value_dim; ++i)
              ASSERT_NEAR(sums.Row(r)[i], want.Row(r)[i], 1e-5 * double(dim)) << r << " " << i;
          for (int64_t i = 0; rows < kTileRows && i < value_dim; ++i) EXPECT_EQ(sums.Row(rows)[i], 3);
        }
      }
}

// The largest logits come late and are far above the others: references move, and far keys get weights of zero.
TEST(TileKernels, HugeLogits) {
  for (const TileType type : {TileType::kF32, TileType::kBf16})
    for (const float size : {6.f, 35.f, 100.f})  // logits to +-1e3, 4e4, 3e5
      ExpectSame({.type = type, .rows = 64, .keys = 320, .dim = 64, .value_dim = 32, .size = size, .ranges = true});
}

TEST(TileKernels, RowsThatSeeNothingKeepTheEmptyState) {
  for (const TileType type : {TileType::kF32, TileType::kBf16}) {
    ExpectSame({.type = type, .rows = 33, .keys = 100, .ranges = true, .blind = true});
    Call masked{.type = type, .rows = 20, .keys = 1, .biased = true};  // one key, of bias kMasked
    const State state = Attend(Tiles(type), masked);
    for (const float mass : state.mass) EXPECT_EQ(mass, 0);
    ExpectSame(masked);
  }
}

}  // namespace
}  // namespace croquis::simd
