// Which keys can ever matter: leverage scores, Lewis weights, and bounds on sensitivities (LevAttention, arXiv
// 2410.05462).
//
// With the score function |x|^p the weight of key j for a query y is |<k_j, y>|^p / sum_l |<k_l, y>|^p. Its largest
// value over all y is the key's sensitivity; a key whose sensitivity is below eps has a weight below eps for every
// query. For p = 2 sensitivities are the leverage scores k_j^T (K^T K)^-1 k_j and add up to the rank of K; otherwise
// Lewis weights bound them. All sums are double.
//
// ridge: K^T K is taken as K^T K + ridge * (trace / d) I, so that rank-deficient keys have an answer: a weight is then
// counted against sum_l |<k_l, y>|^2 + ridge * (mean squared singular value) |y|^2. With the default it makes no
// difference to directions in which the keys are longer than a millionth of their mean, and leaves rounding alone (f32
// keys of a low-dimensional space are 1e-7 outside of it).
#pragma once

#include <cstdint>
#include <span>

#include "croquis/base/executor.h"
#include "croquis/base/view.h"
#include "croquis/linalg/factor.h"

namespace croquis::attention::lev {

inline constexpr double kDefaultRidge = 1e-12, kLeastRidge = 1e-14;

// The factor of sum_j (s_j k_j)(s_j k_j)^T + ridge, for keys [n, d]; scales are n numbers, or none for 1 each. Pieces
// of fixed size are factored in parallel and joined in order. Singular (MinPivot() = 0) only when all rows are zero.
linalg::Cholesky RidgeFactor(Executor& executor, MatView<const float> keys, std::span<const double> scales,
                             double ridge);

// scores[j] = the leverage of key j, in two passes over keys [n, d]: 2 n d^2 multiplications. In [0, 1]; a zero key has
// 0.
void LeverageScores(Executor& executor, MatView<const float> keys, double ridge, std::span<double> scores);

struct LewisReport {
  int iterations = 0;
  double residual = 0;  // largest |ln(new / old)| of a weight in the last iteration
};
// The l_p Lewis weights of keys [n, d], p in [1, 8]: w_j is the leverage score of row j of W^(1/2 - 1/p) K; they add up
// to the rank. Stops once the residual is at most `tolerance`. For p <= 2 the plain fixed-point iteration
// w_j <- (k_j^T (K^T W^(1-2/p) K)^-1 k_j)^(p/2) (Cohen and Peng, arXiv 1412.0588), which contracts for p < 4 only; for
// p > 2 w_j <- leverage of row j of W^(1/2 - 1/p) K with the weights so far, which converges for all p. A zero key has
// 0.
LewisReport LewisWeights(Executor& executor, MatView<const float> keys, double p, double ridge,
                         std::span<double> weights, int max_iterations = 60, double tolerance = 1e-9);

// bounds[j] >= the sensitivity of key j, from any positive weights (0 for zero keys), converged or not; with Lewis
// weights it is w_j for p <= 2 and w_j d^(p/2 - 1) for p > 2. With t_j the leverage of row j of W^(1/2 - 1/p) K:
//   p <= 2: w_j (t_j / w_j)^(p/2) max_l (t_l / w_l)^(1 - p/2)      p >= 2: w_j (t_j / w_j)^(p/2) (sum_l w_l)^(p/2 - 1)
// The first from |x_l|^(2-p) <= (w_l^(2/p-1) t_l S)^(1-p/2) in S = sum_l w_l^(1-2/p) |x_l|^2, x = K y, the second from
// Hoelder's inequality in S.
void SensitivityBounds(Executor& executor, MatView<const float> keys, double p, double ridge,
                       std::span<const double> weights, std::span<double> bounds);

// The constant that is appended to keys for leverage about their mean: as large as the coordinates of `key`, the first
// one that is not zero, so that the ridge means the same for it. 0 for a zero key: keys before the first that is not
// zero get none, so that no constant depends on later keys.
float CenteringConstant(std::span<const float> key);

}  // namespace croquis::attention::lev
