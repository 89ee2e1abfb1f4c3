// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace train {

/// A matrix in memory that somebody else owns. Element (i, j) lies at data[i * row_stride + j * column_stride].
template <class T>
struct matrix_view {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = columns;
  std::int64_t column_stride = 1;

  [[nodiscard]] T* row(std::int64_t i) const { return data + i * row_stride; }
  [[nodiscard]] std::int64_t size() const { return rows * columns; }
  [[nodiscard]] matrix_view transposed() const { return {data, columns, rows, column_stride, row_stride}; }
  [[nodiscard]] matrix_view rows_from(std::int64_t first, std::int64_t count) const {
    return {row(first), count, columns, row_stride, column_stride};
  }
  [[nodiscard]] matrix_view columns_from(std::int64_t first, std::int64_t count) const {
    return {data + first * column_stride, rows, count, row_stride, column_stride};
  }
  /// For rows that are contiguous.
  void fill(T value) const {
    for (std::int64_t i = 0; i < rows; ++i) std::fill_n(row(i), columns, value);
  }
};

/// A matrix that owns its memory, row after row; zero at first.
template <class T>
struct matrix : matrix_view<T> {
  matrix(std::int64_t height, std::int64_t width) : memory(static_cast<std::size_t>(height * width)) {
    static_cast<matrix_view<T>&>(*this) = {memory.data(), height, width};
  }
  matrix(matrix&&) noexcept = default;  // a vector that moves leaves its elements where they are

  std::vector<T> memory;
};

template <class T>
void copy(matrix_view<T> from, matrix_view<T> to) {
  std::copy_n(from.data, from.size(), to.data);
}

/// c += a * b. Four terms of the sum at a time, along contiguous rows of b and c, which compilers turn into vector
/// code. The elements of a may lie in any way; a transposed b is copied first.
template <class T>
void multiply_add(matrix_view<T> c, matrix_view<T> a, matrix_view<T> b) {
  std::vector<T> copied;
  if (b.column_stride != 1) {
    for (std::int64_t k = 0; k < b.rows; ++k)
      for (std::int64_t j = 0; j < b.columns; ++j) copied.push_back(b.row(k)[j * b.column_stride]);
    b = {copied.data(), b.rows, b.columns};
  }
  for (std::int64_t i = 0; i < c.rows; ++i) {
    T* sum = c.row(i);
    const T* x = a.row(i);
    const std::int64_t next = a.column_stride;
    std::int64_t k = 0;
    for (; k + 4 <= b.rows; k += 4, x += 4 * next) {
      const T x0 = x[0], x1 = x[next], x2 = x[2 * next], x3 = x[3 * next];
      const T *b0 = b.row(k), *b1 = b.row(k + 1), *b2 = b.row(k + 2), *b3 = b.row(k + 3);
      for (std::int64_t j = 0; j < b.columns; ++j) sum[j] += x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j];
    }
    for (; k < b.rows; ++k, x += next)
      for (std::int64_t j = 0; j < b.columns; ++j) sum[j] += *x * b.row(k)[j];
  }
}

/// c = a * b, for a c whose rows are contiguous.
template <class T>
void multiply(matrix_view<T> c, matrix_view<T> a, matrix_view<T> b) {
  c.fill(0);
  multiply_add(c, a, b);
}

}  // namespace train
