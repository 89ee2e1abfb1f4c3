// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <type_traits>

#include "orrery/attention/merge.hpp"
#include "orrery/host/context.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What every kernel that computes on the host shares: the data movement and the sums between tiles.
///
/// All functions take views of equal shapes but any strides (only the elements of one head are contiguous), convert
/// between element types where these differ, allocate nothing, and touch nothing outside the views' elements. Each
/// costs one pass over its operands, shared by the context's threads where it is long. Views must not overlap.
struct host_backend {
  /// to = from
  template <class T, class U>
  static void copy(const host_context& context, const tensor_view<T>& from, const tensor_view<U>& to) {
    for_each_head(context, to, [&](std::int64_t b, std::int64_t token, std::int64_t head) {
      const T* source = from.at(b, token, head);
      U* target = to.at(b, token, head);
      for (std::int64_t i = 0; i < to.dim; ++i) target[i] = static_cast<U>(source[i]);
    });
  }

  /// to = from
  template <class T, class U>
  static void copy(const host_context&, const row_view<T>& from, const row_view<U>& to) {
    for_each_row(to, [&](std::int64_t b, std::int64_t head, std::int64_t token) {
      *to.at(b, head, token) = static_cast<U>(*from.at(b, head, token));
    });
  }

  /// into = into + from, in the type of `into`
  template <class T, class U>
  static void add(const host_context& context, const tensor_view<T>& into, const tensor_view<U>& from) {
    for_each_head(context, into, [&](std::int64_t b, std::int64_t token, std::int64_t head) {
      const U* source = from.at(b, token, head);
      T* target = into.at(b, token, head);
      for (std::int64_t i = 0; i < into.dim; ++i) target[i] += static_cast<T>(source[i]);
    });
  }

  /// Every element becomes `value`.
  template <class T>
  static void clear(const host_context& context, const tensor_view<T>& tensor, std::type_identity_t<T> value = T{}) {
    for_each_head(context, tensor, [&](std::int64_t b, std::int64_t token, std::int64_t head) {
      T* target = tensor.at(b, token, head);
      for (std::int64_t i = 0; i < tensor.dim; ++i) target[i] = value;
    });
  }

  /// Every element becomes `value` (for a log-sum-exp that has seen no key: -infinity).
  template <class T>
  static void clear(const host_context&, const row_view<T>& rows, std::type_identity_t<T> value = T{}) {
    for_each_row(rows,
                 [&](std::int64_t b, std::int64_t head, std::int64_t token) { *rows.at(b, head, token) = value; });
  }

  /// (out_into, lse_into) = the attention over the keys of both partials; see `merge_weights`.
  template <class A, class F, class G>
  static void merge(const host_context& context, const tensor_view<A>& out_into, const row_view<A>& lse_into,
                    const tensor_view<F>& out_from, const row_view<G>& lse_from) {
    for_each_head(context, out_into, [&](std::int64_t b, std::int64_t token, std::int64_t head) {
      merge_row(out_into.at(b, token, head), *lse_into.at(b, head, token), out_from.at(b, token, head),
                static_cast<A>(*lse_from.at(b, head, token)), out_into.dim);
    });
  }

  /// delta = sum over the head dimension of out * grad_out, in delta's type: what the backward subtracts from each
  /// row's probability gradients (Dao, arXiv 2307.08691, algorithm 2, line 4).
  template <class S, class S2, class A>
  static void row_dot(const host_context& context, const tensor_view<S>& out, const tensor_view<S2>& grad_out,
                      const row_view<A>& delta) {
    for_each_head(context, out, [&](std::int64_t b, std::int64_t token, std::int64_t head) {
      const S* x = out.at(b, token, head);
      const S2* y = grad_out.at(b, token, head);
      // Eight sums, so that a compiler may vectorise without being allowed to reorder additions.
      A sums[8] = {};
      const std::int64_t whole = out.dim / 8 * 8;
      for (std::int64_t i = 0; i < whole; i += 8) {
        for (std::int64_t lane = 0; lane < 8; ++lane) {
          sums[lane] += static_cast<A>(x[i + lane]) * static_cast<A>(y[i + lane]);
        }
      }
      A sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
      for (std::int64_t i = whole; i < out.dim; ++i) sum += static_cast<A>(x[i]) * static_cast<A>(y[i]);
      *delta.at(b, head, token) = sum;
    });
  }

 private:
  template <class T, class Visit>
  static void for_each_head(const host_context& context, const tensor_view<T>& tensor, const Visit& visit) {
    if (tensor.size() == 0) return;
    constexpr std::int64_t elements = 1 << 15;  // of an item: waking a thread costs about as much
    const std::int64_t tokens = tensor.heads * tensor.dim < elements ? elements / (tensor.heads * tensor.dim) : 1;
    const std::int64_t parts = (tensor.sequence + tokens - 1) / tokens;
    context.for_each(tensor.batch * parts, [&](std::int64_t item, const host_context&) {
      const std::int64_t first = item % parts * tokens;
      const std::int64_t end = first + tokens < tensor.sequence ? first + tokens : tensor.sequence;
      for (std::int64_t token = first; token < end; ++token) {
        for (std::int64_t head = 0; head < tensor.heads; ++head) visit(item / parts, token, head);
      }
    });
  }

  template <class T, class Visit>
  static void for_each_row(const row_view<T>& rows, Visit&& visit) {
    for (std::int64_t b = 0; b < rows.batch; ++b) {
      for (std::int64_t head = 0; head < rows.heads; ++head) {
        for (std::int64_t token = 0; token < rows.sequence; ++token) visit(b, head, token);
      }
    }
  }
};

}  // namespace orrery::detail
