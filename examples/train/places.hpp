// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <orrery/kernel/cpu/backend.hpp>
#include <orrery/tensor/view.hpp>

#include "matrix.hpp"

namespace train {

/// Where a rank's numbers are and are computed with: in the host's memory, by the thread that calls. What the model
/// needs of a place is what this class has; `on_device` (device_place.cuh) is another.
class on_host {
 public:
  template <class T>
  using memory = std::vector<T>;

  template <class T>
  [[nodiscard]] memory<T> zeros(std::int64_t count) const {
    return memory<T>(static_cast<std::size_t>(count));
  }

  /// body(i) for each i from 0 to count - 1.
  template <class Body>
  void each(std::int64_t count, const Body& body) const {
    for (std::int64_t i = 0; i < count; ++i) body(i);
  }

  /// Of a matrix whose rows are contiguous, every element becomes `value`.
  template <class T>
  void fill(matrix_view<T> m, T value) const {
    for (std::int64_t i = 0; i < m.rows; ++i) std::fill_n(m.row(i), m.columns, value);
  }

  /// c += a * b. Four terms of the sum at a time, along contiguous rows of b and c, which compilers turn into vector
  /// code. The elements of a may lie in any way; a transposed b is copied first.
  template <class T>
  void multiply_add(matrix_view<T> c, matrix_view<T> a, matrix_view<T> b) const {
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

  /// to = from, in the type of `to`.
  template <class From, class To>
  void convert(const orrery::tensor_view<From>& from, const orrery::tensor_view<To>& to) const {
    orrery::detail::host_backend::copy({}, from, to);
  }

  /// Copies from the host's memory to the place's, and back; the data are there when the call returns.
  template <class T>
  void bring(std::span<const T> from, T* to) const {
    std::copy(from.begin(), from.end(), to);
  }
  template <class T>
  void fetch(const T* from, std::span<T> to) const {
    std::copy_n(from, to.size(), to.data());
  }

  /// Numbers of the host that the place works with: here they need no second copy.
  template <class T>
  class mirror {
   public:
    mirror(const on_host&, std::span<T> of_host) : of_host_{of_host} {}

    [[nodiscard]] T* data() const { return of_host_.data(); }
    /// The place's become the host's, and the host's the place's.
    void bring() const {}
    void fetch() const {}
    void clear() const { std::ranges::fill(of_host_, T{0}); }

   private:
    std::span<T> of_host_;
  };
};

}  // namespace train
