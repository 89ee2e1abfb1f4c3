// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>

#include "orrery/attention/tile.hpp"
#include "orrery/device/code.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/gpu.cuh"
#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/kernel/cuda/blocks.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/math.hpp"

namespace orrery::detail {

/// Threads of a block of the kernels below: one for each row.
inline constexpr int device_reference_threads = 64;

template <class A, class T>
ORRERY_DEVICE A device_dot(const T* x, const T* y, std::int64_t dim) {
  A sum{0};
  for (std::int64_t i = 0; i < dim; ++i) sum += static_cast<A>(x[i]) * static_cast<A>(y[i]);
  return sum;
}

/// A thread's sums of one row, which would be long: in double, `columns` at a time in registers, and only rounded at
/// the end, so that their error does not grow with their length.
struct device_reference_sums {
  static constexpr int columns = 32;

  double of[columns] = {};

  /// Adds factor * x, of which `count` elements are there.
  template <class A, class T>
  ORRERY_DEVICE void add(A factor, const T* x, int count) {
    ORRERY_UNROLL
    for (int i = 0; i < columns; ++i) {
      if (i < count) of[i] += static_cast<double>(factor) * static_cast<double>(static_cast<A>(x[i]));
    }
  }
  /// to = the sums, or to += the sums.
  template <class A>
  ORRERY_DEVICE void write(A* to, int count, bool fresh) const {
    ORRERY_UNROLL
    for (int i = 0; i < columns; ++i) {
      if (i < count) to[i] = static_cast<A>(fresh ? of[i] : static_cast<double>(to[i]) + of[i]);
    }
  }

  /// Calls visit(first, count) for the parts of a row of `dim` elements that are summed together.
  template <class Visit>
  static ORRERY_DEVICE void for_parts(std::int64_t dim, const Visit& visit) {
    for (std::int64_t first = 0; first < dim; first += columns) {
      visit(first, static_cast<int>(dim - first < columns ? dim - first : columns));
    }
  }
};

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
    const std::int64_t b = item.batch;
    A* const out = block.out.at(b, row, item.head);
    A* const lse = block.lse.at(b, item.head, row);
    const A lse_before = block.fresh ? nothing : *lse;
    const bool is_empty_before = math::is_minus_infinity(lse_before);

    // A NaN stays, and what is weighed relative to it is NaN: once there is one, all of the row is.
    A largest = lse_before;
    bool is_empty = is_empty_before;
    for_scores(item, threads.thread(), [&](A score, const forward_keys<T>&, std::int64_t) {
      if (is_empty || score > largest || math::is_nan(score)) largest = score;
      is_empty = false;
    });
    if (is_empty) {
      *lse = nothing;
      for (std::int64_t i = 0; i < block.out.dim; ++i) out[i] = A{0};
      return;
    }
    // What the row has seen before counts as one key whose value is the mean so far.
    const A weight_before = is_empty_before ? A{0} : std::exp(lse_before - largest);
    auto sum = static_cast<double>(weight_before);
    for_scores(item, threads.thread(), [&](A score, const forward_keys<T>&, std::int64_t) {
      sum += static_cast<double>(std::exp(score - largest));
    });
    *lse = largest + std::log(static_cast<A>(sum));
    device_reference_sums::for_parts(block.out.dim, [&](std::int64_t first, int count) {
      device_reference_sums sums;
      if (!is_empty_before) sums.add(weight_before, out + first, count);
      for_scores(item, threads.thread(), [&](A score, const forward_keys<T>& side, std::int64_t key) {
        sums.add(std::exp(score - largest), side.v.at(b, key, heads.key_head(item.head)) + first, count);
      });
      for (double& one : sums.of) one /= sum;
      sums.write(out + first, count, true);
    });
  }

 private:
  /// Calls visit(score, side, key) for the keys that the thread's query sees, but for those whose score is -infinity,
  /// which hides a pair.
  template <class Visit>
  ORRERY_DEVICE void for_scores(const device_item& item, int thread, const Visit& visit) const {
    const std::int64_t position = item.tokens.position(thread);
    const std::int64_t key_head = heads.key_head(item.head);
    const tensor_view<const T>& of = queries.of[item.block].q;
    const T* const q = of.at(item.batch, item.tokens.first + thread, item.head);
    for (const forward_keys<T>& side : keys) {
      for (std::int64_t key = 0; key < side.k.sequence; ++key) {
        if (!mask.visible(position, side.positions.position(key))) continue;
        const A score = scale * device_dot<A>(q, side.k.at(item.batch, key, key_head), of.dim);
        if (!math::is_minus_infinity(score)) visit(score, side, key);
      }
    }
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
    using sums_of_part = device_reference_sums;
    if constexpr (of_queries) {
      const device_item item = device_item::of(queries, threads.block(), device_reference_threads);
      if (threads.thread() >= item.tokens.count) return;
      const backward_queries<T, A>& block = queries.of[item.block];
      const std::int64_t row = item.tokens.first + threads.thread();
      A* const grad_q = block.grad_q.at(item.batch, row, item.head);
      const std::int64_t key_head = heads.key_head(item.head);
      sums_of_part::for_parts(block.grad_q.dim, [&](std::int64_t first, int count) {
        sums_of_part sums;
        for (const backward_keys<T, A>& side : keys) {
          for (std::int64_t key = 0; key < side.k.sequence; ++key) {
            const pair p = pair_of(block, item.batch, item.head, row, side, key_head, key);
            if (p.visible) sums.add(p.grad_score, side.k.at(item.batch, key, key_head) + first, count);
          }
        }
        sums.write(grad_q + first, count, block.fresh);
      });
    } else {
      const device_item item = device_item::of(keys, threads.block(), device_reference_threads);
      if (threads.thread() >= item.tokens.count) return;
      const backward_keys<T, A>& side = keys.of[item.block];
      const std::int64_t key = item.tokens.first + threads.thread();
      A* const grad_k = side.grad_k.at(item.batch, key, item.head);
      A* const grad_v = side.grad_v.at(item.batch, key, item.head);
      // visit(pair, block, head, row) for all queries that see the key.
      const auto for_pairs = [&](const auto& visit) {
        for (const backward_queries<T, A>& block : queries) {
          const head_group group = head_group::of(heads, item.head, block.q.heads);
          for (std::int64_t head = group.first; head < group.end; ++head) {
            for (std::int64_t row = 0; row < block.q.sequence; ++row) {
              const pair p = pair_of(block, item.batch, head, row, side, item.head, key);
              if (p.visible) visit(p, block, head, row);
            }
          }
        }
      };
      sums_of_part::for_parts(side.grad_k.dim, [&](std::int64_t first, int count) {
        sums_of_part sums;
        for_pairs([&](const pair& p, const backward_queries<T, A>& block, std::int64_t head, std::int64_t row) {
          sums.add(p.grad_score, block.q.at(item.batch, row, head) + first, count);
        });
        sums.write(grad_k + first, count, side.fresh);
      });
      sums_of_part::for_parts(side.grad_v.dim, [&](std::int64_t first, int count) {
        sums_of_part sums;
        for_pairs([&](const pair& p, const backward_queries<T, A>& block, std::int64_t head, std::int64_t row) {
          sums.add(p.probability, block.grad_out.at(item.batch, row, head) + first, count);
        });
        sums.write(grad_v + first, count, side.fresh);
      });
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
    constexpr pair hidden{false, A{0}, A{0}};
    const A lse = *block.lse.at(b, head, row);
    // A row that saw no key: nothing depends on it.
    if (math::is_minus_infinity(lse)) return hidden;
    if (!mask.visible(block.positions.position(row), side.positions.position(key))) return hidden;
    const A score = scale * device_dot<A>(block.q.at(b, row, head), side.k.at(b, key, key_head), block.q.dim);
    if (math::is_minus_infinity(score)) return hidden;
    const A probability = std::exp(score - lse);
    const A grad_probability =
        device_dot<A>(block.grad_out.at(b, row, head), side.v.at(b, key, key_head), block.grad_out.dim);
    return {true, probability, probability * (grad_probability - *block.delta.at(b, head, row)) * scale};
  }
};

}  // namespace orrery::detail

namespace orrery {

/// Attention by its definition on a CUDA device: `reference` with a thread for each query or key. Any shape and any
/// device; the kernel to compare others with, not one to train with. T is float, double, bfloat16 or float16; double is
/// computed in double, the others in float.
///
/// Masks are called on the device and, when an operator is made, on the host: they are trivially copyable and refer to
/// no memory, or have a table (see `mask_with_table`); their functions are constexpr (with nvcc's
/// --expt-relaxed-constexpr) or `__host__ __device__`. Nothing is computed of a pair that
/// is not visible: what a token holds reaches those that see it and no other. A score of -infinity hides its pair, too;
/// one that is NaN or +infinity makes its query's out, lse and gradient NaN, and the gradients of what the query sees.
/// Sums over tokens are in double, whatever T is.
template <class T, class Device = detail::gpu>
struct device_reference : detail::device_backend<Device> {
  using storage = T;
  using accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using context = device_context;

  static constexpr std::int64_t max_head_dim = (std::numeric_limits<std::int64_t>::max)();

  template <mask Mask>
  static constexpr bool supports = detail::is_mask_for_devices<Mask>();

  [[nodiscard]] static std::string name() { return "device_reference<" + detail::element_name<T>() + ">"; }

  /// Throws `device_error` if there is no device, and `std::invalid_argument` if the program holds no code for the
  /// current one. Operators ask when they are made.
  static void require(std::int64_t, std::int64_t) { Device::require(name(), {}); }

  /// Every query of `queries` meets every key of `keys` that the mask lets it see; (out, lse) accumulate.
  template <mask Mask>
  static void forward(const device_context& context, std::span<const forward_queries<T, accumulator>> queries,
                      std::span<const forward_keys<T>> keys, const head_map& heads, accumulator scale,
                      const Mask& mask) {
    detail::for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
      launch(context, some_queries,
             detail::device_reference_forward<T, accumulator, Mask>{some_queries, some_keys, heads, scale, mask});
    });
  }

  /// The gradients of sum(out * grad_out) with respect to q, k and v accumulate; `lse` and `delta` are the forward's.
  template <mask Mask>
  static void backward(const device_context& context, std::span<const backward_queries<T, accumulator>> queries,
                       std::span<const backward_keys<T, accumulator>> keys, const head_map& heads, accumulator scale,
                       const Mask& mask) {
    detail::for_device_blocks(queries, keys, [&](const auto& some_queries, const auto& some_keys) {
      launch(
          context, some_queries,
          detail::device_reference_backward<T, accumulator, Mask, true>{some_queries, some_keys, heads, scale, mask});
      launch(
          context, some_keys,
          detail::device_reference_backward<T, accumulator, Mask, false>{some_queries, some_keys, heads, scale, mask});
    });
  }

 private:
  template <class Block, class Body>
  static void launch(const device_context& context, const detail::device_blocks<Block>& rows, const Body& body) {
    Device::template launch<detail::device_reference_threads>(
        context, detail::device_item::count(rows, detail::device_reference_threads), 0, body);
  }
};

}  // namespace orrery
