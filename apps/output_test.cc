#include "apps/output.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "apps/progress.h"

namespace croquis::apps {
namespace {

TEST(Output, TablesAlign) {
  Json rows = Json::array();
  rows.push_back({{"kv", "f16"}, {"ms", 12.345}, {"bytes", 1536}, {"n", 32768}});
  rows.push_back({{"kv", "k=\xC3\xA9"}, {"ms", nullptr}, {"bytes", 100}, {"n", 7}});
  const std::string table = FormatTable({{"kv", "cache", Format::kText},
                                         {"n", "tokens", Format::kInt},
                                         {"ms", "ms", Format::kFixed2},
                                         {"bytes", "bytes", Format::kBytes},
                                         {"absent", "absent", Format::kInt}},
                                        rows);
  EXPECT_EQ(table,
            "cache  tokens     ms    bytes\n"
            "-----  ------  -----  -------\n"
            "f16    32,768  12.35  1.5 KiB\n"
            "k=\xC3\xA9         7      -    100 B\n");
}

TEST(Output, CellsOfEveryFormat) {
  EXPECT_EQ(FormatCell(0.98765, Format::kPercent), "98.8 %");
  EXPECT_EQ(FormatCell(0.00033, Format::kScientific), "3.30e-04");
  EXPECT_EQ(FormatCell(0.0, Format::kScientific), "0");
  EXPECT_EQ(FormatCell(1234567, Format::kInt), "1,234,567");
  EXPECT_EQ(FormatCell(-1234, Format::kInt), "-1,234");
  EXPECT_EQ(FormatCell(2.0, Format::kFixed3), "2.000");
  EXPECT_EQ(FormatCell(true, Format::kText), "yes");
  EXPECT_EQ(FormatCell(std::numeric_limits<double>::quiet_NaN(), Format::kFixed1), "-");
  EXPECT_EQ(Grouped(-100), "-100");
}

TEST(Output, EnvelopeNamesItsOrigin) {
  const Json o = Envelope("bench", 2, Json::array({Json{{"kv", "f16"}}}));
  EXPECT_EQ(o["threads"], 2);
  EXPECT_EQ(o["rows"][0]["kv"], "f16");
  EXPECT_FALSE(o["commit"].get<std::string>().empty());
  EXPECT_TRUE(o["machine"].contains("simd"));
  EXPECT_GT(o["machine"]["memory_bytes"].get<int64_t>(), 1 << 20);
}

TEST(Output, FilesAreReplacedWholeOrNotAtAll) {
  const auto folder = std::filesystem::temp_directory_path() / ("croquis_output_test." + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const std::string path = (folder / "plot.svg").string();
  const auto read = [&] {
    std::stringstream s;
    s << std::ifstream(path).rdbuf();
    return s.str();
  };
  EXPECT_TRUE(CheckWritable(path));
  EXPECT_FALSE(std::filesystem::exists(path));  // the check leaves nothing behind
  ASSERT_TRUE(WriteFileAtomic(path, "one"));
  ASSERT_TRUE(WriteFileAtomic(path, "two"));
  EXPECT_EQ(read(), "two");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  EXPECT_EQ(CheckWritable((folder / "none" / "x.svg").string()).error().code, Code::kIo);
  EXPECT_EQ(WriteFileAtomic((folder / "none" / "x.svg").string(), "x").error().code, Code::kIo);
  EXPECT_EQ(CheckWritable(folder.string()).error().code, Code::kIo);
  std::filesystem::remove_all(folder);
}

TEST(Progress, ShownOnlyWhenWorthIt) {
  EXPECT_FALSE(WorthShowing(1, 100, 0.01));  // too early to tell
  EXPECT_TRUE(WorthShowing(10, 100, 0.5));   // five seconds expected
  EXPECT_FALSE(WorthShowing(50, 100, 0.5));  // one second expected
  EXPECT_TRUE(WorthShowing(0, 100, 2.1));    // two seconds gone already
}

TEST(Progress, LinesFitTheTerminal) {
  EXPECT_EQ(ProgressLine("prompt", 1, 2, 3, 40), "prompt [#######.......]  50 %  3 s left");
  for (int width = 1; width < 100; width++) {
    for (int64_t done : {0, 1, 99, 100}) {
      EXPECT_LT(int(ProgressLine("prompt", done, 100, 10, width).size()), std::max(width, 1)) << width;
    }
  }
  EXPECT_EQ(ProgressLine("x", 0, 0, 0, 30).find("nan"), std::string::npos);
}

}  // namespace
}  // namespace croquis::apps
