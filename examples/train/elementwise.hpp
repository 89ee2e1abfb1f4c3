// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include <orrery/device/code.hpp>

#include "matrix.hpp"

// The model's mathematics beside products of matrices: functors, each called once for every index of something, in any
// order or at the same time, and wherever the numbers are (see places.hpp).

namespace train {

/// The reciprocal of a row's root mean square.
template <class T>
ORRERY_DEVICE T inverse_rms(const T* row, std::int64_t columns) {
  T squares = 0;
  for (std::int64_t j = 0; j < columns; ++j) squares += row[j] * row[j];
  return 1 / std::sqrt(squares / static_cast<T>(columns) + static_cast<T>(1e-6));
}

/// Of a row: out = x / rms(x).
template <class T>
struct rms_norm {
  matrix_view<T> x, out;

  ORRERY_DEVICE void operator()(std::int64_t i) const {
    const T scale = inverse_rms(x.row(i), x.columns);
    for (std::int64_t j = 0; j < x.columns; ++j) out.row(i)[j] = x.row(i)[j] * scale;
  }
};

/// Of a row: adds to grad_x what comes through `rms_norm`.
template <class T>
struct rms_norm_backward {
  matrix_view<T> x, grad_out, grad_x;

  ORRERY_DEVICE void operator()(std::int64_t i) const {
    const T scale = inverse_rms(x.row(i), x.columns);
    T along = 0;  // the part of the gradient that would only change the length of x
    for (std::int64_t j = 0; j < x.columns; ++j) along += grad_out.row(i)[j] * x.row(i)[j];
    along *= scale * scale / static_cast<T>(x.columns);
    for (std::int64_t j = 0; j < x.columns; ++j) grad_x.row(i)[j] += scale * (grad_out.row(i)[j] - along * x.row(i)[j]);
  }
};

/// Of an element.
template <class T>
struct copy_element {
  const T* from;
  T* to;

  ORRERY_DEVICE void operator()(std::int64_t i) const { to[i] = from[i]; }
};

template <class T>
ORRERY_DEVICE T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

/// Of an element: SwiGLU.
template <class T>
struct gated_unit {
  const T *gate, *up;
  T* out;

  ORRERY_DEVICE void operator()(std::int64_t i) const { out[i] = gate[i] * sigmoid(gate[i]) * up[i]; }
};

template <class T>
struct gated_unit_backward {
  const T *gate, *up, *grad_out;
  T *grad_gate, *grad_up;

  ORRERY_DEVICE void operator()(std::int64_t i) const {
    const T z = gate[i], s = sigmoid(z);
    grad_gate[i] = grad_out[i] * up[i] * s * (1 + z * (1 - s));
    grad_up[i] = grad_out[i] * z * s;
  }
};

/// Of a token: its byte's row of the embedding.
template <class T>
struct embed {
  matrix_view<T> embedding;
  const std::uint8_t* inputs;
  matrix_view<T> out;

  ORRERY_DEVICE void operator()(std::int64_t t) const {
    for (std::int64_t j = 0; j < out.columns; ++j) out.row(t)[j] = embedding.row(inputs[t])[j];
  }
};

/// Of a byte: adds up the gradients of all tokens that are this one.
template <class T>
struct embed_backward {
  matrix_view<T> grad_out;
  const std::uint8_t* inputs;
  matrix_view<T> grad_embedding;

  ORRERY_DEVICE void operator()(std::int64_t byte) const {
    T* const sum = grad_embedding.row(byte);
    for (std::int64_t t = 0; t < grad_out.rows; ++t) {
      if (inputs[t] != byte) continue;
      for (std::int64_t j = 0; j < grad_out.columns; ++j) sum[j] += grad_out.row(t)[j];
    }
  }
};

/// Of a token: rotary positions. Turns every pair (j, j + head_dim / 2) of some heads by the token's angles.
template <class T>
struct rotate {
  matrix_view<T> qkv;
  const T *cosines, *sines;  // [local token, half a head]
  std::int64_t local, half, first_head, head_count;
  T direction;

  ORRERY_DEVICE void operator()(std::int64_t t) const {
    for (std::int64_t head = first_head; head < first_head + head_count; ++head)
      for (std::int64_t j = 0; j < half; ++j) {
        const T c = cosines[t % local * half + j], s = direction * sines[t % local * half + j];
        T &x = qkv.row(t)[2 * head * half + j], &y = qkv.row(t)[(2 * head + 1) * half + j];
        const T turned = c * x - s * y;
        y = s * x + c * y;
        x = turned;
      }
  }
};

/// Of a token: its loss; turns its logits into their gradients.
template <class T>
struct cross_entropy {
  matrix_view<T> logits;
  const std::uint8_t* targets;
  T* losses;
  T weight;

  ORRERY_DEVICE void operator()(std::int64_t t) const {
    T* const row = logits.row(t);
    T largest = row[0];
    for (std::int64_t j = 1; j < logits.columns; ++j) largest = row[j] > largest ? row[j] : largest;
    T& target = row[targets[t]];
    const T score = target - largest;
    T sum = 0;
    for (std::int64_t j = 0; j < logits.columns; ++j) sum += row[j] = std::exp(row[j] - largest);
    for (std::int64_t j = 0; j < logits.columns; ++j) row[j] *= weight / sum;
    target -= weight;
    losses[t] = weight * (std::log(sum) - score);
  }
};

}  // namespace train
