// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstddef>
#include <cstdint>

#include "orrery/attention/merge.hpp"
#include "orrery/device/code.hpp"
#include "orrery/kernel/cuda/row_partition.cuh"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

/// The kernels that move data between tiles and sum it up: what `device_backend` launches.
namespace orrery::detail {

/// The kernel of `copy` and `add` of tensors: `count` elements at a time.
template <class T, class U, int count, bool accumulate>
struct device_transfer {
  tensor_view<const T> from;
  tensor_view<U> to;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), to.heads, to.sequence, device_backend_sizes::tokens);
    const T* const source = from.at(rows.batch, rows.first, rows.head);
    U* const target = to.at(rows.batch, rows.first, rows.head);
    constexpr int at_once = device_backend_sizes::at_once;
    for (device_piece next{threads.thread(), static_cast<int>(to.dim) / count}; next.row < rows.count;) {
      device_elements<T, count> moved[at_once];
      device_elements<U, count> result[at_once];
      U* place[at_once];
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i, next.next()) {
        place[i] = nullptr;
        if (next.row >= rows.count) continue;
        place[i] = target + next.row * to.sequence_stride + next.part * count;
        moved[i] =
            device_elements<T, count>::read(threads, source + next.row * from.sequence_stride + next.part * count);
        if constexpr (accumulate) result[i] = device_elements<U, count>::read(threads, place[i]);
      }
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i) {
        if (place[i] == nullptr) continue;
        for (int j = 0; j < count; ++j) {
          if constexpr (accumulate) {
            result[i].of[j] += static_cast<U>(moved[i].of[j]);
          } else {
            result[i].of[j] = static_cast<U>(moved[i].of[j]);
          }
        }
        result[i].write(threads, place[i]);
      }
    }
  }
};

/// The kernel of `copy` of rows.
template <class T, class U>
struct device_row_copy {
  row_view<const T> from;
  row_view<U> to;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), to.heads, to.sequence, device_backend_sizes::rows);
    constexpr int each = device_backend_sizes::rows / device_backend_sizes::threads;
    T moved[each];
    ORRERY_UNROLL
    for (int i = 0; i < each; ++i) {
      const int row = threads.thread() + i * device_backend_sizes::threads;
      if (row < rows.count) moved[i] = *from.at(rows.batch, rows.head, rows.first + row);
    }
    ORRERY_UNROLL
    for (int i = 0; i < each; ++i) {
      const int row = threads.thread() + i * device_backend_sizes::threads;
      if (row < rows.count) *to.at(rows.batch, rows.head, rows.first + row) = static_cast<U>(moved[i]);
    }
  }
};

/// The kernel of `clear` of tensors: `count` elements at a time.
template <class T, int count>
struct device_clear {
  tensor_view<T> tensor;
  T value;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows =
        device_rows::of(threads.block(), tensor.heads, tensor.sequence, device_backend_sizes::tokens);
    T* const target = tensor.at(rows.batch, rows.first, rows.head);
    device_elements<T, count> values;
    for (int j = 0; j < count; ++j) values.of[j] = value;
    for (device_piece at{threads.thread(), static_cast<int>(tensor.dim) / count}; at.row < rows.count; at.next()) {
      values.write(threads, target + at.row * tensor.sequence_stride + at.part * count);
    }
  }
};

/// The kernel of `clear` of rows.
template <class T>
struct device_row_clear {
  row_view<T> rows_of;
  T value;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows =
        device_rows::of(threads.block(), rows_of.heads, rows_of.sequence, device_backend_sizes::rows);
    for (int i = threads.thread(); i < rows.count; i += device_backend_sizes::threads) {
      *rows_of.at(rows.batch, rows.head, rows.first + i) = value;
    }
  }
};

/// The kernel of `merge`: first each row's weights, into shared memory; then its elements, `count` at a time.
template <class A, class F, class G, int count>
struct device_merge {
  tensor_view<A> out_into;
  row_view<A> lse_into;
  tensor_view<const F> out_from;
  row_view<const G> lse_from;

  static constexpr int shared_bytes = 2 * device_backend_sizes::tokens * static_cast<int>(sizeof(A));
  /// Stands for the weight of a row that has seen no key. Weights of other rows may be 0, if they are too small for A.
  static constexpr A empty{-1};

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    constexpr int size = static_cast<int>(sizeof(A));
    const device_rows rows =
        device_rows::of(threads.block(), out_into.heads, out_into.sequence, device_backend_sizes::tokens);
    for (int i = threads.thread(); i < rows.count; i += device_backend_sizes::threads) {
      A* const lse = lse_into.at(rows.batch, rows.head, rows.first + i);
      const A into = *lse;
      const A from = static_cast<A>(*lse_from.at(rows.batch, rows.head, rows.first + i));
      const merge_weighting<A> weight = merge_weights(into, from);
      *lse = weight.lse;
      threads.store(2 * i * size, math::is_minus_infinity(into) ? empty : weight.into);
      threads.store((2 * i + 1) * size, math::is_minus_infinity(from) ? empty : weight.from);
    }
    threads.barrier();
    const F* const source = out_from.at(rows.batch, rows.first, rows.head);
    A* const target = out_into.at(rows.batch, rows.first, rows.head);
    constexpr int at_once = device_backend_sizes::at_once;
    for (device_piece next{threads.thread(), static_cast<int>(out_into.dim) / count}; next.row < rows.count;) {
      device_elements<F, count> arrived[at_once];
      device_elements<A, count> sum[at_once];
      A* place[at_once];
      A into[at_once];
      A from[at_once];
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i, next.next()) {
        from[i] = empty;
        if (next.row >= rows.count) continue;
        into[i] = threads.template load<A>(2 * next.row * size);
        from[i] = threads.template load<A>((2 * next.row + 1) * size);
        // A row that has seen no key may hold anything, and is not read.
        if (from[i] == empty) continue;
        place[i] = target + next.row * out_into.sequence_stride + next.part * count;
        arrived[i] =
            device_elements<F, count>::read(threads, source + next.row * out_from.sequence_stride + next.part * count);
        if (into[i] != empty) sum[i] = device_elements<A, count>::read(threads, place[i]);
      }
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i) {
        if (from[i] == empty) continue;
        for (int j = 0; j < count; ++j) {
          const A added = from[i] * static_cast<A>(arrived[i].of[j]);
          sum[i].of[j] = into[i] == empty ? added : into[i] * sum[i].of[j] + added;
        }
        sum[i].write(threads, place[i]);
      }
    }
  }
};

/// The kernel of `row_dot`: as many lanes of a warp for each row as it has pieces of `count` elements, up to all; some
/// rows at a time.
template <class S, class S2, class A, int count>
struct device_row_dot {
  tensor_view<const S> out;
  tensor_view<const S2> grad_out;
  row_view<A> delta;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), out.heads, out.sequence, device_backend_sizes::tokens);
    const S* const x_of = out.at(rows.batch, rows.first, rows.head);
    const S2* const y_of = grad_out.at(rows.batch, rows.first, rows.head);
    const int dim = static_cast<int>(out.dim);
    const device_row_lanes lanes{dim / count};
    const int lane = threads.lane() % lanes.of_row;
    constexpr int at_once = device_backend_sizes::at_once;
    const int step = device_backend_sizes::threads / 32 * lanes.rows;
    for (int base = threads.warp() * lanes.rows; base < rows.count; base += at_once * step) {
      const int row = base + threads.lane() / lanes.of_row;  // and those `step` apart
      A sum[at_once] = {};
      for (int first = lane * count; first < dim; first += lanes.of_row * count) {
        device_elements<S, count> x[at_once];
        device_elements<S2, count> y[at_once];
        ORRERY_UNROLL
        for (int i = 0; i < at_once; ++i) {
          const int at = row + i * step;
          if (at >= rows.count) continue;
          x[i] = device_elements<S, count>::read(threads, x_of + at * out.sequence_stride + first);
          y[i] = device_elements<S2, count>::read(threads, y_of + at * grad_out.sequence_stride + first);
        }
        ORRERY_UNROLL
        for (int i = 0; i < at_once; ++i) {
          if (row + i * step >= rows.count) continue;
          for (int j = 0; j < count; ++j) sum[i] += static_cast<A>(x[i].of[j]) * static_cast<A>(y[i].of[j]);
        }
      }
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i) {
        for (int distance = lanes.of_row / 2; distance > 0; distance /= 2) {
          sum[i] += threads.shuffle_xor(sum[i], distance);
        }
        const int at = row + i * step;
        if (lane == 0 && at < rows.count) *delta.at(rows.batch, rows.head, rows.first + at) = sum[i];
      }
    }
  }
};

}  // namespace orrery::detail
