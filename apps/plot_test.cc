#include "apps/plot.h"

#include <cairo.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <set>

namespace croquis::apps {
namespace {

Chart Example() {
  Chart c;
  c.title = "quality against bits";
  c.x_label = "bits a number";
  c.y_label = "KL";
  c.log_y = true;
  c.series = {{"eden", {{2.25, 5.6e-3, "2/2"}, {3.25, 1.3e-3, "3/3"}, {4.25, 3.3e-4, "4/4"}}}, {"f16", {{16, 0, ""}}}};
  return c;
}

// The picture decoded by cairo's own PNG reader: size and the number of distinct colours.
std::pair<std::pair<int, int>, size_t> Decode(const std::string& png) {
  struct Source {
    const std::string* bytes;
    size_t at;
  } source{&png, 0};
  cairo_surface_t* s = cairo_image_surface_create_from_png_stream(
      [](void* closure, unsigned char* data, unsigned int n) {
        auto* from = static_cast<Source*>(closure);
        if (from->at + n > from->bytes->size()) return CAIRO_STATUS_READ_ERROR;
        std::memcpy(data, from->bytes->data() + from->at, n);
        from->at += n;
        return CAIRO_STATUS_SUCCESS;
      },
      &source);
  std::set<uint32_t> colours;
  const int w = cairo_image_surface_get_width(s), h = cairo_image_surface_get_height(s);
  const unsigned char* pixels = cairo_image_surface_get_data(s);
  const int stride = cairo_image_surface_get_stride(s);
  for (int y = 0; y < h; y++) {
    for (int x = 0; x < w; x++) {
      uint32_t v = 0;
      std::memcpy(&v, pixels + ptrdiff_t(y) * stride + ptrdiff_t(x) * 4, 4);
      colours.insert(v & 0xFFFFFF);
    }
  }
  cairo_surface_destroy(s);
  return {{w, h}, colours.size()};
}

TEST(Plot, KindComesFromTheName) {
  EXPECT_EQ(*PlotKind("a/b.svg"), "svg");
  EXPECT_EQ(*PlotKind("b.png"), "png");
  EXPECT_EQ(PlotKind("b.pdf").error().code, Code::kInvalidArgument);
}

TEST(Plot, SvgHasMarksForPointsThatCanBeDrawn) {
  const auto two = Render(Example(), "svg");
  ASSERT_TRUE(two);
  EXPECT_NE(two->find("<svg"), std::string::npos);
  EXPECT_NE(two->find("</svg>"), std::string::npos);
  Chart fewer = Example();
  fewer.series[0].points.erase(fewer.series[0].points.begin() + 1);  // the axes stay as they are
  const auto smaller = Render(fewer, "svg");
  ASSERT_TRUE(smaller);
  EXPECT_LT(smaller->size(), two->size());
}

TEST(Plot, PngCanBeReadBack) {
  const auto png = Render(Example(), "png");
  ASSERT_TRUE(png);
  const auto [size, colours] = Decode(*png);
  EXPECT_EQ(size.first, 1720);
  EXPECT_EQ(size.second, 1040);
  EXPECT_GT(colours, 10u);  // background, grid, ink, two series and their antialiased edges
}

TEST(Plot, NothingToDrawIsAnError) {
  Chart empty = Example();
  empty.series = {{"f16", {{16, 0, ""}}}};  // zero cannot stand on a logarithmic axis
  EXPECT_EQ(Render(empty, "svg").error().code, Code::kInvalidArgument);
  empty.log_y = false;
  EXPECT_TRUE(Render(empty, "svg"));  // one point: the axis must not be empty
}

TEST(Plot, ChartsStandBelowEachOther) {
  Chart length = Example(), empty = Example();
  length.log_x = true;
  empty.series.clear();
  const auto png = Render(std::vector<Chart>{length, empty, length}, "png");
  ASSERT_TRUE(png);
  const auto [size, colours] = Decode(*png);
  EXPECT_EQ(size.first, 1720);
  EXPECT_EQ(size.second, 3 * 1040);
  EXPECT_EQ(Render(std::vector<Chart>{empty}, "svg").error().code, Code::kInvalidArgument);
  length.series[0].points[0].x = 0;  // cannot stand on a logarithmic axis
  const auto three = Render(length, "svg"), all = Render(Example(), "svg");
  ASSERT_TRUE(three && all);
  EXPECT_LT(three->size(), all->size());
}

TEST(Plot, HeatMapsShadeTheirValues) {
  HeatMap m;
  m.title = "f16";
  m.x_ticks = {"512", "1,024"};
  m.y_ticks = {"0 %", "100 %"};
  m.values = {0, 1, .5, std::numeric_limits<double>::quiet_NaN()};
  const auto png = Render(std::vector<HeatMap>{m, m}, "png");
  ASSERT_TRUE(png);
  EXPECT_GT(Decode(*png).second, 5u);
  EXPECT_TRUE(Render(std::vector<HeatMap>{m}, "svg"));
  m.values.pop_back();
  EXPECT_FALSE(Render(std::vector<HeatMap>{m}, "svg"));
  EXPECT_FALSE(Render(std::vector<HeatMap>{}, "svg"));
}

TEST(Plot, TicksAreRoundAndInside) {
  EXPECT_EQ(Ticks(0, 10, 5, false), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  const auto log = Ticks(3e-7, 2e-2, 7, true);
  ASSERT_EQ(log.size(), 5u);  // 1e-6 .. 1e-2
  EXPECT_NEAR(log.front(), 1e-6, 1e-18);
  EXPECT_NEAR(log.back(), 1e-2, 1e-12);
  EXPECT_EQ(Ticks(1, 20, 7, true).size(), 5u);  // 1 2 5 10 20
  EXPECT_TRUE(Ticks(1, 1, 5, false).empty());
  EXPECT_TRUE(Ticks(0, 1, 5, true).empty());
}

}  // namespace
}  // namespace croquis::apps
