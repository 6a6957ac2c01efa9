#include "croquis/eval/npy.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "croquis/base/dtype.h"

namespace croquis::eval {
namespace {

std::string File(const std::string& dict, const std::string& numbers, int version = 1) {
  std::string out = "\x93NUMPY";
  out += char(version);
  out += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) out += char(dict.size() >> (8 * i) & 0xFF);
  return out + dict + numbers;
}
std::string Dict(const std::string& descr, const std::string& shape, const std::string& fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }\n";
}
Result<NpyArray> Parse(const std::string& file) {
  return ParseNpy(std::span(reinterpret_cast<const std::byte*>(file.data()), file.size()));
}

TEST(Npy, HeadersThatNumpyWrites) {
  for (int version = 1; version <= 3; ++version) {
    const std::string file = File(Dict("<f4", "(2, 3)"), std::string(24, 'x'), version);
    const auto a = Parse(file);
    ASSERT_TRUE(a) << a.error().message;
    EXPECT_EQ(a->type, simd::RowType::kF32);
    EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(a->numbers.size(), 24u);
    EXPECT_EQ(reinterpret_cast<const char*>(a->numbers.data()) + 24, file.data() + file.size());
  }
  EXPECT_EQ(Parse(File(Dict("<f2", "(4,)"), std::string(8, 0)))->type, simd::RowType::kF16);
  EXPECT_EQ(Parse(File(Dict("|V2", "(4,)"), std::string(8, 0)))->type, simd::RowType::kBf16);
  EXPECT_EQ(Parse(File(Dict("<f4", "()"), std::string(4, 0)))->shape.size(), 0u);
  EXPECT_EQ(Parse(File(Dict("<f4", "(2L, 0L)"), ""))->numbers.size(), 0u);
  // Other writers: double quotes, another order, no comma at the end, a single row in Fortran order, more after it.
  const std::string other = R"({"shape":(3,),"fortran_order":True,"descr":"<f4"})";
  ASSERT_TRUE(Parse(File(other, std::string(12, 0))));
  EXPECT_EQ(Parse(File(other, std::string(99, 0)))->numbers.size(), 12u);
}

TEST(Npy, WhatCannotBeReadIsNamed) {
  struct Case {
    std::string file;
    Code code;
    const char* says;
  };
  const std::string good = Dict("<f4", "(2, 3)");
  const Case cases[] = {
      {"", Code::kCorrupt, "not a NumPy"},
      {"PK\3\4 this is an npz file", Code::kCorrupt, "not a NumPy"},
      {File(good, std::string(23, 0)), Code::kCorrupt, "cut short"},
      {File(good, "").substr(0, 30), Code::kCorrupt, "header"},
      {File(good, std::string(24, 0), 2).substr(0, 11), Code::kCorrupt, "header"},
      {File(good, std::string(24, 0), 4), Code::kUnsupported, "version 4"},
      {File(Dict(">f4", "(2, 3)"), std::string(24, 0)), Code::kUnsupported, "big-endian"},
      {File(Dict("<f8", "(2, 3)"), std::string(48, 0)), Code::kUnsupported, "'<f8'"},
      {File(Dict("|O", "(2, 3)"), std::string(48, 0)), Code::kUnsupported, "astype"},
      {File(Dict("<f4", "(2, 3)", "True"), std::string(24, 0)), Code::kUnsupported, "Fortran"},
      {File("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", ""), Code::kUnsupported, "fields"},
      {File(Dict("<f4", "(-2, 3)"), std::string(24, 0)), Code::kCorrupt, "shape"},
      {File(Dict("<f4", "(9223372036854775807, 4)"), ""), Code::kCorrupt, "counted"},
      {File(Dict("<f4", "(9223372036854775807, 9223372036854775807, 0)"), ""), Code::kCorrupt, "counted"},
      {File(Dict("<f4", "(99999999999999999999,)"), ""), Code::kCorrupt, "shape"},
      {File(Dict("<f4", "(2, 3)", "Maybe"), std::string(24, 0)), Code::kCorrupt, "fortran_order"},
      {File("{'descr': '<f4', 'shape': (2, 3)}", std::string(24, 0)), Code::kCorrupt, "fortran_order"},
      {File("{'descr': '<f4', 'descr': '<f4'}", ""), Code::kCorrupt, "twice"},
      {File(good + "x", std::string(24, 0)), Code::kCorrupt, "follows"},
  };
  for (const Case& c : cases) {
    const auto a = Parse(c.file);
    ASSERT_FALSE(a) << c.says;
    EXPECT_EQ(a.error().code, c.code) << a.error().message;
    EXPECT_NE(a.error().message.find(c.says), std::string::npos) << a.error().message;
  }
}

class NpyFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("croquis_npy_test." + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Write(const std::string& bytes) const {
    const std::string path = (folder_ / "x.npy").string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  // A file whose number i is i.
  std::string Counting(const std::vector<int64_t>& shape) const {
    auto file = NpyFile::Make(shape, "test");
    int64_t n = 1;
    for (const int64_t s : shape) n *= s;
    for (int64_t i = 0; i < n; ++i) file->numbers()[i] = float(i);
    return Write(std::string(file->bytes()));
  }
  std::filesystem::path folder_;
};

float At(const Tensor& t, int64_t h, int64_t r, int64_t c) {
  std::vector<float> row(static_cast<size_t>(t.view.dim));
  t.view.Head(h).Read(r, row.data());
  return row[size_t(c)];
}

TEST_F(NpyFiles, EveryLayoutIsHeadsOfRows) {
  const auto two = LoadNpy(Counting({5, 3})), rows = LoadNpy(Counting({5, 3}), TensorLayout::kRowsFirst);
  ASSERT_TRUE(two && rows);
  for (const auto* t : {&*two, &*rows}) {
    EXPECT_EQ(t->view.heads, 1);
    EXPECT_EQ(t->view.rows, 5);
    EXPECT_EQ(t->view.dim, 3);
    EXPECT_EQ(At(*t, 0, 4, 2), 14);
    EXPECT_FALSE(t->headed);
    EXPECT_FALSE(t->batched);
  }
  const auto heads = LoadNpy(Counting({2, 5, 3}));
  EXPECT_EQ(heads->view.heads, 2);
  EXPECT_EQ(heads->view.rows, 5);
  EXPECT_EQ(At(*heads, 1, 2, 0), 15 + 6);
  const auto between = LoadNpy(Counting({5, 2, 3}), TensorLayout::kRowsFirst);
  EXPECT_EQ(between->view.heads, 2);
  EXPECT_EQ(between->view.rows, 5);
  EXPECT_EQ(At(*between, 1, 2, 0), 2 * 6 + 3);
  const auto batch = LoadNpy(Counting({4, 2, 5, 3}));
  EXPECT_EQ(batch->view.heads, 8);
  EXPECT_EQ(batch->batch, 4);
  EXPECT_EQ(At(*batch, 2 * 2 + 1, 3, 1), (((2 * 2) + 1) * 5 + 3) * 3 + 1);
  const auto moved = LoadNpy(Counting({4, 5, 2, 3}), TensorLayout::kRowsFirst);
  EXPECT_EQ(moved->view.heads, 8);
  EXPECT_EQ(moved->view.rows, 5);
  EXPECT_EQ(At(*moved, 2 * 2 + 1, 3, 1), ((2 * 5 + 3) * 2 + 1) * 3 + 1);
  for (const auto& shape : {std::vector<int64_t>{5}, std::vector<int64_t>{1, 1, 1, 1, 1}}) {
    const auto bad = LoadNpy(Counting(shape));
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, Code::kInvalidArgument);
    EXPECT_NE(bad.error().message.find("x.npy"), std::string::npos);
  }
}

TEST_F(NpyFiles, UnalignedNumbersAreCopied) {
  for (size_t pad = 0; pad < 4; ++pad) {
    std::string numbers(24, 0);
    for (int i = 0; i < 6; ++i) {
      const float x = float(i);
      std::memcpy(&numbers[size_t(4 * i)], &x, 4);
    }
    const auto t = LoadNpy(Write(File(std::string(pad, ' ') + Dict("<f4", "(2, 3)"), numbers)));
    ASSERT_TRUE(t);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t->view.data) % 4, 0u);
    EXPECT_EQ(At(*t, 0, 1, 2), 5);
  }
}

TEST_F(NpyFiles, ErrorsNameTheFile) {
  EXPECT_EQ(LoadNpy((folder_ / "none.npy").string()).error().code, Code::kNotFound);
  EXPECT_NE(LoadNpy((folder_ / "none.npy").string()).error().message.find("none.npy"), std::string::npos);
  EXPECT_EQ(LoadNpy(folder_.string()).error().code, Code::kCorrupt);
  EXPECT_EQ(LoadNpy(Write("")).error().code, Code::kCorrupt);
}

TEST_F(NpyFiles, ConversionRoundsToNearest) {
  auto t = LoadNpy(Counting({2, 700, 3}));
  Executor executor(2);
  const auto half = Converted(executor, *t, simd::RowType::kBf16, "x");
  ASSERT_TRUE(half);
  for (int64_t r = 0; r < 700; ++r)
    for (int64_t c = 0; c < 3; ++c)
      ASSERT_EQ(At(*half, 1, r, c), Bf16ToFloat(FloatToBf16(float((700 + r) * 3 + c)))) << r << " " << c;
}

}  // namespace
}  // namespace croquis::eval
