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

/// Which part of a tensor one block of threads works on: some tokens of one head. Blocks are counted with the heads
/// fastest and the batch slowest: those that run together read whole tokens of a trainer's [..., head, dim] tensors,
/// and long runs of the packed [head, sequence, dim] ones.
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
    // A grid has fewer than 2^31 blocks, and divisions of 64 bits would take longer than the block's work.
    const auto index = static_cast<std::uint32_t>(block);
    const auto head_count = static_cast<std::uint32_t>(heads);
    const auto parts = static_cast<std::uint32_t>((tokens + tokens_of_block - 1) / tokens_of_block);
    const std::uint32_t row = index / head_count;
    const std::int64_t first = row % parts * tokens_of_block;
    const std::int64_t left = tokens - first;
    return {row / parts, index % head_count, first, static_cast<int>(left < tokens_of_block ? left : tokens_of_block)};
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
  static constexpr int at_once = 4;  ///< of its pieces, a thread reads so many before it writes the first
};

/// One of the pieces of some elements into which a block's rows are cut, as a thread takes them, every 256th. A
/// division for the thread's first one, none for those that follow.
class device_piece {
 public:
  int row;
  int part;

  constexpr device_piece() = default;
  /// The thread's first, where rows have so many parts.
  constexpr device_piece(int thread, int parts) noexcept
      : row{thread / parts},
        part{thread % parts},
        parts_{parts},
        more_rows_{device_backend_sizes::threads / parts},
        more_parts_{device_backend_sizes::threads % parts} {}

  constexpr void next() noexcept {
    row += more_rows_;
    part += more_parts_;
    if (part >= parts_) {
      part -= parts_;
      ++row;
    }
  }

 private:
  int parts_;
  int more_rows_;
  int more_parts_;
};

/// The lanes of a warp that share a row of so many pieces, and how many rows a warp has at a time.
struct device_row_lanes {
  int of_row = 32;
  int rows = 1;

  explicit constexpr device_row_lanes(int parts) noexcept {
    for (; of_row > 1 && of_row / 2 >= parts; of_row /= 2) rows *= 2;
  }
};

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
        from[i] = A{0};
        if (next.row >= rows.count) continue;
        into[i] = threads.template load<A>(2 * next.row * size);
        from[i] = threads.template load<A>((2 * next.row + 1) * size);
        // A row without weight may hold anything, and is not read.
        if (from[i] == A{0}) continue;
        place[i] = target + next.row * out_into.sequence_stride + next.part * count;
        arrived[i] =
            device_elements<F, count>::read(threads, source + next.row * out_from.sequence_stride + next.part * count);
        if (into[i] != A{0}) sum[i] = device_elements<A, count>::read(threads, place[i]);
      }
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i) {
        if (from[i] == A{0}) continue;
        for (int j = 0; j < count; ++j) {
          const A added = from[i] * static_cast<A>(arrived[i].of[j]);
          sum[i].of[j] = into[i] == A{0} ? added : into[i] * sum[i].of[j] + added;
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
