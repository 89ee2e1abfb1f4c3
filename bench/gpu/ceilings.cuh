// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "orrery/device/code.hpp"
#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"
#include "orrery/tensor/float16.hpp"

#include "common/device_memory.hpp"
#include "report.hpp"
#include "sizes.hpp"
#include "timing.hpp"

namespace bench {

/// What this device can do at most, measured: what other figures are shares of.
struct ceilings {
  double copy = 0;      ///< bytes read and written per second
  double multiply = 0;  ///< flop per second of the tensor cores, by mma.sync
};

/// Products of the tensor cores and nothing else: eight independent sums of each warp, in registers.
template <class T>
struct endless_products {
  static constexpr int threads_of_block = 256, sums = 8;

  std::int64_t rounds;
  float* result;

  template <class Threads>
  ORRERY_DEVICE void operator()(const Threads& threads) const {
    float sum[sums][4] = {};
    std::uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = threads.template pack<T>(0.01f * static_cast<float>(threads.lane() - 16), 0.5f);
    for (int i = 0; i < 2; ++i) b[i] = threads.template pack<T>(0.25f, 0.02f * static_cast<float>(threads.lane() - 15));
    for (std::int64_t round = 0; round < rounds; ++round) {
      ORRERY_UNROLL
      for (int i = 0; i < sums; ++i) threads.template multiply_add<T>(sum[i], a, b[0], b[1]);
    }
    float all = 0;
    ORRERY_UNROLL
    for (int i = 0; i < sums; ++i) all += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];
    result[threads.block() * threads_of_block + threads.thread()] = all;
  }
};

template <class Device>
ceilings measure_ceilings(report& to, const gpu_sizes& sizes, cudaStream_t stream) {
  ceilings most;
  {
    const filled_device_memory<float> from{sizes.copied_bytes};
    const orrery::detail::device_memory into{sizes.copied_bytes};
    const double seconds = seconds_on_device(stream, sizes, [&] {
      orrery::detail::check_cuda(cudaMemcpyAsync(into.data(), from.data(), static_cast<std::size_t>(sizes.copied_bytes),
                                                 cudaMemcpyDeviceToDevice, stream),
                                 "cudaMemcpyAsync");
    });
    most.copy = 2 * static_cast<double>(sizes.copied_bytes) / seconds;
    to.add("ceiling", {{"of", "copy"}, {"bytes", sizes.copied_bytes}, {"gb_per_s", most.copy * 1e-9}});
  }
  using body = endless_products<orrery::bfloat16>;
  const std::int64_t threads = std::int64_t{sizes.product_blocks} * body::threads_of_block;
  const orrery::detail::device_memory result{threads * std::int64_t{sizeof(float)}};
  const double seconds = seconds_on_device(stream, sizes, [&] {
    Device::template launch<body::threads_of_block>({stream}, sizes.product_blocks, 0,
                                                    body{sizes.products, reinterpret_cast<float*>(result.data())});
  });
  const auto products = static_cast<double>(threads / 32 * sizes.products * body::sums);
  most.multiply = products * 2 * 16 * 8 * 16 / seconds;
  to.add("ceiling", {{"of", "mma.sync, bfloat16"}, {"tflop_per_s", most.multiply * 1e-12}});
  return most;
}

}  // namespace bench
