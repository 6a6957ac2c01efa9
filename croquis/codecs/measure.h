// What a method does to rows of a given kind: the numbers of `croquis codecs`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "croquis/codecs/codec.h"

namespace croquis::codecs {

enum class Rows : uint8_t {
  kGaussian,     // unit Gaussian
  kHeavyTailed,  // Student t with 3 degrees of freedom
  kSparse,       // four Gaussian channels at random places, the rest 0
  kConstant      // one Gaussian number in all places
};
std::string_view Name(Rows rows);
// "gaussian", "heavy-tailed", "sparse", "constant"; an error names them.
Result<Rows> ParseRows(std::string_view name);
// `count` rows [count, head_dim] of the kind; row i is a function of (seed, first + i) alone.
void FillRows(Rows kind, uint64_t seed, int64_t first, MatView<float> x);

struct Measurement {
  std::string method;          // full method string
  double bits_per_number = 0;  // stored
  double rel_mse = 0;          // sum |x - x^|^2 / sum |x|^2
  double rel_mse_error = 0;    // its standard error, from the spread over rotation seeds
  double slope = 0;            // mean of <x, x^> / |x|^2
  double slope_error = 0;      // its standard error
  double ip_error = 0;         // head_dim * mean (<q, x^> - <q, x>)^2 / (|q|^2 |x|^2), q Gaussian, scored on codes
  double encode_ns = 0;        // per vector, one thread, best of several passes
  int64_t rows = 0;            // sample size
};

// Measures on `rows` rows (a multiple of 128; 0 takes 16384, which puts the sampling error of rel_mse of Gaussian rows
// under 0.5 %). Up to 32 rotation seeds are used in turn. `timed` false skips encode_ns. Errors: those of Make.
Result<Measurement> Measure(std::string_view method, int64_t head_dim, Role role, Rows kind, uint64_t seed = 1,
                            int64_t rows = 0, bool timed = true);

}  // namespace croquis::codecs
