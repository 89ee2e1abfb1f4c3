// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "orrery/config.hpp"

#include <cstdint>
#include <limits>

#include "orrery/device/code.hpp"
#include "orrery/device/context.hpp"
#include "orrery/kernel/cuda/row_partition.cuh"
#include "orrery/tensor/math.hpp"
#include "orrery/tensor/view.hpp"

namespace orrery::detail {

/// What cuDNN's backward is given in the place of the forward's output, which does not travel with queries: it only
/// takes delta, the row sums of out * grad_out, from it. So out = grad_out * (delta / |grad_out|²), of which all terms
/// of that sum have one sign: rounded to T, it gives delta to within T's rounding, which the true output, whose terms
/// cancel, does not. Divided by the row's largest element first, so that no square over- or underflows; its norm is at
/// most the true output's. Also packs the log-sum-exp. One pass over grad_out; its dimension is a multiple of 8, and at
/// most 256.
template <class T>
struct device_cudnn_rows {
  static constexpr int count = 8;
  static constexpr int most_dim = 32 * count;

  tensor_view<const T> grad_out;
  row_view<const float> lse;
  row_view<const float> delta;
  tensor_view<T> out;
  row_view<float> packed_lse;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), out.heads, out.sequence, device_backend_sizes::tokens);
    const T* const from = grad_out.at(rows.batch, rows.first, rows.head);
    T* const to = out.at(rows.batch, rows.first, rows.head);
    const int dim = static_cast<int>(out.dim);
    const device_row_lanes lanes{dim / count};
    const int first = threads.lane() % lanes.of_row * count;
    constexpr int at_once = device_backend_sizes::at_once;
    const int step = device_backend_sizes::threads / 32 * lanes.rows;
    for (int base = threads.warp() * lanes.rows; base < rows.count; base += at_once * step) {
      const int row = base + threads.lane() / lanes.of_row;  // and those `step` apart
      device_elements<T, count> x[at_once] = {};
      float delta_of[at_once] = {};
      float lse_of[at_once];
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int at = row + i * step;
        if (at >= rows.count) continue;
        if (first < dim) x[i] = device_elements<T, count>::read(threads, from + at * grad_out.sequence_stride + first);
        delta_of[i] = *delta.at(rows.batch, rows.head, rows.first + at);
        lse_of[i] = *lse.at(rows.batch, rows.head, rows.first + at);
      }
      ORRERY_UNROLL
      for (int i = 0; i < at_once; ++i) {
        float largest = 0;
        for (int j = 0; j < count; ++j) {
          const float number = static_cast<float>(x[i].of[j]);
          const float size = number < 0 ? -number : number;
          if (!(size <= largest)) largest = size;  // so that it is NaN if one is
        }
        for (int distance = lanes.of_row / 2; distance > 0; distance /= 2) {
          const float other = threads.shuffle_xor(largest, distance);
          if (!(other <= largest)) largest = other;
        }
        float parts[count];
        float squares = 0;
        for (int j = 0; j < count; ++j) {
          parts[j] = largest == 0 ? 0 : static_cast<float>(x[i].of[j]) / largest;
          squares += parts[j] * parts[j];
        }
        for (int distance = lanes.of_row / 2; distance > 0; distance /= 2) {
          squares += threads.shuffle_xor(squares, distance);
        }
        // Where grad_out is 0, so is delta, unless an infinity or NaN in the output has made it NaN.
        const float factor = largest == 0 ? delta_of[i] * 0 : delta_of[i] / largest / squares;
        const int at = row + i * step;
        if (at >= rows.count) continue;
        device_elements<T, count> scaled;
        for (int j = 0; j < count; ++j) scaled.of[j] = T{parts[j] * factor};
        if (first < dim) scaled.write(threads, to + at * out.sequence_stride + first);
        if (first == 0) {
          // Probabilities of a row that has seen nothing are 0: as if its log-sum-exp were infinite.
          constexpr float infinity = std::numeric_limits<float>::infinity();
          *packed_lse.at(rows.batch, rows.head, rows.first + at) =
              math::is_minus_infinity(lse_of[i]) ? infinity : lse_of[i];
        }
      }
    }
  }
};

/// Enqueues it. All tensors are at multiples of 16 bytes.
template <class Device, class T>
void launch_cudnn_rows(const device_context& context, const device_cudnn_rows<T>& body) {
  Device::template launch<device_backend_sizes::threads>(
      context, device_rows::blocks(body.out.batch, body.out.heads, body.out.sequence, device_backend_sizes::tokens), 0,
      body);
}

}  // namespace orrery::detail
