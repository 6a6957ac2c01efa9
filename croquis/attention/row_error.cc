#include "croquis/attention/row_error.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace croquis::attention {

double RelativeDifference(std::span<const float> a, std::span<const float> b, std::span<const float> of,
                          double largest) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
    size += double(of[i]) * double(of[i]);
  }
  const double against = std::sqrt(size) + 1e-3 * largest;
  return against == 0 ? 0 : std::sqrt(difference) / against;
}

double LargestNorm(Executor& executor, const RowsView& v) {
  constexpr int64_t kRows = 1024;
  std::vector<double> parts(size_t((v.rows + kRows - 1) / kRows));
  executor.ParallelFor(int64_t(parts.size()), [&](int64_t part, int) {
    std::vector<float> row(static_cast<size_t>(v.dim));
    for (int64_t r = part * kRows; r < std::min(v.rows, (part + 1) * kRows); ++r) {
      v.Read(r, row.data());
      double sum = 0;
      for (const float x : row) sum += double(x) * double(x);
      parts[size_t(part)] = std::max(parts[size_t(part)], sum);
    }
  });
  double most = 0;
  for (const double x : parts) most = std::max(most, x);
  return std::sqrt(most);
}

}  // namespace croquis::attention
