#include "apps/plot.h"

#include <cairo-svg.h>
#include <cairo.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>

#include "apps/output.h"

namespace croquis::apps {
namespace {

struct Color {
  double r, g, b;
};
// Okabe and Ito's palette: told apart also by readers who see colours differently.
constexpr std::array<Color, 7> kPalette = {{{0, .447, .698},
                                            {.835, .369, 0},
                                            {0, .620, .451},
                                            {.8, .475, .655},
                                            {.337, .706, .914},
                                            {.902, .624, 0},
                                            {.3, .3, .3}}};
constexpr Color kInk = {.15, .15, .15}, kGrid = {.88, .88, .88};
constexpr double kFont = 13;

class Canvas {
 public:
  explicit Canvas(cairo_t* c) : c_(c) {
    cairo_select_font_face(c, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    Ink({1, 1, 1});
    cairo_paint(c_);
  }
  void Ink(Color k) { cairo_set_source_rgb(c_, k.r, k.g, k.b); }
  void Line(double x0, double y0, double x1, double y1, double width, Color k) {
    Ink(k);
    cairo_set_line_width(c_, width);
    cairo_move_to(c_, x0, y0);
    cairo_line_to(c_, x1, y1);
    cairo_stroke(c_);
  }
  void Rect(double x, double y, double w, double h, Color k) {
    Ink(k);
    cairo_rectangle(c_, x, y, w, h);
    cairo_fill(c_);
  }
  void Dot(double x, double y, double r, Color k) {
    Ink(k);
    cairo_arc(c_, x, y, r, 0, 6.283185307179586);
    cairo_fill(c_);
  }
  double Width(const std::string& s, double size) {
    cairo_text_extents_t e;
    cairo_set_font_size(c_, size);
    cairo_text_extents(c_, s.c_str(), &e);
    return e.x_advance;
  }
  // align: 0 left, .5 centre, 1 right of x; y is the middle of the line.
  void Text(double x, double y, const std::string& s, double align, double size = kFont, Color k = kInk) {
    Ink(k);
    cairo_set_font_size(c_, size);
    cairo_move_to(c_, x - align * Width(s, size), y + 0.35 * size);
    cairo_show_text(c_, s.c_str());
  }
  void VerticalText(double x, double y, const std::string& s) {
    cairo_save(c_);
    cairo_translate(c_, x, y);
    cairo_rotate(c_, -1.5707963267948966);
    Text(0, 0, s, .5);
    cairo_restore(c_);
  }

 private:
  cairo_t* c_;
};

cairo_status_t Collect(void* out, const unsigned char* data, unsigned int n) {
  static_cast<std::string*>(out)->append(reinterpret_cast<const char*>(data), n);
  return CAIRO_STATUS_SUCCESS;
}

Result<std::string> Draw(const std::string& kind, double width, double height,
                         const std::function<void(Canvas&)>& draw) {
  std::string bytes;
  const double zoom = kind == "png" ? 2 : 1;  // pixels for sharp screens
  using Surface = std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)>;
  Surface surface(kind == "png" ? cairo_image_surface_create(CAIRO_FORMAT_RGB24, int(width * zoom), int(height * zoom))
                                : cairo_svg_surface_create_for_stream(Collect, &bytes, width, height),
                  cairo_surface_destroy);
  std::unique_ptr<cairo_t, decltype(&cairo_destroy)> cr(cairo_create(surface.get()), cairo_destroy);
  cairo_scale(cr.get(), zoom, zoom);
  Canvas canvas(cr.get());
  draw(canvas);
  cairo_status_t status = cairo_status(cr.get());
  if (status == CAIRO_STATUS_SUCCESS && kind == "png") {
    status = cairo_surface_write_to_png_stream(surface.get(), Collect, &bytes);
  }
  cr.reset();
  cairo_surface_finish(surface.get());
  if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(surface.get());
  if (status != CAIRO_STATUS_SUCCESS) return Internal(std::string("drawing failed: ") + cairo_status_to_string(status));
  return bytes;
}

struct Axis {
  double lo, hi;    // of values
  double from, to;  // of pixels
  bool log = false;
  double At(double v) const {
    const double t = log ? std::log(v / lo) / std::log(hi / lo) : (v - lo) / (hi - lo);
    return from + t * (to - from);
  }
};

// Room around the data, and never an empty interval.
void Widen(double& lo, double& hi, bool log) {
  if (log) {
    const double f = std::max(1.15, std::pow(hi / lo, 0.06));
    lo /= f;
    hi *= f;
  } else {
    const double pad = std::max((hi - lo) * 0.06, std::max(std::abs(hi), 1.0) * 0.02);
    lo -= pad;
    hi += pad;
  }
}

struct Box {
  double x0, y0, x1, y1;
  bool Meets(const Box& o) const { return x0 < o.x1 && o.x0 < x1 && y0 < o.y1 && o.y0 < y1; }
};

// Writes a label beside its mark, at the first of eight places that nothing stands on; at the first if all are taken.
void PlaceLabel(Canvas& c, double x, double y, const std::string& label, std::vector<Box>& taken) {
  constexpr double kSize = 10.5;
  const double w = c.Width(label, kSize);
  const auto box_at = [&](double dx, double dy) {
    const double left = dx > 0 ? x + dx : dx < 0 ? x + dx - w : x - w / 2;
    return Box{left, y + dy - kSize / 2, left + w, y + dy + kSize / 2};
  };
  constexpr double kPlaces[][2] = {{7, -8}, {7, 8}, {-7, 8}, {-7, -8}, {9, 0}, {-9, 0}, {0, -13}, {0, 14}};
  Box chosen = box_at(kPlaces[0][0], kPlaces[0][1]);
  for (const auto& place : kPlaces) {
    const Box box = box_at(place[0], place[1]);
    if (std::none_of(taken.begin(), taken.end(), [&](const Box& t) { return t.Meets(box); })) {
      chosen = box;
      break;
    }
  }
  taken.push_back(chosen);
  c.Text(chosen.x0, (chosen.y0 + chosen.y1) / 2, label, 0, kSize);
}

std::string TickText(double v) {
  if (v != 0 && (std::abs(v) < 1e-3 || std::abs(v) >= 1e5)) return Printf("%.0e", v);
  return Printf("%g", v);
}

constexpr double kChartWidth = 860, kChartHeight = 520;

bool Shown(const Chart& chart, const Point& p) {
  return std::isfinite(p.x) && std::isfinite(p.y) && (!chart.log_x || p.x > 0) && (!chart.log_y || p.y > 0);
}

struct Limits {
  double x_lo, x_hi, y_lo, y_hi;
};

// What the axes span; nothing when no point can be drawn.
std::optional<Limits> LimitsOf(const Chart& chart) {
  const double inf = std::numeric_limits<double>::infinity();
  Limits l{inf, -inf, inf, -inf};
  for (const Series& s : chart.series) {
    for (const Point& p : s.points) {
      if (!Shown(chart, p)) continue;
      l = {std::min(l.x_lo, p.x), std::max(l.x_hi, p.x), std::min(l.y_lo, p.y), std::max(l.y_hi, p.y)};
    }
  }
  if (!(l.x_lo <= l.x_hi)) return std::nullopt;
  Widen(l.x_lo, l.x_hi, chart.log_x);
  Widen(l.y_lo, l.y_hi, chart.log_y);
  return l;
}

// One chart, `down` below the top of the picture.
void DrawChart(Canvas& c, const Chart& chart, double down) {
  const double left = 84, right = kChartWidth - 190, top = down + 48, bottom = down + kChartHeight - 60;
  const auto limits = LimitsOf(chart);
  c.Text((left + right) / 2, down + 22, chart.title, .5, 16);
  if (!limits) return c.Text((left + right) / 2, (top + bottom) / 2, "nothing to plot", .5);
  const Axis x{limits->x_lo, limits->x_hi, left, right, chart.log_x};
  const Axis y{limits->y_lo, limits->y_hi, bottom, top, chart.log_y};
  for (double v : Ticks(x.lo, x.hi, 8, chart.log_x)) {
    c.Line(x.At(v), top, x.At(v), bottom, 1, kGrid);
    c.Text(x.At(v), bottom + 16, TickText(v), .5);
  }
  for (double v : Ticks(y.lo, y.hi, 7, chart.log_y)) {
    c.Line(left, y.At(v), right, y.At(v), 1, kGrid);
    c.Text(left - 8, y.At(v), TickText(v), 1);
  }
  c.Line(left, bottom, right, bottom, 1.2, kInk);
  c.Line(left, top, left, bottom, 1.2, kInk);
  c.Text((left + right) / 2, bottom + 42, chart.x_label, .5);
  c.VerticalText(18, (top + bottom) / 2, chart.y_label);
  std::vector<Box> taken;  // marks, then labels
  for (size_t s = 0; s < chart.series.size(); s++) {
    const Color color = kPalette[s % kPalette.size()];
    const Point* before = nullptr;
    for (const Point& p : chart.series[s].points) {
      if (!Shown(chart, p)) continue;
      if (before != nullptr) c.Line(x.At(before->x), y.At(before->y), x.At(p.x), y.At(p.y), 1.6, color);
      c.Dot(x.At(p.x), y.At(p.y), 4, color);
      taken.push_back({x.At(p.x) - 4, y.At(p.y) - 4, x.At(p.x) + 4, y.At(p.y) + 4});
      before = &p;
    }
    const double ly = top + 10 + 20 * double(s);
    c.Line(right + 14, ly, right + 34, ly, 1.6, color);
    c.Dot(right + 24, ly, 4, color);
    c.Text(right + 40, ly, chart.series[s].name, 0, 12);
  }
  for (const Series& series : chart.series) {
    for (const Point& p : series.points) {
      if (Shown(chart, p) && !p.label.empty()) PlaceLabel(c, x.At(p.x), y.At(p.y), p.label, taken);
    }
  }
}

// Light grey to dark blue; never the white of the paper, so that a cell of value 0 is seen.
Color Shade(double t) {
  t = std::clamp(t, 0.0, 1.0);
  return {.92 - .89 * t, .93 - .68 * t, .95 - .40 * t};
}

}  // namespace

Result<std::string> PlotKind(const std::string& path) {
  if (path.ends_with(".svg")) return std::string("svg");
  if (path.ends_with(".png")) return std::string("png");
  return InvalidArgument("--plot " + path + ": wanted a name that ends in .svg or .png");
}

std::vector<double> Ticks(double lo, double hi, int want, bool log) {
  std::vector<double> ticks;
  if (!(lo < hi) || (log && lo <= 0)) return ticks;
  if (log) {
    const bool fine = std::log10(hi / lo) < 2;
    for (int e = int(std::floor(std::log10(lo))); e <= int(std::ceil(std::log10(hi))); e++) {
      for (double m : {1.0, 2.0, 5.0}) {
        const double v = m * std::pow(10.0, e);
        if ((m == 1 || fine) && v >= lo && v <= hi) ticks.push_back(v);
      }
    }
    return ticks;
  }
  const double raw = (hi - lo) / std::max(want, 1), base = std::pow(10.0, std::floor(std::log10(raw)));
  const double step = base * (raw <= base ? 1 : raw <= 2 * base ? 2 : raw <= 5 * base ? 5 : 10);
  for (double i = std::ceil(lo / step); i * step <= hi; i++) ticks.push_back(i * step);
  return ticks;
}

Result<std::string> Render(const Chart& chart, const std::string& kind) {
  if (!LimitsOf(chart))
    return InvalidArgument("nothing to plot: no point has a value" +
                           std::string(chart.log_x || chart.log_y ? " above zero" : ""));
  return Draw(kind, kChartWidth, kChartHeight, [&](Canvas& c) { DrawChart(c, chart, 0); });
}

Result<std::string> Render(const std::vector<Chart>& charts, const std::string& kind) {
  if (std::none_of(charts.begin(), charts.end(), [](const Chart& c) { return LimitsOf(c).has_value(); }))
    return InvalidArgument("nothing to plot: no chart has a point");
  return Draw(kind, kChartWidth, kChartHeight * double(charts.size()), [&](Canvas& c) {
    for (size_t i = 0; i < charts.size(); i++) DrawChart(c, charts[i], kChartHeight * double(i));
  });
}

Result<std::string> Render(const std::vector<HeatMap>& maps, const std::string& kind) {
  if (maps.empty()) return InvalidArgument("nothing to plot: no heat map");
  size_t columns = 0, rows = 0;
  for (const HeatMap& m : maps) {
    if (m.x_ticks.empty() || m.y_ticks.empty() || m.values.size() != m.x_ticks.size() * m.y_ticks.size()) {
      return InvalidArgument("a heat map needs a value for each pair of its ticks");
    }
    columns = std::max(columns, m.x_ticks.size());
    rows = std::max(rows, m.y_ticks.size());
  }
  const double cell_w = 64, cell_h = 34, left = 92, top = 64, foot = 60;
  const double panel = left + cell_w * double(columns) + 20;
  return Draw(kind, panel * double(maps.size()), top + cell_h * double(rows) + foot, [&](Canvas& c) {
    for (size_t k = 0; k < maps.size(); k++) {
      const HeatMap& m = maps[k];
      const double x0 = panel * double(k) + left, span = m.high > m.low ? m.high - m.low : 1;
      const double w = cell_w * double(m.x_ticks.size()), h = cell_h * double(m.y_ticks.size());
      c.Text(x0 + w / 2, 24, m.title, .5, 13);
      for (size_t i = 0; i < m.y_ticks.size(); i++) {
        c.Text(x0 - 8, top + cell_h * (double(i) + .5), m.y_ticks[i], 1, 12);
        for (size_t j = 0; j < m.x_ticks.size(); j++) {
          const double v = m.values[i * m.x_ticks.size() + j], t = (v - m.low) / span;
          if (std::isnan(v)) continue;
          const double x = x0 + cell_w * double(j), y = top + cell_h * double(i);
          c.Rect(x + 1, y + 1, cell_w - 2, cell_h - 2, Shade(t));
          c.Text(x + cell_w / 2, y + cell_h / 2, Printf("%.3g", v), .5, 12, t > .55 ? Color{1, 1, 1} : kInk);
        }
      }
      for (size_t j = 0; j < m.x_ticks.size(); j++) {
        c.Text(x0 + cell_w * (double(j) + .5), top - 12, m.x_ticks[j], .5, 12);
      }
      c.Text(x0 + w / 2, top + h + 20, m.x_label, .5, 12);
      c.VerticalText(panel * double(k) + 16, top + h / 2, m.y_label);
    }
  });
}

}  // namespace croquis::apps
