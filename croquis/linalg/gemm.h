// Products of f32 matrices that are used once: nothing is packed beforehand (for weights see matmul.h).
#pragma once

#include "croquis/base/view.h"

namespace croquis::linalg {

// C = alpha op(A) op(B) + beta C, where op(X) is X or, with its flag, the transpose of X. op(A) is [M, K], op(B) [K,
// N], C [M, N]; any row strides, C overlaps neither A nor B. With beta = 0 C is not read, so it may hold anything. Sums
// are f32 in oneDNN's order, which depends on the shape and the machine.
//
// Runs on the calling thread alone and may be called from workers of an Executor; cut large products over rows of C.
// Throws std::bad_alloc when oneDNN finds no memory for its panels.
void Gemm(bool trans_a, bool trans_b, float alpha, MatView<const float> a, MatView<const float> b, float beta,
          MatView<float> c);

}  // namespace croquis::linalg
