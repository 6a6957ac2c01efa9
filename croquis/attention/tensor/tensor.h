// Third-order (Kronecker) attention (Alman and Song, arXiv 2310.04064): every query weighs pairs of tokens,
//   o_i = sum_jl w_ijl (v1_j o v2_l) / sum_jl w_ijl,   w_ijl = exp(scale sum_x q_ix k1_jx k2_lx),
// over the j and l it sees. The paper's scale is 1 / dim.
#pragma once

#include <cstdint>
#include <span>

#include "croquis/attention/method.h"
#include "croquis/attention/tensor/monomials.h"

namespace croquis::attention::tensor {

// How large entries are, and what that bounds.
struct Bound {
  double q = 0, k1 = 0, k2 = 0;  // largest magnitudes of entries
  double B() const;              // the largest of the three
  // What no |logit| exceeds: the smaller of |scale| sum_x max|q_x| max|k1_x| max|k2_x| and, by Hoelder's inequality,
  // |scale| max|q|_3 max|k1|_3 max|k2|_3, the largest over heads. At most |scale| dim B^3.
  double logit = 0;
};
Bound Measure(Executor& executor, const Problem& problem);

// Rows rows[..] (head * nq + query) exactly: for each first key a streaming softmax over second keys, O(keys^2 dim) a
// row, in f32.
void RunExact(Executor& executor, const Problem& problem, const Output& output, std::span<const int64_t> rows);
// The same for all rows, in double and O(nq nk^2 dim): the definition.
void RunDefinition(Executor& executor, const Problem& problem, const Output& output);

// All rows through monomial features, O((nq + nk) R value_dim) for R features. Returns the rows (head * nq + query, in
// order) whose normaliser is not a positive number; their outputs are zeros. Errors: memory.
Result<std::vector<int64_t>> RunFeatures(Executor& executor, const Problem& problem, const Output& output,
                                         const Monomials& monomials, const Polynomial& polynomial);

}  // namespace croquis::attention::tensor
