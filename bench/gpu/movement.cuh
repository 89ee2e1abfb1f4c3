// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "orrery/kernel/cuda/backend.cuh"
#include "orrery/tensor/float16.hpp"
#include "orrery/tensor/view.hpp"

#include "ceilings.cuh"
#include "common/device_memory.hpp"
#include "report.hpp"
#include "sizes.hpp"
#include "timing.hpp"

namespace bench {

/// The kernels that move and add between tiles, in per cent of the copy's speed: each reads and writes at least the
/// bytes that are counted.
template <class Device>
void measure_movement(report& to, const gpu_sizes& sizes, const ceilings& most, cudaStream_t stream) {
  using backend = orrery::detail::device_backend<Device>;
  using orrery::bfloat16;
  constexpr std::int64_t dim = 128, heads = 32, slices = 8;
  const orrery::device_context context{stream};
  const std::int64_t tokens = sizes.copied_bytes / (heads * dim * std::int64_t{sizeof(float)});
  const filled_device_memory<float> one{sizes.copied_bytes}, other{sizes.copied_bytes};
  const filled_device_memory<float> rows_of_one{tokens * heads * std::int64_t{sizeof(float)}};
  const filled_device_memory<float> rows_of_other{tokens * heads * std::int64_t{sizeof(float)}};
  const auto tensor = [&]<class T>(const orrery::detail::device_memory& of, T) {
    return orrery::batch_sequence_head_dim(reinterpret_cast<T*>(of.data()), 1, tokens, heads, dim);
  };
  const auto rows = [&](const orrery::detail::device_memory& of) {
    return orrery::batch_head_sequence(reinterpret_cast<float*>(of.data()), 1, heads, tokens);
  };
  // One slice of the heads after the other, contiguous.
  const auto packed = [&](std::int64_t slice) {
    const std::int64_t size = tokens * heads / slices * dim;
    return orrery::batch_sequence_head_dim(reinterpret_cast<bfloat16*>(other.data()) + slice * size, 1, tokens,
                                           heads / slices, dim);
  };
  const auto slice_of = [&](std::int64_t slice) {
    return tensor(one, bfloat16{}).slice_heads(slice * (heads / slices), heads / slices);
  };
  const auto elements = static_cast<double>(tokens * heads * dim);
  const auto numbers = static_cast<double>(tokens * heads);
  const auto measure = [&](const char* what, double bytes, const auto& enqueue) {
    const double seconds = seconds_on_device(stream, sizes, enqueue);
    to.add("movement", {{"what", what},
                        {"mb", bytes * 1e-6},
                        {"ms", seconds * 1e3},
                        {"gb_per_s", bytes / seconds * 1e-9},
                        {"percent_of_copy", 100 * bytes / seconds / most.copy}});
  };
  measure("pack: an eighth of the heads, eight times", 4 * elements, [&] {
    for (std::int64_t slice = 0; slice < slices; ++slice) backend::copy(context, slice_of(slice), packed(slice));
  });
  measure("unpack: an eighth of the heads, eight times", 4 * elements, [&] {
    for (std::int64_t slice = 0; slice < slices; ++slice) backend::copy(context, packed(slice), slice_of(slice));
  });
  measure("round: float to bfloat16", 6 * elements,
          [&] { backend::copy(context, tensor(one, float{}), tensor(other, bfloat16{})); });
  measure("add: float", 12 * elements, [&] { backend::add(context, tensor(one, float{}), tensor(other, float{})); });
  measure("merge: float, with log-sum-exp", 12 * elements + 12 * numbers, [&] {
    backend::merge(context, tensor(one, float{}), rows(rows_of_one), tensor(other, float{}), rows(rows_of_other));
  });
  measure("delta: of bfloat16", 4 * elements + 4 * numbers,
          [&] { backend::row_dot(context, tensor(one, bfloat16{}), tensor(other, bfloat16{}), rows(rows_of_one)); });
}

}  // namespace bench
