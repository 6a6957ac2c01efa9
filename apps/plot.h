// Charts as SVG or PNG files, by the ending of the name. One drawing code (cairo) for both.
#pragma once

#include <string>
#include <vector>

#include "croquis/base/result.h"

namespace croquis::apps {

struct Point {
  double x = 0, y = 0;
  std::string label;  // written beside the mark; may be empty
};

struct Series {
  std::string name;           // of the legend
  std::vector<Point> points;  // joined in the order given
};

struct Chart {
  std::string title, x_label, y_label;
  bool log_y = false;  // points with y <= 0 are left out then
  bool log_x = false;  // the same for x
  std::vector<Series> series;
};

struct HeatMap {
  std::string title, x_label, y_label;
  std::vector<std::string> x_ticks, y_ticks;
  std::vector<double> values;  // [y_ticks][x_ticks]; NaN cells stay blank
  double low = 0, high = 1;    // the two ends of the colour scale
};

// "svg" or "png" of a path. Error for any other ending, naming both.
Result<std::string> PlotKind(const std::string& path);

// The bytes of the image. Errors: nothing to draw; cairo's own (named).
Result<std::string> Render(const Chart& chart, const std::string& kind);
// Several charts, one below the other. A chart without points says so instead of failing the others.
Result<std::string> Render(const std::vector<Chart>& charts, const std::string& kind);
// Several heat maps side by side (one a cache), sharing a scale.
Result<std::string> Render(const std::vector<HeatMap>& maps, const std::string& kind);

// Ticks of an axis from lo to hi: multiples of 1, 2 or 5 times a power of ten, at most about `want` of them; of a
// logarithmic axis: powers of ten, with 2 and 5 between where the axis spans less than two decades.
std::vector<double> Ticks(double lo, double hi, int want, bool log);

}  // namespace croquis::apps
