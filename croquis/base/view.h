// Non-owning matrix views and the owning, aligned Matrix.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "croquis/base/check.h"
#include "croquis/base/memory.h"

namespace croquis {

// Row-major view of [rows, cols]; unit inner stride, any row stride (in elements).
template <class T>
struct MatView {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;

  constexpr MatView() = default;
  constexpr MatView(T* d, int64_t r, int64_t c, int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  constexpr MatView(T* d, int64_t r, int64_t c) : data(d), rows(r), cols(c), stride(c) {}

  constexpr T* Row(int64_t r) const {
    CROQUIS_DCHECK(0 <= r && r < rows);
    return data + r * stride;
  }
  constexpr std::span<T> operator[](int64_t r) const { return {Row(r), size_t(cols)}; }
  constexpr T& operator()(int64_t r, int64_t c) const {
    CROQUIS_DCHECK(0 <= c && c < cols);
    return Row(r)[c];
  }
  // Rows begin .. begin + n.
  constexpr MatView Rows(int64_t begin, int64_t n) const {
    CROQUIS_DCHECK(0 <= begin && begin + n <= rows);
    return {data + begin * stride, n, cols, stride};
  }
  // Columns begin .. begin + n.
  constexpr MatView Cols(int64_t begin, int64_t n) const {
    CROQUIS_DCHECK(0 <= begin && begin + n <= cols);
    return {data + begin, rows, n, stride};
  }
  constexpr operator MatView<const T>() const requires(!std::is_const_v<T>) { return {data, rows, cols, stride}; }
};

// Owning row-major matrix, 64-byte aligned, zero-initialised; rows are contiguous.
template <class T>
class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t rows, int64_t cols) : buffer_(size_t(rows) * size_t(cols) * sizeof(T)), rows_(rows), cols_(cols) {}
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  T* data() { return reinterpret_cast<T*>(buffer_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(buffer_.data()); }
  T* Row(int64_t r) { return data() + r * cols_; }
  const T* Row(int64_t r) const { return data() + r * cols_; }
  MatView<T> View() { return {data(), rows_, cols_}; }
  MatView<const T> View() const { return {data(), rows_, cols_}; }

 private:
  Buffer buffer_;
  int64_t rows_ = 0, cols_ = 0;
};

}  // namespace croquis
