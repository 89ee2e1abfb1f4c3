// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include <orrery/orrery.hpp>

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
/// array, which is how optimiser and all-reduce want them. Matrices are [inputs, outputs].
template <class T>
class gpt_parameters {
 public:
  explicit gpt_parameters(const gpt_shape& s)
      : values_(static_cast<std::size_t>(2 * s.vocabulary * s.width +
                                         s.layers * s.width * (s.qkv_width() + s.width + 3 * s.hidden()))) {
    T* next = values_.data();
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
  gpt_parameters(const gpt_parameters&) = delete;
  gpt_parameters& operator=(const gpt_parameters&) = delete;

  void initialise(std::int64_t seed) {
    std::mt19937_64 random{static_cast<std::uint64_t>(seed)};
    std::normal_distribution<double> normal{0, 1 / std::sqrt(static_cast<double>(embedding.columns))};
    for (T& value : values_) value = static_cast<T>(normal(random));
  }

  [[nodiscard]] std::span<T> values() { return values_; }

  struct layer {
    matrix_view<T> qkv, projection, gate, up, down;
  };
  matrix_view<T> embedding, head;
  std::vector<layer> layers;

 private:
  std::vector<T> values_;
};

/// The reciprocal of a row's root mean square.
template <class T>
T inverse_rms(const T* row, std::int64_t columns) {
  T squares = 0;
  for (std::int64_t j = 0; j < columns; ++j) squares += row[j] * row[j];
  return 1 / std::sqrt(squares / static_cast<T>(columns) + static_cast<T>(1e-6));
}

/// out = x / rms(x), row by row.
template <class T>
void rms_norm(matrix_view<T> x, matrix_view<T> out) {
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const T scale = inverse_rms(x.row(i), x.columns);
    for (std::int64_t j = 0; j < x.columns; ++j) out.row(i)[j] = x.row(i)[j] * scale;
  }
}

/// Adds to grad_x what comes through `rms_norm`.
template <class T>
void rms_norm_backward(matrix_view<T> x, matrix_view<T> grad_out, matrix_view<T> grad_x) {
  for (std::int64_t i = 0; i < x.rows; ++i) {
    const T scale = inverse_rms(x.row(i), x.columns);
    T along = 0;  // the part of the gradient that would only change the length of x
    for (std::int64_t j = 0; j < x.columns; ++j) along += grad_out.row(i)[j] * x.row(i)[j];
    along *= scale * scale / static_cast<T>(x.columns);
    for (std::int64_t j = 0; j < x.columns; ++j) grad_x.row(i)[j] += scale * (grad_out.row(i)[j] - along * x.row(i)[j]);
  }
}

template <class T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

/// Of y = x * w: adds to w's gradient and writes x's.
template <class T>
void linear_backward(matrix_view<T> x, matrix_view<T> w, matrix_view<T> grad_y, matrix_view<T> grad_x,
                     matrix_view<T> grad_w) {
  multiply_add(grad_w, x.transposed(), grad_y);
  multiply(grad_x, grad_y, w.transposed());
}

/// One rank's part of the model at work: its own tokens of every sequence, with all the parameters.
///
/// Only attention looks at other tokens, and `attend` brings them from their ranks. All else is as it would be on one
/// rank; the one thing to remember is that a local token's index is not its position in the sequence.
template <class T, class Attention>
class gpt {
 public:
  gpt(const gpt_shape& shape, std::int64_t batch, std::int64_t length, Attention& attend)
      : shape_{shape}, batch_{batch}, length_{length}, positions_{attend.query_positions()}, attend_{attend} {
    for (std::int64_t i = 0; i < local_; ++i)
      for (std::int64_t j = 0; j < shape.head_dim() / 2; ++j) {
        const double wavelength = std::pow(10000, 2 * static_cast<double>(j) / static_cast<double>(shape.head_dim()));
        const double angle = static_cast<double>(positions_.position(i)) / wavelength;
        cosines_.push_back(static_cast<T>(std::cos(angle)));
        sines_.push_back(static_cast<T>(std::sin(angle)));
      }
    for (std::int64_t l = 0; l < shape.layers; ++l) layers_.push_back({tokens_, shape});
  }

  /// The local tokens' share of the mean loss over all tokens of the batch; the ranks' shares add up to it.
  /// `inputs` and `targets` are [batch, local token].
  T forward(const gpt_parameters<T>& p, std::span<const std::uint8_t> inputs, std::span<const std::uint8_t> targets) {
    for (std::int64_t t = 0; t < tokens_; ++t)
      std::copy_n(p.embedding.row(inputs[index(t)]), shape_.width, input_of(0).row(t));
    for (std::int64_t l = 0; l < shape_.layers; ++l) forward(p.layers[index(l)], layers_[index(l)], input_of(l + 1));
    rms_norm(out_, out_norm_);
    multiply(logits_, out_norm_, p.head);
    return cross_entropy(targets);
  }

  /// Adds the local tokens' share to the gradients `g`; the ranks' shares add up to the mean loss's gradients.
  void backward(const gpt_parameters<T>& p, gpt_parameters<T>& g, std::span<const std::uint8_t> inputs) {
    linear_backward(out_norm_, p.head, logits_, grad_part_, g.head);
    grad_x_.fill(0);
    rms_norm_backward(out_, grad_part_, grad_x_);
    for (std::int64_t l = shape_.layers; l-- > 0;) backward(p.layers[index(l)], g.layers[index(l)], layers_[index(l)]);
    for (std::int64_t t = 0; t < tokens_; ++t)
      for (std::int64_t j = 0; j < shape_.width; ++j) g.embedding.row(inputs[index(t)])[j] += grad_x_.row(t)[j];
  }

 private:
  using layer_parameters = typename gpt_parameters<T>::layer;

  /// What a layer's forward leaves for its backward. Attention's output and log-sum-exp are part of it, so that nothing
  /// of attention is computed twice.
  struct activations {
    std::int64_t tokens;
    gpt_shape shape;
    matrix<T> x{tokens, shape.width}, x_norm{tokens, shape.width}, qkv{tokens, shape.qkv_width()};
    matrix<T> attended{tokens, shape.width}, lse{shape.query_heads, tokens};
    matrix<T> y{tokens, shape.width}, y_norm{tokens, shape.width};
    matrix<T> gate{tokens, shape.hidden()}, up{tokens, shape.hidden()}, gated{tokens, shape.hidden()};
  };

  void forward(const layer_parameters& p, activations& a, matrix_view<T> next) {
    rms_norm(a.x, a.x_norm);
    // Queries are on their way to other ranks while keys are projected, and both while values are. So is the rest of
    // attention's output while the heads that are final are projected.
    const auto [q, k, v] = split(a.qkv);
    const std::int64_t query_heads = shape_.query_heads, key_heads = shape_.key_heads;
    auto call = attend_.begin_forward(heads(a.attended), rows(a.lse));
    project(p, a, 0, query_heads, call);
    rotate(a.qkv, T{1}, 0, query_heads);
    call.queries(q);
    project(p, a, query_heads, key_heads, call);
    rotate(a.qkv, T{1}, query_heads, key_heads);
    call.keys(k);
    project(p, a, query_heads + key_heads, key_heads, call);
    call.values(v);
    copy(a.x, a.y);
    call.finish([&](const orrery::output_part& final) {
      const std::int64_t first = final.first_head * shape_.head_dim(), count = final.heads * shape_.head_dim();
      multiply_add(a.y, a.attended.columns_from(first, count), p.projection.rows_from(first, count));
      call.progress();
    });

    rms_norm(a.y, a.y_norm);
    multiply(a.gate, a.y_norm, p.gate);
    multiply(a.up, a.y_norm, p.up);
    for (std::int64_t i = 0; i < a.gated.size(); ++i)
      a.gated.data[i] = a.gate.data[i] * sigmoid(a.gate.data[i]) * a.up.data[i];
    copy(a.y, next);
    multiply_add(next, a.gated, p.down);
  }

  /// Some heads of x_norm * w: query heads, then key heads, then value heads. Lets what flies move on now and then.
  template <class Call>
  void project(const layer_parameters& p, activations& a, std::int64_t first_head, std::int64_t head_count,
               Call& call) const {
    const std::int64_t first = first_head * shape_.head_dim(), count = head_count * shape_.head_dim();
    for (std::int64_t t = 0; t < tokens_; t += 64) {
      const std::int64_t tokens = std::min<std::int64_t>(64, tokens_ - t);
      multiply(a.qkv.columns_from(first, count).rows_from(t, tokens), a.x_norm.rows_from(t, tokens),
               p.qkv.columns_from(first, count));
      call.progress();
    }
  }

  /// Turns grad_x_ from the gradient of the layer's result into that of its input, and adds to the parameters'.
  void backward(const layer_parameters& p, const layer_parameters& g, const activations& a) {
    linear_backward(a.gated, p.down, grad_x_, grad_gated_, g.down);
    for (std::int64_t i = 0; i < a.gated.size(); ++i) {
      const T z = a.gate.data[i], s = sigmoid(z);
      grad_gate_.data[i] = grad_gated_.data[i] * a.up.data[i] * s * (1 + z * (1 - s));
      grad_up_.data[i] = grad_gated_.data[i] * z * s;
    }
    linear_backward(a.y_norm, p.gate, grad_gate_, grad_part_, g.gate);
    multiply_add(g.up, a.y_norm.transposed(), grad_up_);
    multiply_add(grad_part_, grad_up_, p.up.transposed());
    rms_norm_backward(a.y, grad_part_, grad_x_);

    linear_backward(a.attended, p.projection, grad_x_, grad_part_, g.projection);
    const auto [q, k, v] = split(a.qkv);
    const auto [grad_q, grad_k, grad_v] = split(grad_qkv_);
    attend_.backward(q, k, v, heads(a.attended), rows(a.lse), heads(grad_part_), grad_q, grad_k, grad_v);
    rotate(grad_qkv_, T{-1}, 0, shape_.query_heads + shape_.key_heads);
    linear_backward(a.x_norm, p.qkv, grad_qkv_, grad_part_, g.qkv);
    rms_norm_backward(a.x, grad_part_, grad_x_);
  }

  /// The local tokens' share of the mean loss; turns the logits into their gradients.
  T cross_entropy(std::span<const std::uint8_t> targets) {
    const T weight = 1 / static_cast<T>(batch_ * length_);
    T loss = 0;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const std::span<T> row{logits_.row(t), index(gpt_shape::vocabulary)};
      const T largest = *std::max_element(row.begin(), row.end());
      T& target = row[targets[index(t)]];
      loss -= weight * (target - largest);
      T sum = 0;
      for (T& x : row) sum += x = std::exp(x - largest);
      for (T& x : row) x *= weight / sum;
      target -= weight;
      loss += weight * std::log(sum);
    }
    return loss;
  }

  /// Rotary positions: turns every pair (j, j + head_dim / 2) of these heads by the token's angles.
  void rotate(matrix_view<T> qkv, T direction, std::int64_t first_head, std::int64_t head_count) const {
    const std::int64_t half = shape_.head_dim() / 2;
    for (std::int64_t t = 0; t < tokens_; ++t)
      for (std::int64_t head = first_head; head < first_head + head_count; ++head)
        for (std::int64_t j = 0; j < half; ++j) {
          const T c = cosines_[index(t % local_ * half + j)], s = direction * sines_[index(t % local_ * half + j)];
          T &x = qkv.row(t)[2 * head * half + j], &y = qkv.row(t)[(2 * head + 1) * half + j];
          const T turned = c * x - s * y;
          y = s * x + c * y;
          x = turned;
        }
  }

  /// Matrices as the operator wants to see them.
  [[nodiscard]] orrery::packed_qkv<T> split(matrix_view<T> qkv) const {
    return {qkv.data, batch_, local_, shape_.query_heads, shape_.key_heads, shape_.head_dim()};
  }
  [[nodiscard]] orrery::tensor_view<T> heads(matrix_view<T> m) const {
    return orrery::batch_sequence_head_dim(m.data, batch_, local_, shape_.query_heads, shape_.head_dim());
  }
  [[nodiscard]] orrery::row_view<T> rows(matrix_view<T> lse) const {
    return orrery::batch_head_sequence(lse.data, batch_, shape_.query_heads, local_);
  }

  [[nodiscard]] matrix_view<T> input_of(std::int64_t layer) {
    return layer < shape_.layers ? layers_[index(layer)].x : out_;
  }
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  gpt_shape shape_;
  std::int64_t batch_, length_;
  orrery::segments positions_;
  std::int64_t local_ = positions_.tokens(), tokens_ = batch_ * local_;
  Attention& attend_;
  std::vector<T> cosines_, sines_;  // [local token, half a head]
  std::vector<activations> layers_;
  matrix<T> out_{tokens_, shape_.width}, out_norm_{tokens_, shape_.width}, logits_{tokens_, gpt_shape::vocabulary};
  matrix<T> grad_x_{tokens_, shape_.width}, grad_part_{tokens_, shape_.width}, grad_qkv_{tokens_, shape_.qkv_width()};
  matrix<T> grad_gate_{tokens_, shape_.hidden()}, grad_up_{tokens_, shape_.hidden()},
      grad_gated_{tokens_, shape_.hidden()};
};

}  // namespace train
