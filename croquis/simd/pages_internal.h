// Private to the module: the tables of the instruction sets, and what their arithmetic has in common.
//
// The arithmetic every target follows, so that all agree bit for bit:
//   query     top = 32639 (fine: two signed bytes, 256 hi + lo) or 127 (fast); per row v = rint(q * (top / max|q|)),
//             s = (max|q| / top) * (scale * step); rows with max|q| < kTiny are zero.
//   logit     sum over planes, first plane first, of  F * (s * weight of the plane), weight 128 then 1 of two, or 1;
//             F = fma(float(I_r), S[r][t], F) over the runs r in order, from 0; I_r = sum of v * level over the run;
//             then, with mins, fma(M[r][t], m_r, logit) over r, m_r = scale * TreeSum of the run's q.
//   weights   w = p * S in f32; per row and run v = rint(w * (top / max|w|)); top = 65535 (fine) or 255 (fast); when
//   any
//             S of the page has its sign bit set, signed: 32639 or 127.
//   sums      acc = fma(float(sum of v * level), ((max|w| / top) * (step * weight of the plane)) * p_scale, acc),
//   planes in
//             order; then, with mins, fma(p_scale, TreeSum of p * M, acc).
//   TreeSum   sixteen partial sums (element i adds to number i mod 16, with fma where products are summed), then
//   halves:
//             i + 8, i + 4, i + 2, i + 1.
// Integer sums fit 32 bits: 128 * 32639 * 512 < 2^31 and 128 * 65535 * 128 < 2^31.
#pragma once

#include "croquis/simd/page_kernels.h"

namespace croquis::simd {

inline constexpr float kTiny = 1e-30f;  // below this a maximum counts as zero: its inverse would overflow

void NothingToKeep();  // enter and leave of targets without state

const PageKernels& PagesScalar();
const PageKernels& PagesAvx2();
const PageKernels& PagesAvxVnni();
const PageKernels& PagesAvx512();
const PageKernels& PagesAmx();

}  // namespace croquis::simd
