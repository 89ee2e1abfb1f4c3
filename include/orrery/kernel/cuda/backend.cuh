// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "orrery/device/context.hpp"
#include "orrery/device/gpu.cuh"
#include "orrery/kernel/cuda/movement.cuh"
#include "orrery/kernel/cuda/row_partition.cuh"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What every kernel that computes on a CUDA device shares: the data movement and the sums between tiles, as
/// `host_backend` has them for processors.
///
/// All functions enqueue one kernel on the context's stream and return; none waits or allocates. They take views of
/// device memory, of equal shapes but any strides (only the elements of one head are contiguous), convert between
/// element types where these differ, and touch nothing outside the views' elements. Memory moves by 16 bytes a thread
/// where all addresses and strides allow it, else by elements. Each costs one pass over its operands. Views must not
/// overlap. Each throws `device_error` if CUDA does not take the kernel.
template <class Device = gpu>
struct device_backend {
  /// to = from
  template <class T, class U>
  static void copy(const device_context& context, const tensor_view<T>& from, const tensor_view<U>& to) {
    using source = std::remove_const_t<T>;
    by_vectors<source, U>(
        [&]<int count>(width<count>) {
          launch(context, to, device_transfer<source, U, count, false>{from, to});
        },
        from, to);
  }

  /// to = from
  template <class T, class U>
  static void copy(const device_context& context, const row_view<T>& from, const row_view<U>& to) {
    launch(context, to, device_row_copy<std::remove_const_t<T>, U>{from, to});
  }

  /// into = into + from, in the type of `into`
  template <class T, class U>
  static void add(const device_context& context, const tensor_view<T>& into, const tensor_view<U>& from) {
    using source = std::remove_const_t<U>;
    by_vectors<source, T>(
        [&]<int count>(width<count>) {
          launch(context, into, device_transfer<source, T, count, true>{from, into});
        },
        from, into);
  }

  /// Every element becomes `value`.
  template <class T>
  static void clear(const device_context& context, const tensor_view<T>& tensor, std::type_identity_t<T> value = T{}) {
    by_vectors<T>(
        [&]<int count>(width<count>) {
          launch(context, tensor, device_clear<T, count>{tensor, value});
        },
        tensor);
  }

  /// Every element becomes `value` (for a log-sum-exp that has seen no key: -infinity).
  template <class T>
  static void clear(const device_context& context, const row_view<T>& rows, std::type_identity_t<T> value = T{}) {
    launch(context, rows, device_row_clear<T>{rows, value});
  }

  /// (out_into, lse_into) = the attention over the keys of both partials; see `merge_weights`.
  template <class A, class F, class G>
  static void merge(const device_context& context, const tensor_view<A>& out_into, const row_view<A>& lse_into,
                    const tensor_view<F>& out_from, const row_view<G>& lse_from) {
    using from = std::remove_const_t<F>;
    by_vectors<A, from>(
        [&]<int count>(width<count>) {
          using body = device_merge<A, from, std::remove_const_t<G>, count>;
          launch(context, out_into, body{out_into, lse_into, out_from, lse_from}, body::shared_bytes);
        },
        out_into, out_from);
  }

  /// delta = sum over the head dimension of out * grad_out, in delta's type: what the backward subtracts from each
  /// row's probability gradients (Dao, arXiv 2307.08691, algorithm 2, line 4).
  template <class S, class S2, class A>
  static void row_dot(const device_context& context, const tensor_view<S>& out, const tensor_view<S2>& grad_out,
                      const row_view<A>& delta) {
    using x = std::remove_const_t<S>;
    using y = std::remove_const_t<S2>;
    by_vectors<x, y>(
        [&]<int count>(width<count>) {
          launch(context, out, device_row_dot<x, y, A, count>{out, grad_out, delta});
        },
        out, grad_out);
  }

 private:
  template <int count>
  struct width {};

  /// Calls enqueue(width<n>) with as many elements as fill a vector of the narrowest type, or one if the views do not
  /// allow that.
  template <class... Elements, class Enqueue, class... Views>
  static void by_vectors(const Enqueue& enqueue, const Views&... views) {
    constexpr int vector = 16 / static_cast<int>((std::min)({sizeof(Elements)...}));
    if ((moves_by_vectors(views, vector) && ...)) {
      enqueue(width<vector>{});
    } else {
      enqueue(width<1>{});
    }
  }

  template <class T, class Body>
  static void launch(const device_context& context, const tensor_view<T>& tensor, const Body& body,
                     int shared_bytes = 0) {
    if (tensor.size() == 0) return;
    Device::template launch<device_backend_sizes::threads>(
        context, device_rows::blocks(tensor.batch, tensor.heads, tensor.sequence, device_backend_sizes::tokens),
        shared_bytes, body);
  }
  template <class T, class Body>
  static void launch(const device_context& context, const row_view<T>& rows, const Body& body) {
    Device::template launch<device_backend_sizes::threads>(
        context, device_rows::blocks(rows.batch, rows.heads, rows.sequence, device_backend_sizes::rows), 0, body);
  }
};

}  // namespace orrery::detail
