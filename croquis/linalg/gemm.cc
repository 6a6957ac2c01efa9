#include "croquis/linalg/gemm.h"

#include <algorithm>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>

#include "croquis/linalg/one_omp_thread.h"

namespace croquis::linalg {

void Gemm(bool trans_a, bool trans_b, float alpha, MatView<const float> a, MatView<const float> b, float beta,
          MatView<float> c) {
  const int64_t k = trans_a ? a.rows : a.cols;
  CROQUIS_DCHECK((trans_a ? a.cols : a.rows) == c.rows);
  CROQUIS_DCHECK((trans_b ? b.rows : b.cols) == c.cols && (trans_b ? b.cols : b.rows) == k);
  if (c.rows == 0 || c.cols == 0) return;
  if (k == 0 || alpha == 0) {  // oneDNN leaves C as it is
    for (int64_t i = 0; i < c.rows; ++i) {
      float* row = c.Row(i);
      for (int64_t j = 0; j < c.cols; ++j) row[j] = beta == 0 ? 0 : beta * row[j];
    }
    return;
  }
  // A matrix of one row may come with any stride, but oneDNN checks it.
  const auto stride = [](const auto& m) { return std::max(m.stride, m.cols); };
  const OneOmpThread one;
  const dnnl_status_t status = dnnl_sgemm(trans_a ? 'T' : 'N', trans_b ? 'T' : 'N', c.rows, c.cols, k, alpha, a.data,
                                          stride(a), b.data, stride(b), beta, c.data, stride(c));
  CROQUIS_DCHECK(status != dnnl_invalid_arguments);
  if (status != dnnl_success) throw std::bad_alloc();
}

}  // namespace croquis::linalg
