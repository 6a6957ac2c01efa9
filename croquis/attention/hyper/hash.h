// Sign hashes whose codes are put in an order where neighbours differ in one bit (HyperAttention's sorted LSH).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "croquis/attention/problem.h"
#include "croquis/base/rng.h"

namespace croquis::attention::hyper {

inline constexpr int kDirections = 12;  // projections of each row that hashes are made of; short ones use the first

// Position of a code in the reflected Gray sequence: the inverse of g(i) = i ^ (i >> 1), so that codes of consecutive
// ranks differ in one bit. (Sorting by g itself, as published code does, is something else from three bits on.)
constexpr uint32_t GrayRank(uint32_t code) {
  for (int shift = 1; shift < 32; shift *= 2) code ^= code >> shift;
  return code;
}

// Ranks of hashes of `bits` bits by the signs they are made of: bit t of the place in the table is the sign of
// projection t, and projection 0 is the highest bit of the code.
std::vector<uint16_t> RankTable(int bits);

// Rows first .. first + n of `from` in f32, [n, dim] without gaps.
void ReadRows(const RowsView& from, int64_t first, int64_t n, float* to);
// sum[dim] += rows index[..] of `from`.
void AddRows(const RowsView& from, std::span<const int32_t> index, float* sum);

// Directions are the columns of a [dim, kDirections] matrix.
std::vector<float> RandomDirections(int64_t dim, const Stream& random);
// The directions in which the keys of a range vary most, by descending variance: five steps of subspace iteration on
// the covariance of up to 512 of them. Hashes of keys in clusters keep a cluster together where random directions split
// it, and cost the same.
std::vector<float> PrincipalDirections(const RowsView& k, Range keys, const Stream& random);

}  // namespace croquis::attention::hyper
