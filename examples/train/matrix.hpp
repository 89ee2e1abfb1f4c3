// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace train {

/// A matrix in memory that somebody else owns. Element (i, j) lies at data[i * row_stride + j * column_stride].
template <class T>
struct matrix_view {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = columns;
  std::int64_t column_stride = 1;

  [[nodiscard]] constexpr T* row(std::int64_t i) const { return data + i * row_stride; }
  [[nodiscard]] constexpr std::int64_t size() const { return rows * columns; }
  [[nodiscard]] constexpr matrix_view transposed() const { return {data, columns, rows, column_stride, row_stride}; }
  [[nodiscard]] constexpr matrix_view rows_from(std::int64_t first, std::int64_t count) const {
    return {row(first), count, columns, row_stride, column_stride};
  }
  [[nodiscard]] constexpr matrix_view columns_from(std::int64_t first, std::int64_t count) const {
    return {data + first * column_stride, rows, count, row_stride, column_stride};
  }
};

/// A matrix that owns its memory, row after row, at some place (see places.hpp); zero at first.
template <class T, class Place>
struct matrix : matrix_view<T> {
  matrix(const Place& place, std::int64_t height, std::int64_t width)
      : memory{place.template zeros<T>(height * width)} {
    static_cast<matrix_view<T>&>(*this) = {memory.data(), height, width};
  }
  matrix(matrix&&) noexcept = default;  // memory that moves leaves its elements where they are

  typename Place::template memory<T> memory;
};

/// c = a * b, for a c whose rows are contiguous.
template <class T, class Place>
void multiply(const Place& place, matrix_view<T> c, matrix_view<T> a, matrix_view<T> b) {
  place.fill(c, T{0});
  place.multiply_add(c, a, b);
}

/// Of y = x * w: adds to w's gradient and writes x's.
template <class T, class Place>
void linear_backward(const Place& place, matrix_view<T> x, matrix_view<T> w, matrix_view<T> grad_y,
                     matrix_view<T> grad_x, matrix_view<T> grad_w) {
  place.multiply_add(grad_w, x.transposed(), grad_y);
  multiply(place, grad_x, grad_y, w.transposed());
}

}  // namespace train
