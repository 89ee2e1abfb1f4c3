// Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include <cuda_runtime_api.h>

#include "orrery/device/context.hpp"
#include "orrery/device/handles.hpp"

#include "common/statistics.hpp"

namespace bench {

/// Milliseconds on the stream of one of `calls` calls of work(), the median of eleven times that many, after as many
/// that do not count.
template <class Work>
double milliseconds_of(cudaStream_t stream, int calls, const Work& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  orrery::detail::check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
  orrery::detail::check_cuda(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> times;
  for (int turn = 0; turn < 12; ++turn) {
    orrery::detail::check_cuda(cudaEventRecord(begin, stream), "cudaEventRecord");
    for (int i = 0; i < calls; ++i) work();
    orrery::detail::check_cuda(cudaEventRecord(end, stream), "cudaEventRecord");
    orrery::detail::check_cuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    float elapsed = 0;
    orrery::detail::check_cuda(cudaEventElapsedTime(&elapsed, begin, end), "cudaEventElapsedTime");
    if (turn > 0) times.push_back(static_cast<double>(elapsed) / calls);
  }
  orrery::detail::ignore_cuda(cudaEventDestroy(begin));
  orrery::detail::ignore_cuda(cudaEventDestroy(end));
  return median(times);
}

/// Elements in device memory, all bits zero.
template <class T>
class device_numbers {
 public:
  explicit device_numbers(std::int64_t count) : memory_{count * static_cast<std::int64_t>(sizeof(T))} {
    orrery::detail::check_cuda(cudaMemset(memory_.data(), 0, static_cast<std::size_t>(count) * sizeof(T)),
                               "cudaMemset");
    // Streams that do not wait for the default one are going to read it.
    orrery::detail::check_cuda(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  }
  [[nodiscard]] T* data() const noexcept { return reinterpret_cast<T*>(memory_.data()); }

 private:
  orrery::detail::device_memory memory_;
};

}  // namespace bench
