// The random projection of a sign sketch, and what its estimator's constants follow from.
#pragma once

#include <cstdint>
#include <memory>

#include "croquis/base/view.h"

namespace croquis::codecs {

struct Projection {
  int64_t head_dim = 0, m = 0;
  bool orthogonal = false;
  Matrix<float> channels;  // [head_dim, m]: row i holds what channel i adds to each of the m projections

  // Entries independent N(0, 1); or, orthogonal, runs of head_dim rows (the last one shorter) that are
  // orthogonal with norm sqrt(head_dim): Gram-Schmidt of Gaussian rows, so each run is uniform (Haar).
  // Codecs of the same arguments share one. The numbers are a function of the arguments alone.
  static std::shared_ptr<const Projection> Get(int64_t head_dim, int64_t m, bool orthogonal, uint64_t seed);
};

// A such that A |k| <S q, sign(S k)> with `m` rows is an unbiased estimate of <q, k>: sqrt(pi / 2) / m for Gaussian
// rows, 1 / (m sqrt(d) E|u_1|) for orthogonal ones, u uniform on the sphere of R^d (a relative 1 / 4d less).
double SignScale(int64_t head_dim, int64_t m, bool orthogonal);

// Relative squared error E|x^ - x|^2 / |x|^2 of x^ = A |x| S^T sign(S x), summed over `kept` channels only, for x
// that lies in those channels (kept = head_dim: all of them). Gaussian: (kept pi / 2 - 1) / m.
double SignMse(int64_t head_dim, int64_t m, bool orthogonal, int64_t kept);

// Of `channels` independent channels, each a sum of 32 squared normals: the expected part of the total that the
// `top` largest hold.
double TopEnergy(int64_t channels, int64_t top);

}  // namespace croquis::codecs
