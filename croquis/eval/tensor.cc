#include "croquis/eval/tensor.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "croquis/base/dtype.h"

namespace croquis::eval {

Result<Tensor> MakeTensor(simd::RowType type, int64_t heads, int64_t rows, int64_t dim, const std::string& what) {
  const auto head = CheckedMul(rows, dim), all = head ? CheckedMul(heads, *head) : head,
             bytes = all ? CheckedMul(*all, simd::RowTypeBytes(type)) : all;
  if (!bytes) return OutOfRange(what + ": more numbers than can be counted");
  CROQUIS_CHECK_OK(CheckMemory(*bytes, what));
  Tensor t;
  t.buffer = Buffer(size_t(*bytes));
  t.view = {t.buffer.data(), type, heads, rows, dim, rows * dim, dim};
  return t;
}

void StoreRow(Tensor& to, int64_t head, int64_t row, const float* numbers) {
  const attention::TensorView& v = to.view;
  std::byte* const at = to.data() + (head * v.head_stride + row * v.row_stride) * simd::RowTypeBytes(v.type);
  if (v.type == simd::RowType::kF32) {
    std::memcpy(at, numbers, size_t(v.dim) * sizeof(float));
    return;
  }
  auto* const out = reinterpret_cast<uint16_t*>(at);
  for (int64_t i = 0; i < v.dim; ++i)
    out[i] = v.type == simd::RowType::kF16 ? FloatToF16(numbers[i]) : FloatToBf16(numbers[i]);
}

Result<Tensor> Converted(Executor& executor, const Tensor& from, simd::RowType type, const std::string& what) {
  const attention::TensorView& v = from.view;
  CROQUIS_TRY(Tensor to, MakeTensor(type, v.heads, v.rows, v.dim, what));
  to.batch = from.batch, to.batched = from.batched, to.headed = from.headed;
  constexpr int64_t kRows = 1024;
  const int64_t pieces = (v.rows + kRows - 1) / kRows;
  executor.ParallelFor(v.heads * pieces, [&](int64_t task, int) {
    const int64_t h = task / pieces, first = task % pieces * kRows;
    const attention::RowsView head = v.Head(h);
    std::vector<float> row(static_cast<size_t>(v.dim));
    for (int64_t r = first; r < std::min(v.rows, first + kRows); ++r) {
      head.Read(r, row.data());
      StoreRow(to, h, r, row.data());
    }
  });
  return to;
}

}  // namespace croquis::eval
