// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>

#include "orrery/kernel/device_backend.cuh"
#include "orrery/kernel/device_blocks.hpp"
#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/float16.hpp"
#include "orrery/kernel/gpu.cuh"
#include "orrery/kernel/mask.hpp"
#include "orrery/kernel/tile.hpp"

namespace orrery {

/// Threads of a block of the kernels below: one for each row.
inline constexpr int device_reference_threads = 64;

template <class A, class T>
ORRERY_DEVICE A device_dot(const T* x, const T* y, std::int64_t dim) {
  A sum{0};
  for (std::int64_t i = 0; i < dim; ++i) sum += static_cast<A>(x[i]) * static_cast<A>(y[i]);
  return sum;
}

template <class A, class T>
ORRERY_DEVICE void device_add_scaled(A* into, A factor, const T* x, std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; ++i) into[i] += factor * static_cast<A>(x[i]);
}

/// The forward of `device_reference`: a thread for each query.
template <class T, class A, class Mask>
struct device_reference_forward {
  device_blocks<forward_queries<T, A>> queries;
  device_blocks<forward_keys<T>> keys;
  head_map heads;
  A scale;
  Mask mask;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    constexpr A nothing = -std::numeric_limits<A>::infinity();
    const device_item item = device_item::of(queries, threads.block(), device_reference_threads);
    if (threads.thread() >= item.tokens.count) return;
    const forward_queries<T, A>& block = queries.of[item.block];
    const std::int64_t row = item.tokens.first + threads.thread();
    const std::int64_t position = item.tokens.position(threads.thread());
    const std::int64_t b = item.batch;
    const std::int64_t key_head = heads.key_head(item.head);
    const T* const q = block.q.at(b, row, item.head);
    A* const out = block.out.at(b, row, item.head);
    A* const lse = block.lse.at(b, item.head, row);
    const A lse_before = block.fresh ? nothing : *lse;

    A largest = lse_before;
    for (const forward_keys<T>& side : keys) {
      for (std::int64_t key = 0; key < side.k.sequence; ++key) {
        if (!mask.visible(position, side.positions.position(key))) continue;
        const A score = scale * device_dot<A>(q, side.k.at(b, key, key_head), block.q.dim);
        if (score > largest) largest = score;
      }
    }
    // What the row has seen before counts as one key whose value is the mean so far.
    const A weight_before = lse_before == nothing ? A{0} : std::exp(lse_before - largest);
    for (std::int64_t i = 0; i < block.out.dim; ++i) out[i] = weight_before == A{0} ? A{0} : out[i] * weight_before;
    A sum = weight_before;
    for (const forward_keys<T>& side : keys) {
      for (std::int64_t key = 0; key < side.k.sequence; ++key) {
        if (!mask.visible(position, side.positions.position(key))) continue;
        const A weight = std::exp(scale * device_dot<A>(q, side.k.at(b, key, key_head), block.q.dim) - largest);
        sum += weight;
        device_add_scaled(out, weight, side.v.at(b, key, key_head), block.out.dim);
      }
    }
    *lse = sum == A{0} ? nothing : largest + std::log(sum);
    for (std::int64_t i = 0; i < block.out.dim; ++i) out[i] = sum == A{0} ? A{0} : out[i] / sum;
  }
};

/// The gradients of `device_reference`: of the queries, with a thread for each; or else of the keys and values.
template <class T, class A, class Mask, bool of_queries>
struct device_reference_backward {
  device_blocks<backward_queries<T, A>> queries;
  device_blocks<backward_keys<T, A>> keys;
  head_map heads;
  A scale;
  Mask mask;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    if constexpr (of_queries) {
      const device_item item = device_item::of(queries, threads.block(), device_reference_threads);
      if (threads.thread() >= item.tokens.count) return;
      const backward_queries<T, A>& block = queries.of[item.block];
      const std::int64_t row = item.tokens.first + threads.thread();
      A* const grad_q = block.grad_q.at(item.batch, row, item.head);
      for (std::int64_t i = 0; block.fresh && i < block.grad_q.dim; ++i) grad_q[i] = A{0};
      const std::int64_t key_head = heads.key_head(item.head);
      for (const backward_keys<T, A>& side : keys) {
        for (std::int64_t key = 0; key < side.k.sequence; ++key) {
          const pair p = pair_of(block, item.batch, item.head, row, side, key_head, key);
          if (p.visible) device_add_scaled(grad_q, p.grad_score, side.k.at(item.batch, key, key_head), block.q.dim);
        }
      }
    } else {
      const device_item item = device_item::of(keys, threads.block(), device_reference_threads);
      if (threads.thread() >= item.tokens.count) return;
      const backward_keys<T, A>& side = keys.of[item.block];
      const std::int64_t key = item.tokens.first + threads.thread();
      A* const grad_k = side.grad_k.at(item.batch, key, item.head);
      A* const grad_v = side.grad_v.at(item.batch, key, item.head);
      for (std::int64_t i = 0; side.fresh && i < side.grad_k.dim; ++i) grad_k[i] = A{0};
      for (std::int64_t i = 0; side.fresh && i < side.grad_v.dim; ++i) grad_v[i] = A{0};
      for (const backward_queries<T, A>& block : queries) {
        const head_group group = head_group::of(heads, item.head, block.q.heads);
        for (std::int64_t head = group.first; head < group.end; ++head) {
          for (std::int64_t row = 0; row < block.q.sequence; ++row) {
            const pair p = pair_of(block, item.batch, head, row, side, item.head, key);
            if (!p.visible) continue;
            device_add_scaled(grad_k, p.grad_score, block.q.at(item.batch, row, head), block.q.dim);
            device_add_scaled(grad_v, p.probability, block.grad_out.at(item.batch, row, head), block.grad_out.dim);
          }
        }
      }
    }
  }

 private:
  struct pair {
    bool visible;
    A probability;
    A grad_score;
  };

  ORRERY_DEVICE pair pair_of(const backward_queries<T, A>& block, std::int64_t b, std::int64_t head, std::int64_t row,
                             const backward_keys<T, A>& side, std::int64_t key_head, std::int64_t key) const {
    const A lse = *block.lse.at(b, head, row);
    // A row that saw no key: nothing depends on it.
    if (lse == -std::numeric_limits<A>::infinity()) return {false, A{0}, A{0}};
    if (!mask.visible(block.positions.position(row), side.positions.position(key))) return {false, A{0}, A{0}};
    const A score = scale * device_dot<A>(block.q.at(b, row, head), side.k.at(b, key, key_head), block.q.dim);
    const A probability = std::exp(score - lse);
    const A grad_probability =
        device_dot<A>(block.grad_out.at(b, row, head), side.v.at(b, key, key_head), block.grad_out.dim);
    return {true, probability, probability * (grad_probability - *block.delta.at(b, head, row)) * scale};
  }
};

/// Attention by its definition on a CUDA device: `reference` with a thread for each query or key. Any shape and any
/// device; the kernel to compare others with, not one to train with. T is float, double, bfloat16 or float16; double is
/// computed in double, the others in float.
///
/// Masks are called on the device: they are trivially copyable, and memory that they refer to is the device's; their
/// functions are constexpr (with nvcc's --expt-relaxed-constexpr) or `__device__`. Nothing is computed of a pair that
/// is not visible: what a token holds reaches those that see it and no other.
template <class T, class Device = gpu>
struct device_reference : device_backend<Device> {
  using storage = T;
  using accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using context = device_context;

  static constexpr std::int64_t max_head_dim = (std::numeric_limits<std::int64_t>::max)();

  template <mask Mask>
  static constexpr bool supports = std::is_trivially_copyable_v<Mask>;

  [[nodiscard]] static std::string name() { return "device_reference<" + element_name<T>() + ">"; }

  /// Throws `device_error` if there is no device, and `std::invalid_argument` if the program holds no code for the
  /// current one. Operators ask when they are made.
  static void require(std::int64_t, std::int64_t) { Device::require(name(), {}); }

  /// Every query of `queries` meets every key of `keys` that the mask lets it see; (out, lse) accumulate.
  template <mask Mask>
  static void forward(const device_context& context, std::span<const forward_queries<T, accumulator>> queries,
                      std::span<const forward_keys<T>> keys, const head_map& heads, accumulator scale,
                      const Mask& mask) {
    for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
      launch(context, some_queries,
             device_reference_forward<T, accumulator, Mask>{some_queries, some_keys, heads, scale, mask});
    });
  }

  /// The gradients of sum(out * grad_out) with respect to q, k and v accumulate; `lse` and `delta` are the forward's.
  template <mask Mask>
  static void backward(const device_context& context, std::span<const backward_queries<T, accumulator>> queries,
                       std::span<const backward_keys<T, accumulator>> keys, const head_map& heads, accumulator scale,
                       const Mask& mask) {
    for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
      launch(context, some_queries,
             device_reference_backward<T, accumulator, Mask, true>{some_queries, some_keys, heads, scale, mask});
      launch(context, some_keys,
             device_reference_backward<T, accumulator, Mask, false>{some_queries, some_keys, heads, scale, mask});
    });
  }

 private:
  template <class Block, class Body>
  static void launch(const device_context& context, const device_blocks<Block>& rows, const Body& body) {
    Device::template launch<device_reference_threads>(context, device_item::count(rows, device_reference_threads), 0,
                                                      body);
  }
};

}  // namespace orrery
