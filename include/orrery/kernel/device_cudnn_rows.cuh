// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "orrery/kernel/device_backend.cuh"
#include "orrery/kernel/device_code.hpp"
#include "orrery/kernel/device_context.hpp"
#include "orrery/kernel/view.hpp"

namespace orrery {

/// What cuDNN's backward is given in the place of the forward's output, which does not travel with queries: it only
/// takes delta, the row sums of out * grad_out, from it. So out = grad_out * (delta / |grad_out|²), of which all terms
/// of that sum have one sign: rounded to T, it gives delta to within T's rounding, which the true output, whose terms
/// cancel, does not. Divided by the row's largest element first, so that no square over- or underflows; its norm is at
/// most the true output's. Also packs the log-sum-exp. A warp for each row.
template <class T, int count>
struct device_cudnn_rows {
  tensor_view<const T> grad_out;
  row_view<const float> lse;
  row_view<const float> delta;
  tensor_view<T> out;
  row_view<float> packed_lse;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    const device_rows rows = device_rows::of(threads.block(), out.heads, out.sequence, device_backend_sizes::tokens);
    const int dim = static_cast<int>(out.dim);
    for (int row = threads.warp(); row < rows.count; row += device_backend_sizes::threads / 32) {
      const std::int64_t token = rows.first + row;
      const T* const from = grad_out.at(rows.batch, token, rows.head);
      float largest = 0;
      for (int first = threads.lane() * count; first < dim; first += 32 * count) {
        const auto x = device_elements<T, count>::read(threads, from + first);
        for (int j = 0; j < count; ++j) {
          const float size =
              static_cast<float>(x.of[j]) < 0 ? -static_cast<float>(x.of[j]) : static_cast<float>(x.of[j]);
          if (!(size <= largest)) largest = size;  // so that it is NaN if one is
        }
      }
      for (int distance = 16; distance > 0; distance /= 2) {
        const float other = threads.shuffle_xor(largest, distance);
        if (!(other <= largest)) largest = other;
      }
      float squares = 0;
      for (int first = threads.lane() * count; first < dim && largest != 0; first += 32 * count) {
        const auto x = device_elements<T, count>::read(threads, from + first);
        for (int j = 0; j < count; ++j) {
          const float part = static_cast<float>(x.of[j]) / largest;
          squares += part * part;
        }
      }
      for (int distance = 16; distance > 0; distance /= 2) squares += threads.shuffle_xor(squares, distance);
      const float factor = largest == 0 ? 0 : *delta.at(rows.batch, rows.head, token) / largest / squares;
      for (int first = threads.lane() * count; first < dim; first += 32 * count) {
        const auto x = device_elements<T, count>::read(threads, from + first);
        device_elements<T, count> scaled;
        for (int j = 0; j < count; ++j) {
          scaled.of[j] = T{largest == 0 ? 0 : static_cast<float>(x.of[j]) / largest * factor};
        }
        scaled.write(threads, out.at(rows.batch, token, rows.head) + first);
      }
      if (threads.lane() == 0) {
        *packed_lse.at(rows.batch, rows.head, token) = *lse.at(rows.batch, rows.head, token);
      }
    }
  }
};

/// Enqueues it. The head dimensions are multiples of 8, and all tensors at multiples of 16 bytes.
template <class Device, class T>
void launch_cudnn_rows(const device_context& context, const device_cudnn_rows<T, 8>& body) {
  Device::template launch<device_backend_sizes::threads>(
      context, device_rows::blocks(body.out.batch, body.out.heads, body.out.sequence, device_backend_sizes::tokens), 0,
      body);
}

}  // namespace orrery
