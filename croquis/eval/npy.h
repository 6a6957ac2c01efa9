// NumPy's array files (.npy, format versions 1 to 3; numpy.lib.format documents them).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "croquis/eval/tensor.h"

namespace croquis::eval {

// An array inside the bytes of a file, in C order.
struct NpyArray {
  simd::RowType type = simd::RowType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> numbers;  // product of shape times the size of a number; any alignment
};

// Reads the header and finds the numbers. Little-endian float32 ('<f4'), float16 ('<f2') and bfloat16 (the two opaque
// bytes '<V2' or '|V2' that NumPy writes for the bfloat16 of ml_dtypes) are taken. Errors: not such a file or cut short
// (kCorrupt); other types, big-endian numbers, Fortran order (kUnsupported, with what to do).
Result<NpyArray> ParseNpy(std::span<const std::byte> file);

// Which dimension of a file counts the rows (tokens).
enum class TensorLayout : uint8_t {
  kHeadsFirst,  // [rows, dim], [heads, rows, dim], [batch, heads, rows, dim]
  kRowsFirst    // [rows, dim], [rows, heads, dim], [batch, rows, heads, dim]
};

// Maps a file of 2 to 4 dimensions. The numbers stay in the file's pages, except where they must move: those that are
// not aligned, and [batch, rows, heads, dim] with several batches, are copied.
// Errors: those of ParseNpy and MappedFile, with the path in front; dimensions; more memory than there is.
Result<Tensor> LoadNpy(const std::string& path, TensorLayout layout = TensorLayout::kHeadsFirst);

// A .npy file of f32 in memory, header and numbers in one piece, ready to be written.
class NpyFile {
 public:
  // Zeros. Errors: more memory than there is.
  static Result<NpyFile> Make(const std::vector<int64_t>& shape, const std::string& what);
  float* numbers() { return reinterpret_cast<float*>(buffer_.data() + header_); }
  std::string_view bytes() const { return {reinterpret_cast<const char*>(buffer_.data()), buffer_.size()}; }

 private:
  Buffer buffer_;
  size_t header_ = 0;
};

}  // namespace croquis::eval
