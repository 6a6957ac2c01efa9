// Tensors that own what they stand on, for commands and benchmarks: read from files, generated, converted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "croquis/attention/problem.h"
#include "croquis/base/executor.h"
#include "croquis/base/memory.h"
#include "croquis/base/result.h"
#include "croquis/model/mapped_file.h"

namespace croquis::eval {

// [heads, rows, dim] where heads counts every head of every batch, batch after batch.
struct Tensor {
  attention::TensorView view;
  int64_t batch = 1;
  bool batched = false;  // the file had a batch dimension
  bool headed = true;    // the file had a head dimension

  Buffer buffer;                                  // the numbers, unless they stay in the file
  std::shared_ptr<const model::MappedFile> file;  // kept open where the view points into it

  std::byte* data() { return buffer.data(); }
};

// Zeros, contiguous. Errors: more memory than there is.
Result<Tensor> MakeTensor(simd::RowType type, int64_t heads, int64_t rows, int64_t dim, const std::string& what);

// Number i of row `row` of head `head`, rounded to the tensor's type. The view must be of a tensor made by MakeTensor.
void StoreRow(Tensor& to, int64_t head, int64_t row, const float* numbers);

// A contiguous copy rounded to `type` (to nearest even).
Result<Tensor> Converted(Executor& executor, const Tensor& from, simd::RowType type, const std::string& what);

}  // namespace croquis::eval
