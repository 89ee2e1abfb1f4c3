// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include <orrery/attention.hpp>

#include "elementwise.hpp"
#include "matrix.hpp"

namespace train {

/// A byte-level GPT: rotary positions, grouped-query attention and SwiGLU, with an RMSNorm (without gains) before each.
struct gpt_shape {
  static constexpr std::int64_t vocabulary = 256;

  std::int64_t layers = 2;
  std::int64_t width = 128;
  std::int64_t query_heads = 8;
  std::int64_t key_heads = 4;

  [[nodiscard]] std::int64_t head_dim() const { return width / query_heads; }
  [[nodiscard]] std::int64_t qkv_width() const { return (query_heads + 2 * key_heads) * head_dim(); }
  [[nodiscard]] std::int64_t hidden() const { return 3 * width; }
};

/// One number for every parameter of the model, by name: the parameters themselves, or their gradients. All lie in one
/// array, which is how optimiser and all-reduce want them, and which somebody else owns. Matrices are [inputs,
/// outputs].
template <class T>
struct gpt_parameters {
  /// How many there are.
  [[nodiscard]] static std::int64_t count(const gpt_shape& s) {
    return 2 * s.vocabulary * s.width + s.layers * s.width * (s.qkv_width() + s.width + 3 * s.hidden());
  }

  gpt_parameters(const gpt_shape& s, T* next) {
    const auto take = [&next](std::int64_t rows, std::int64_t columns) {
      const matrix_view<T> taken{next, rows, columns};
      next += rows * columns;
      return taken;
    };
    embedding = take(s.vocabulary, s.width);
    for (std::int64_t l = 0; l < s.layers; ++l)
      layers.push_back({take(s.width, s.qkv_width()), take(s.width, s.width), take(s.width, s.hidden()),
                        take(s.width, s.hidden()), take(s.hidden(), s.width)});
    head = take(s.width, s.vocabulary);
  }

  struct layer {
    matrix_view<T> qkv, projection, gate, up, down;
  };
  matrix_view<T> embedding, head;
  std::vector<layer> layers;
};

/// All parameters at the beginning of a training, in the order of `gpt_parameters`.
template <class T>
std::vector<T> initial_parameters(const gpt_shape& s, std::int64_t seed) {
  std::mt19937_64 random{static_cast<std::uint64_t>(seed)};
  std::normal_distribution<double> normal{0, 1 / std::sqrt(static_cast<double>(s.width))};
  std::vector<T> values(static_cast<std::size_t>(gpt_parameters<T>::count(s)));
  for (T& value : values) value = static_cast<T>(normal(random));
  return values;
}

/// One rank's part of the model at work: its own tokens of every sequence, with all the parameters.
///
/// Only attention looks at other tokens, and `attend` brings them from their ranks. All else is as it would be on one
/// rank; the one thing to remember is that a local token's index is not its position in the sequence. All numbers are
/// at a `Place`, the host or a device, and of type T; attention may store them in a narrower type.
template <class T, class Attention, class Place>
class gpt {
 public:
  gpt(const gpt_shape& shape, std::int64_t batch, std::int64_t length, Attention& attend, const Place& place)
      : shape_{shape},
        batch_{batch},
        length_{length},
        positions_{attend.query_positions()},
        attend_{attend},
        place_{place} {
    std::vector<T> cosines, sines;
    for (const std::int64_t position : positions_)
      for (std::int64_t j = 0; j < shape.head_dim() / 2; ++j) {
        const double wavelength = std::pow(10000, 2 * static_cast<double>(j) / static_cast<double>(shape.head_dim()));
        const double angle = static_cast<double>(position) / wavelength;
        cosines.push_back(static_cast<T>(std::cos(angle)));
        sines.push_back(static_cast<T>(std::sin(angle)));
      }
    place_.bring(std::span<const T>{cosines}, cosines_.data());
    place_.bring(std::span<const T>{sines}, sines_.data());
    for (std::int64_t l = 0; l < shape.layers; ++l) layers_.push_back({place_, tokens_, shape});
  }

  /// The local tokens' share of the mean loss over all tokens of the batch; the ranks' shares add up to it.
  /// `inputs` and `targets` are [batch, local token].
  T forward(const gpt_parameters<T>& p, std::span<const std::uint8_t> inputs, std::span<const std::uint8_t> targets) {
    place_.bring(inputs, inputs_.data());
    place_.bring(targets, targets_.data());
    place_.each(tokens_, embed<T>{p.embedding, inputs_.data(), input_of(0)});
    for (std::int64_t l = 0; l < shape_.layers; ++l) forward(p.layers[index(l)], layers_[index(l)], input_of(l + 1));
    place_.each(tokens_, rms_norm<T>{out_, out_norm_});
    product(logits_, out_norm_, p.head);
    const T weight = 1 / static_cast<T>(batch_ * length_);
    place_.each(tokens_, cross_entropy<T>{logits_, targets_.data(), losses_.data(), weight});
    std::vector<T> losses(index(tokens_));
    place_.fetch(losses_.data(), std::span{losses});
    T loss = 0;
    for (const T of_token : losses) loss += of_token;
    return loss;
  }

  /// Adds the local tokens' share to the gradients `g`; the ranks' shares add up to the mean loss's gradients. The
  /// tokens are those of the last forward.
  void backward(const gpt_parameters<T>& p, const gpt_parameters<T>& g) {
    product_backward(out_norm_, p.head, logits_, grad_part_, g.head);
    place_.fill(view(grad_x_), T{0});
    place_.each(tokens_, rms_norm_backward<T>{out_, grad_part_, grad_x_});
    for (std::int64_t l = shape_.layers; l-- > 0;) backward(p.layers[index(l)], g.layers[index(l)], layers_[index(l)]);
    place_.each(gpt_shape::vocabulary, embed_backward<T>{grad_x_, inputs_.data(), g.embedding});
  }

 private:
  using layer_parameters = typename gpt_parameters<T>::layer;
  using storage = typename Attention::storage;
  using mine = matrix<T, Place>;
  using stored = matrix<storage, Place>;
  template <class Number>
  using memory = typename Place::template memory<Number>;

  /// Does attention read and write the model's own numbers? Else it has rounded copies.
  static constexpr bool exact = std::is_same_v<T, storage>;
  static constexpr std::int64_t if_rounded(std::int64_t rows) { return exact ? 0 : rows; }

  /// What a layer's forward leaves for its backward. Attention's output and log-sum-exp are part of it, so that nothing
  /// of attention is computed twice.
  struct activations {
    Place place;
    std::int64_t tokens;
    gpt_shape shape;
    mine x{place, tokens, shape.width}, x_norm{place, tokens, shape.width}, qkv{place, tokens, shape.qkv_width()};
    mine attended{place, tokens, shape.width};
    matrix<typename Attention::log_sum_exp, Place> lse{place, shape.query_heads, tokens};
    mine y{place, tokens, shape.width}, y_norm{place, tokens, shape.width};
    mine gate{place, tokens, shape.hidden()}, up{place, tokens, shape.hidden()}, gated{place, tokens, shape.hidden()};
    stored stored_qkv{place, if_rounded(tokens), shape.qkv_width()};
    stored stored_attended{place, if_rounded(tokens), shape.width};
  };

  void forward(const layer_parameters& p, activations& a, matrix_view<T> next) {
    place_.each(tokens_, rms_norm<T>{a.x, a.x_norm});
    // Queries are on their way to other ranks while keys are projected, and both while values are. So is the rest of
    // attention's output while the heads that are final are projected.
    const std::int64_t query_heads = shape_.query_heads, key_heads = shape_.key_heads;
    auto call = attend_.begin_forward(result(a.attended, a.stored_attended), rows(a.lse));
    project(p, a, 0, query_heads, call);
    turn(a.qkv, T{1}, 0, query_heads);
    call.queries(operand(a.qkv, a.stored_qkv, 0, query_heads));
    project(p, a, query_heads, key_heads, call);
    turn(a.qkv, T{1}, query_heads, key_heads);
    call.keys(operand(a.qkv, a.stored_qkv, query_heads, key_heads));
    project(p, a, query_heads + key_heads, key_heads, call);
    call.values(operand(a.qkv, a.stored_qkv, query_heads + key_heads, key_heads));
    copy(a.x, a.y);
    call.finish([&](const orrery::output_part& final) {
      take(a.stored_attended, a.attended, final.first_head, final.heads);
      const std::int64_t first = final.first_head * shape_.head_dim(), count = final.heads * shape_.head_dim();
      place_.multiply_add(view(a.y), a.attended.columns_from(first, count), p.projection.rows_from(first, count));
      call.progress();
    });

    place_.each(tokens_, rms_norm<T>{a.y, a.y_norm});
    product(a.gate, a.y_norm, p.gate);
    product(a.up, a.y_norm, p.up);
    place_.each(a.gated.size(), gated_unit<T>{a.gate.data, a.up.data, a.gated.data});
    copy(a.y, next);
    place_.multiply_add(next, view(a.gated), p.down);
  }

  /// Some heads of x_norm * w: query heads, then key heads, then value heads. Lets what flies move on now and then.
  template <class Call>
  void project(const layer_parameters& p, activations& a, std::int64_t first_head, std::int64_t head_count,
               Call& call) const {
    const std::int64_t first = first_head * shape_.head_dim(), count = head_count * shape_.head_dim();
    for (std::int64_t t = 0; t < tokens_; t += 64) {
      const std::int64_t tokens = std::min<std::int64_t>(64, tokens_ - t);
      product(a.qkv.columns_from(first, count).rows_from(t, tokens), a.x_norm.rows_from(t, tokens),
              p.qkv.columns_from(first, count));
      call.progress();
    }
  }

  /// Turns grad_x_ from the gradient of the layer's result into that of its input, and adds to the parameters'.
  void backward(const layer_parameters& p, const layer_parameters& g, activations& a) {
    product_backward(a.gated, p.down, grad_x_, grad_gated_, g.down);
    place_.each(a.gated.size(),
                gated_unit_backward<T>{a.gate.data, a.up.data, grad_gated_.data, grad_gate_.data, grad_up_.data});
    product_backward(a.y_norm, p.gate, grad_gate_, grad_part_, g.gate);
    place_.multiply_add(g.up, a.y_norm.transposed(), view(grad_up_));
    place_.multiply_add(view(grad_part_), view(grad_up_), p.up.transposed());
    place_.each(tokens_, rms_norm_backward<T>{a.y, grad_part_, grad_x_});

    product_backward(a.attended, p.projection, grad_x_, grad_part_, g.projection);
    const std::int64_t query_heads = shape_.query_heads, key_heads = shape_.key_heads;
    const auto part = [&](const auto& of, std::int64_t which) {  // queries, keys or values
      return of.slice_heads(which == 0 ? 0 : query_heads + (which - 1) * key_heads,
                            which == 0 ? query_heads : key_heads);
    };
    const auto qkv = result(a.qkv, a.stored_qkv), grad_qkv = result(grad_qkv_, stored_grad_qkv_);
    attend_.backward(part(qkv, 0), part(qkv, 1), part(qkv, 2), result(a.attended, a.stored_attended), rows(a.lse),
                     operand(grad_part_, stored_grad_, 0, query_heads), part(grad_qkv, 0), part(grad_qkv, 1),
                     part(grad_qkv, 2));
    take(stored_grad_qkv_, grad_qkv_, 0, query_heads + 2 * key_heads);
    turn(grad_qkv_, T{-1}, 0, query_heads + key_heads);
    product_backward(a.x_norm, p.qkv, grad_qkv_, grad_part_, g.qkv);
    place_.each(tokens_, rms_norm_backward<T>{a.x, grad_part_, grad_x_});
  }

  void product(matrix_view<T> c, matrix_view<T> a, matrix_view<T> b) const { multiply(place_, c, a, b); }
  void product_backward(matrix_view<T> x, matrix_view<T> w, matrix_view<T> grad_y, matrix_view<T> grad_x,
                        matrix_view<T> grad_w) const {
    linear_backward(place_, x, w, grad_y, grad_x, grad_w);
  }
  void copy(matrix_view<T> from, matrix_view<T> to) const {
    place_.each(from.size(), copy_element<T>{from.data, to.data});
  }
  void turn(matrix_view<T> qkv, T direction, std::int64_t first_head, std::int64_t head_count) const {
    place_.each(tokens_, rotate<T>{qkv, cosines_.data(), sines_.data(), local_, shape_.head_dim() / 2, first_head,
                                   head_count, direction});
  }

  /// Matrices as the operator wants to see them.
  template <class Number>
  [[nodiscard]] orrery::tensor_view<Number> heads(matrix_view<Number> m) const {
    return orrery::batch_sequence_head_dim(m.data, batch_, local_, m.columns / shape_.head_dim(), shape_.head_dim());
  }
  template <class Number>
  [[nodiscard]] orrery::row_view<Number> rows(matrix_view<Number> lse) const {
    return orrery::batch_head_sequence(lse.data, batch_, shape_.query_heads, local_);
  }
  /// What attention reads of some heads of m: these themselves, or copies that are rounded now.
  [[nodiscard]] orrery::tensor_view<storage> operand(matrix_view<T> m, matrix_view<storage> rounded, std::int64_t first,
                                                     std::int64_t count) const {
    const auto all = result(m, rounded).slice_heads(first, count);
    if constexpr (!exact) place_.convert(heads(m).slice_heads(first, count), all);
    return all;
  }
  /// Where attention writes what becomes m by `take`.
  [[nodiscard]] orrery::tensor_view<storage> result(matrix_view<T> m, matrix_view<storage> rounded) const {
    if constexpr (exact) {
      return heads(m);
    } else {
      return heads(rounded);
    }
  }
  void take(matrix_view<storage> rounded, matrix_view<T> m, std::int64_t first, std::int64_t count) const {
    if constexpr (!exact) place_.convert(heads(rounded).slice_heads(first, count), heads(m).slice_heads(first, count));
  }

  [[nodiscard]] matrix_view<T> input_of(std::int64_t layer) {
    return layer < shape_.layers ? view(layers_[index(layer)].x) : view(out_);
  }
  static matrix_view<T> view(const mine& m) { return m; }
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  gpt_shape shape_;
  std::int64_t batch_, length_;
  orrery::token_positions positions_;
  std::int64_t local_ = positions_.size(), tokens_ = batch_ * local_;
  Attention& attend_;
  Place place_;
  memory<T> cosines_ = place_.template zeros<T>(local_ * shape_.head_dim() / 2);  // [local token, half a head]
  memory<T> sines_ = place_.template zeros<T>(local_ * shape_.head_dim() / 2);
  memory<std::uint8_t> inputs_ = place_.template zeros<std::uint8_t>(tokens_);
  memory<std::uint8_t> targets_ = place_.template zeros<std::uint8_t>(tokens_);
  memory<T> losses_ = place_.template zeros<T>(tokens_);
  std::vector<activations> layers_;
  mine out_{place_, tokens_, shape_.width}, out_norm_{place_, tokens_, shape_.width};
  mine logits_{place_, tokens_, gpt_shape::vocabulary};
  mine grad_x_{place_, tokens_, shape_.width}, grad_part_{place_, tokens_, shape_.width};
  mine grad_qkv_{place_, tokens_, shape_.qkv_width()}, grad_gate_{place_, tokens_, shape_.hidden()};
  mine grad_up_{place_, tokens_, shape_.hidden()}, grad_gated_{place_, tokens_, shape_.hidden()};
  stored stored_grad_{place_, if_rounded(tokens_), shape_.width};
  stored stored_grad_qkv_{place_, if_rounded(tokens_), shape_.qkv_width()};
};

}  // namespace train
