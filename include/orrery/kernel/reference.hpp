// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "orrery/attention/tile.hpp"
#include "orrery/host/context.hpp"
#include "orrery/kernel/cpu/backend.hpp"
#include "orrery/mask/mask.hpp"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/math.hpp"

namespace orrery {

/// Attention by its definition: plain loops over queries and keys, everything in double. The kernel to read, and the
/// one to debug a schedule with; for speed there is `flash`. Under `-ffast-math` it is right for finite inputs whose
/// scores are finite, as `flash` is.
///
/// With s_ij = scale * <q_i, k_j> over the visible pairs: lse_i = log sum_j exp(s_ij), p_ij = exp(s_ij - lse_i),
/// out_i = sum_j p_ij v_j. Cost: two dot products and one row update per visible pair forward; backward two dot
/// products and three row updates. No scratch, any head dimension, one thread. Nothing is computed of a pair that is
/// not visible: what a token holds reaches those that see it and no other.
///
/// A score of -infinity hides its pair, exactly as a mask does: weight 0, gradient 0; a row that has no other score has
/// seen no key. A score that is NaN or +infinity makes `out` and lse of its row NaN, and every gradient that its
/// row's other pairs and it contribute to.
///
/// Sums, and partials that travel, are double; an operator's log-sum-exp is of the type that `flash<T>` has, so that
/// either kernel compiles in a trainer's place for the other. A score that this type cannot hold counts as infinite.
template <class T = double>
struct reference : detail::host_backend {
  using storage = T;
  using accumulator = double;
  using context = host_context;

  static constexpr std::int64_t max_head_dim = (std::numeric_limits<std::int64_t>::max)();

  /// Any mask works: pairs are tested one by one.
  template <mask Mask>
  static constexpr bool supports = true;

  [[nodiscard]] static std::string name() { return "reference<" + detail::element_name<T>() + ">"; }

  /// Every query of `queries` meets every key of `keys` that the mask lets it see; (out, lse) accumulate.
  template <mask Mask>
  static void forward(const host_context& context, std::span<const forward_queries<T, double>> queries,
                      std::span<const forward_keys<T>> keys, const head_map& heads, double scale, const Mask& mask) {
    for (const auto& block : queries) {
      for (std::int64_t b = 0; b < block.q.batch; ++b) {
        for (std::int64_t head = 0; head < block.q.heads; ++head) {
          for (std::int64_t row = 0; row < block.q.sequence; ++row) {
            forward_row(block, keys, heads.key_head(head), scale, mask, b, head, row);
          }
          context.poll();
        }
      }
    }
  }

  /// The gradients of sum(out * grad_out) with respect to q, k and v accumulate; `lse` and `delta` are the forward's.
  template <mask Mask>
  static void backward(const host_context& context, std::span<const backward_queries<T, double>> queries,
                       std::span<const backward_keys<T, double>> keys, const head_map& heads, double scale,
                       const Mask& mask) {
    for (const auto& block : queries) {
      if (block.fresh) clear(context, block.grad_q);
    }
    for (const auto& block : keys) {
      if (block.fresh) clear(context, block.grad_k);
      if (block.fresh) clear(context, block.grad_v);
    }
    for (const auto& block : queries) {
      for (std::int64_t b = 0; b < block.q.batch; ++b) {
        for (std::int64_t head = 0; head < block.q.heads; ++head) {
          for (std::int64_t row = 0; row < block.q.sequence; ++row) {
            backward_row(block, keys, heads.key_head(head), scale, mask, b, head, row);
          }
          context.poll();
        }
      }
    }
  }

 private:
  static constexpr detail::math::minus_infinity<double> nothing{};
  static constexpr detail::math::quiet_nan<double> not_a_number{};

  static double dot(const T* x, const T* y, std::int64_t dim) {
    double sum = 0;
    for (std::int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    return sum;
  }

  using log_sum_exp = detail::log_sum_exp_of<T>;

  /// The score of a pair. Where the type of an operator's log-sum-exp cannot hold it: NaN, as +infinity would make
  /// everything, or -infinity.
  static double score_of(double scale, const T* q, const T* k, std::int64_t dim) {
    const double score = scale * dot(q, k, dim);
    if constexpr (sizeof(log_sum_exp) < sizeof(double)) {
      constexpr auto largest = static_cast<double>((std::numeric_limits<log_sum_exp>::max)());
      if (score > largest) return not_a_number;
      if (score < -largest) return nothing;
    }
    return score;
  }

  static double round(double x) { return static_cast<double>(static_cast<log_sum_exp>(x)); }

  static void add_scaled(double* into, double factor, const T* x, std::int64_t dim) {
    for (std::int64_t i = 0; i < dim; ++i) into[i] += factor * static_cast<double>(x[i]);
  }

  /// Calls visit(block, key) for every key that the query at `position` sees.
  template <class Keys, class Mask, class Visit>
  static void for_visible(std::span<const Keys> keys, const Mask& mask, std::int64_t position, Visit&& visit) {
    for (const Keys& block : keys) {
      for (std::int64_t key = 0; key < block.k.sequence; ++key) {
        if (mask.visible(position, block.positions.position(key))) visit(block, key);
      }
    }
  }

  template <class Mask>
  static void forward_row(const forward_queries<T, double>& block, std::span<const forward_keys<T>> keys,
                          std::int64_t key_head, double scale, const Mask& mask, std::int64_t b, std::int64_t head,
                          std::int64_t row) {
    const T* q = block.q.at(b, row, head);
    double* out = block.out.at(b, row, head);
    double& lse = *block.lse.at(b, head, row);
    const std::int64_t position = block.positions.position(row);
    const double lse_before = block.fresh ? nothing : lse;

    // NaN is never larger, but makes the sum NaN; so does +infinity, less itself.
    double largest = lse_before;
    bool sees = !detail::math::is_minus_infinity(lse_before);
    for_visible(keys, mask, position, [&](const forward_keys<T>& side, std::int64_t key) {
      const double score = score_of(scale, q, side.k.at(b, key, key_head), block.q.dim);
      if (detail::math::is_minus_infinity(score)) return;
      if (!sees || score > largest) largest = score;
      sees = true;
    });
    if (!sees) {
      for (std::int64_t i = 0; i < block.out.dim; ++i) out[i] = 0;
      lse = nothing;
      return;
    }

    // What the row has seen before counts as one key whose value is the mean so far.
    const bool empty_before = detail::math::is_minus_infinity(lse_before);
    const double weight_before = empty_before ? 0.0 : detail::math::exp(lse_before - largest);
    for (std::int64_t i = 0; i < block.out.dim; ++i) out[i] = empty_before ? 0.0 : out[i] * weight_before;
    double sum = weight_before;
    for_visible(keys, mask, position, [&](const forward_keys<T>& side, std::int64_t key) {
      const double score = score_of(scale, q, side.k.at(b, key, key_head), block.q.dim);
      if (detail::math::is_minus_infinity(score)) return;
      const double weight = detail::math::exp(score - largest);
      sum += weight;
      add_scaled(out, weight, side.v.at(b, key, key_head), block.out.dim);
    });

    lse = largest + detail::math::log(sum);
    for (std::int64_t i = 0; i < block.out.dim; ++i) out[i] /= sum;
  }

  template <class Mask>
  static void backward_row(const backward_queries<T, double>& block, std::span<const backward_keys<T, double>> keys,
                           std::int64_t key_head, double scale, const Mask& mask, std::int64_t b, std::int64_t head,
                           std::int64_t row) {
    const T* q = block.q.at(b, row, head);
    const T* grad_out = block.grad_out.at(b, row, head);
    double* grad_q = block.grad_q.at(b, row, head);
    const double lse = *block.lse.at(b, head, row);
    const double delta = *block.delta.at(b, head, row);
    if (detail::math::is_minus_infinity(lse)) return;  // the row saw no key, so nothing depends on it
    // Scores are rounded if the log-sum-exp was, so that no weight is larger than 1, however large the scores.
    const bool is_rounded = round(lse) == lse;

    for_visible(keys, mask, block.positions.position(row), [&](const backward_keys<T, double>& side, std::int64_t key) {
      const T* k = side.k.at(b, key, key_head);
      const T* v = side.v.at(b, key, key_head);
      const double score = score_of(scale, q, k, block.q.dim);
      if (detail::math::is_minus_infinity(score)) return;
      const double p = detail::math::exp((is_rounded ? round(score) : score) - lse);
      const double grad_score = p * (dot(grad_out, v, block.grad_out.dim) - delta) * scale;
      add_scaled(grad_q, grad_score, k, block.q.dim);
      add_scaled(side.grad_k.at(b, key, key_head), grad_score, q, block.q.dim);
      add_scaled(side.grad_v.at(b, key, key_head), p, grad_out, block.grad_out.dim);
    });
  }
};

}  // namespace orrery
