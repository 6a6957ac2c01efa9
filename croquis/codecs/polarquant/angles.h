// Codebooks of the angles of the recursive polar transform (arXiv 2502.02617).
//
// Level 1 turns a pair of coordinates into a radius and an angle in [0, 2 pi); level l >= 2 turns a pair of radii of
// level l - 1 into one radius and an angle in [0, pi/2]. For Gaussian coordinates the angles are independent of each
// other and of the last radius; level 1 is uniform, level l >= 2 has density proportional to sin^(2^(l-1) - 1)(2 psi).
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace croquis::codecs {

inline constexpr int kPolarLevels = 4, kPolarBlock = 16;

// The density of level 2..4 at psi in [0, pi/2].
double AngleDensity(int level, double psi);
// The probability of an angle below psi, in closed form.
double AngleDistribution(int level, double psi);

struct AngleBook {
  int bits = 0;
  std::array<float, 32> angle{}, cos{}, sin{};  // 2^bits centroids, ascending
  // Code of a pair is the number of these k with y > tangent[k] * x: of the first quadrant at level 1 (each quadrant
  // has 2^bits / 4 codes), of all at the others.
  std::array<float, 31> tangent{};

  // Level 1: the middles of 2^bits equal sectors.
  static AngleBook Uniform(int bits);
  // Levels 2..4: given centroids, ascending in [0, pi/2]; cells end half way between them.
  static AngleBook FromCentroids(std::span<const float> angle);

  int CircleCode(float x, float y) const noexcept;    // level 1
  int QuadrantCode(float x, float y) const noexcept;  // x, y >= 0
};

// Level 1: Uniform. Levels 2..4: Lloyd-Max on the density, to 1e-12: each centroid is the mean of its cell, cells end
// half way between centroids. bits 2..5; computed once, thread-safe.
const AngleBook& AnalyticBook(int level, int bits);

// E cos(psi - psi^) under the density of the level with the codes of the book: by how much a level shortens the
// projection of what is decoded on what was encoded.
double MeanCosine(int level, const AngleBook& book);

// Lloyd's algorithm on angles themselves (sorted in place), started at `centroids` and at the angles' quantiles; the
// better of the two replaces `centroids`. At most 30 sweeps each. Nothing changes without angles.
void FitAngles(std::span<float> angles, std::span<float> centroids);

}  // namespace croquis::codecs
