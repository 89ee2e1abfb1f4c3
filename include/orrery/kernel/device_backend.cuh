// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/gpu.cuh"
#include "orrery/kernel/merge.hpp"
#include "orrery/kernel/view.hpp"

namespace orrery {

/// Which part of a tensor one block of threads works on: some tokens of one head. Blocks are counted with the tokens
/// fastest and the batch slowest.
struct device_rows {
  std::int64_t batch;
  std::int64_t head;
  std::int64_t first;  ///< token
  int count;

  [[nodiscard]] static constexpr std::int64_t blocks(std::int64_t batch, std::int64_t heads, std::int64_t tokens,
                                                     std::int64_t tokens_of_block) noexcept {
    return batch * heads * ((tokens + tokens_of_block - 1) / tokens_of_block);
  }
  [[nodiscard]] static constexpr device_rows of(std::int64_t block, std::int64_t heads, std::int64_t tokens,
                                                std::int64_t tokens_of_block) noexcept {
    const std::int64_t parts = (tokens + tokens_of_block - 1) / tokens_of_block;
    const std::int64_t first = block % parts * tokens_of_block;
    const std::int64_t left = tokens - first;
    return {block / parts / heads, block / parts % heads, first,
            static_cast<int>(left < tokens_of_block ? left : tokens_of_block)};
  }
};

/// Can all heads of the tensor be read and written by vectors of 16 bytes, and `elements` at a time?
template <class T>
[[nodiscard]] constexpr bool moves_by_vectors(const tensor_view<T>& tensor, std::int64_t elements) noexcept {
  constexpr std::int64_t vector = 16 / static_cast<std::int64_t>(sizeof(T));
  return reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.dim % elements == 0 &&
         tensor.batch_stride % vector == 0 && tensor.sequence_stride % vector == 0 && tensor.head_stride % vector == 0;
}

/// Elements that a thread holds at a time, in registers.
template <class T, int count>
struct device_elements {
  T of[static_cast<std::size_t>(count)];

  /// Reads them from global memory; by vectors, if these fill vectors, since the address is then aligned.
  template <class Threads>
  static ORRERY_DEVICE device_elements read(const Threads& threads, const T* from) {
    device_elements all;
    if constexpr (sizeof(T) * count % 16 == 0) {
      vector_words words[sizeof all.of / 16];
      for (std::size_t i = 0; i < sizeof all.of / 16; ++i) words[i] = threads.read_vector(from + i * (16 / sizeof(T)));
      std::memcpy(all.of, words, sizeof words);
    } else {
      for (int i = 0; i < count; ++i) all.of[i] = from[i];
    }
    return all;
  }

  template <class Threads>
  ORRERY_DEVICE void write(const Threads& threads, T* to) const {
    if constexpr (sizeof(T) * count % 16 == 0) {
      vector_words words[sizeof of / 16];
      std::memcpy(words, of, sizeof words);
      for (std::size_t i = 0; i < sizeof of / 16; ++i) threads.write_vector(to + i * (16 / sizeof(T)), words[i]);
    } else {
      for (int i = 0; i < count; ++i) to[i] = of[i];
    }
  }
};

/// How the kernels below cut their work: of a tensor's head, so many tokens are a block's.
struct device_backend_sizes {
  static constexpr int threads = 256;
  static constexpr int tokens = 64;
  static constexpr int rows = 2048;  ///< where there is only one number for each token
};

/// The kernel of `copy` and `add` of tensors: `count` elements at a time.
template <class T, class U, int count, bool accumulate>
struct device_transfer {
  tensor_view<const T> from;
  tensor_view<U> to;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), to.heads, to.sequence, device_backend_sizes::tokens);
    const int parts = static_cast<int>(to.dim) / count;
    for (int i = threads.thread(); i < rows.count * parts; i += device_backend_sizes::threads) {
      const std::int64_t token = rows.first + i / parts;
      const int first = i % parts * count;
      const auto source = device_elements<T, count>::read(threads, from.at(rows.batch, token, rows.head) + first);
      U* const target = to.at(rows.batch, token, rows.head) + first;
      device_elements<U, count> result;
      if constexpr (accumulate) result = device_elements<U, count>::read(threads, target);
      for (int j = 0; j < count; ++j) {
        if constexpr (accumulate) {
          result.of[j] += static_cast<U>(source.of[j]);
        } else {
          result.of[j] = static_cast<U>(source.of[j]);
        }
      }
      result.write(threads, target);
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
    for (int i = threads.thread(); i < rows.count; i += device_backend_sizes::threads) {
      *to.at(rows.batch, rows.head, rows.first + i) = static_cast<U>(*from.at(rows.batch, rows.head, rows.first + i));
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
    const int parts = static_cast<int>(tensor.dim) / count;
    device_elements<T, count> values;
    for (int j = 0; j < count; ++j) values.of[j] = value;
    for (int i = threads.thread(); i < rows.count * parts; i += device_backend_sizes::threads) {
      values.write(threads, tensor.at(rows.batch, rows.first + i / parts, rows.head) + i % parts * count);
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

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    constexpr int size = static_cast<int>(sizeof(A));
    const device_rows rows =
        device_rows::of(threads.block(), out_into.heads, out_into.sequence, device_backend_sizes::tokens);
    for (int i = threads.thread(); i < rows.count; i += device_backend_sizes::threads) {
      A* const lse = lse_into.at(rows.batch, rows.head, rows.first + i);
      const merge_weighting<A> weight =
          merge_weights(*lse, static_cast<A>(*lse_from.at(rows.batch, rows.head, rows.first + i)));
      *lse = weight.lse;
      threads.store(2 * i * size, weight.into);
      threads.store((2 * i + 1) * size, weight.from);
    }
    threads.barrier();
    const int parts = static_cast<int>(out_into.dim) / count;
    for (int i = threads.thread(); i < rows.count * parts; i += device_backend_sizes::threads) {
      const int row = i / parts;
      const A into = threads.template load<A>(2 * row * size);
      const A from = threads.template load<A>((2 * row + 1) * size);
      if (from == A{0}) continue;
      const std::int64_t token = rows.first + row;
      const int first = i % parts * count;
      const auto arrived = device_elements<F, count>::read(threads, out_from.at(rows.batch, token, rows.head) + first);
      A* const target = out_into.at(rows.batch, token, rows.head) + first;
      device_elements<A, count> sum;
      // A row without weight may hold anything, and is not read.
      if (into != A{0}) sum = device_elements<A, count>::read(threads, target);
      for (int j = 0; j < count; ++j) {
        const A added = from * static_cast<A>(arrived.of[j]);
        sum.of[j] = into == A{0} ? added : into * sum.of[j] + added;
      }
      sum.write(threads, target);
    }
  }
};

/// The kernel of `row_dot`: a warp for each row, its lanes along the head dimension, `count` elements at a time.
template <class S, class S2, class A, int count>
struct device_row_dot {
  tensor_view<const S> out;
  tensor_view<const S2> grad_out;
  row_view<A> delta;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), out.heads, out.sequence, device_backend_sizes::tokens);
    for (int row = threads.warp(); row < rows.count; row += device_backend_sizes::threads / 32) {
      const std::int64_t token = rows.first + row;
      A sum{0};
      for (int first = threads.lane() * count; first < static_cast<int>(out.dim); first += 32 * count) {
        const auto x = device_elements<S, count>::read(threads, out.at(rows.batch, token, rows.head) + first);
        const auto y = device_elements<S2, count>::read(threads, grad_out.at(rows.batch, token, rows.head) + first);
        for (int j = 0; j < count; ++j) sum += static_cast<A>(x.of[j]) * static_cast<A>(y.of[j]);
      }
      for (int distance = 16; distance > 0; distance /= 2) sum += threads.shuffle_xor(sum, distance);
      if (threads.lane() == 0) *delta.at(rows.batch, rows.head, token) = sum;
    }
  }
};

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

}  // namespace orrery
